"""Which implementation runs: the caller's word, the table of measurements, and clear refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax import GATES, SQS, gated, gated_linear, kernels, sqs
from sqs_jax.kernels import timings
from sqs_jax.kernels.__main__ import main
from sqs_jax.kernels.timings import Measurement


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SQS_CACHE_DIR", str(tmp_path / "cache"))
    timings._read.cache_clear()


def measurement(xla, ours, *, shape=(64, 32, 128), op="gated_linear", residuals="save", tile=(16, 32, 128)):
    times = [{"forward": time, "training": 3 * time} for time in (xla, ours)]
    return Measurement(op, "sqs", "float32", shape, residuals, tile, *times)


def runs_a_kernel(function, *arrays):
    return "pallas_call" in str(jax.make_jaxpr(lambda *z: function(*z))(*arrays))  # a new function: nothing cached


X, W = jnp.ones((64, 32)), jnp.ones((32, 128))


def test_without_measurements_xla_runs():
    with kernels.interpreted("triton"):
        assert not runs_a_kernel(gated_linear, X, W, W)
        assert not runs_a_kernel(gated, X, X)
        assert not runs_a_kernel(sqs, X)
        assert runs_a_kernel(lambda *z: gated_linear(*z, implementation="pallas"), X, W, W)
        assert not runs_a_kernel(lambda *z: gated_linear(*z, implementation="xla"), X, W, W)


@pytest.mark.parametrize("lam", [0.5, np.float32(0.5), np.array(0.5), 1e35, 0])
def test_numbers_of_any_kind_have_a_kernel(lam):
    with kernels.interpreted("triton"):
        assert runs_a_kernel(lambda x: sqs(x, lam=lam, implementation="pallas"), X)


def test_a_table_decides_by_class_of_shape_dtype_and_residuals():
    rows = [
        measurement(2.0, 1.0),
        measurement(1.0, 2.0, residuals="recompute"),
        measurement(1.0, 2.0, shape=(1024, 32, 128)),
    ]
    timings.write("interpreted triton", rows, {})
    with kernels.interpreted("triton"):
        sqs_gate = GATES["sqs"]
        plan = kernels.plan("gated_linear", None, X, (64, 32, 128), sqs_gate)
        assert plan == kernels.Plan("triton", (16, 32, 128), interpret=True)
        near = kernels.plan("gated_linear", None, X, (70, 30, 100), sqs_gate)
        assert near == plan
        for shape, dtype, residuals in (
            ((64, 32, 128), "float32", "recompute"),
            ((1024, 32, 128), "float32", "save"),
            ((64, 32, 512), "float32", "save"),
            ((64, 32, 128), "bfloat16", "save"),
        ):
            assert kernels.plan("gated_linear", None, X.astype(dtype), shape, sqs_gate, residuals=residuals) is None
        assert kernels.plan("gated_linear", None, X, (64, 32, 128), GATES["silu"]) is None
        assert kernels.plan("gated_linear", None, X, (64, 32, 128), sqs_gate, exact=True) is None
        with jax.default_matmul_precision("highest"):
            assert not runs_a_kernel(gated_linear, X, W, W)
        assert runs_a_kernel(gated_linear, X, W, W)
        np.testing.assert_allclose(gated_linear(X, W, W), gated_linear(X, W, W, implementation="xla"), rtol=1e-6)
    with kernels.interpreted("tpu"):
        assert not runs_a_kernel(gated_linear, X, W, W)


def test_xla_means_xla_though_a_kernel_of_the_gate_won(tmp_path):
    rows = [measurement(2.0, 1.0, op="sqs", shape=(64, 128), tile=None)]
    timings.write("interpreted triton", rows, {})
    with kernels.interpreted("triton"):
        assert runs_a_kernel(sqs, jnp.ones((64, 128)))
        assert not runs_a_kernel(lambda *z: gated_linear(*z, implementation="xla"), X, W, W)
        assert not runs_a_kernel(lambda *z: gated(*z, implementation="xla"), X, X)


def test_a_kernel_is_not_chosen_where_arrays_may_lie_over_several_devices(monkeypatch):
    timings.write("interpreted triton", [measurement(2.0, 1.0)], {})
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with kernels.interpreted("triton"):
        assert not runs_a_kernel(gated_linear, X, W, W)
        assert kernels.plan("gated_linear", None, X, (64, 32, 128), GATES["sqs"])  # X is there, on one device


def test_a_kernel_that_loses_one_pass_is_not_chosen():
    times = {"forward": 2.0, "training": 2.0}, {"forward": 1.0, "training": 3.0}
    slow = Measurement("sqs", "sqs", "float32", (64, 32), "save", None, *times)
    timings.write("interpreted tpu", [slow], {})
    with kernels.interpreted("tpu"):
        assert not runs_a_kernel(sqs, X)
        assert runs_a_kernel(lambda x: sqs(x, implementation="pallas"), X)


@pytest.mark.parametrize(("gain", "chosen"), [(1.02, False), (1.05, True)])
def test_a_gain_within_the_noise_of_the_clock_is_none(gain, chosen):
    timings.write("interpreted triton", [measurement(gain, 1.0)], {})
    with kernels.interpreted("triton"):
        assert runs_a_kernel(gated_linear, X, W, W) == chosen


def test_the_shipped_tables_are_found_by_their_devices():
    paths = list(timings._OURS.glob("*.json"))
    assert paths
    for path in paths:
        kind = json.loads(path.read_text())["device"]
        assert path.stem == timings.slug(kind)
        rows = timings._read(path).values()
        assert {row.op for row in rows} == {"gated_linear", "gated", "sqs"}
        for row in rows:
            assert timings.lookup(kind, row.op, row.dtype, row.shape, row.residuals, row.gate) == row
            assert (row.op == "gated_linear") == (row.tile is not None)


def test_a_new_measurement_replaces_the_old_one_and_keeps_the_others():
    timings.write("a device", [measurement(1.0, 2.0), measurement(1.0, 2.0, shape=(8, 8, 8))], {"jax": "1"})
    path = timings.write("a device", [measurement(2.0, 1.0)], {"jax": "2"})
    content = json.loads(path.read_text())
    assert content["device"] == "a device"
    assert [row["xla_ms"]["forward"] for row in content["entries"]] == [2.0, 1.0]
    assert [result.name for result in path.parent.iterdir()] == ["a-device.json"]


def test_a_broken_table_is_named():
    path = timings.user_path("interpreted tpu")
    path.parent.mkdir(parents=True)
    path.write_text('{"entries": [{"op": "sqs"}]}')
    with kernels.interpreted("tpu"), pytest.raises(ValueError, match=r"interpreted-tpu\.json cannot be read"):
        sqs(X)
    timings.write("interpreted tpu", [measurement(1.0, 2.0)], {})
    with kernels.interpreted("tpu"):
        assert sqs(X).shape == X.shape


def test_tuning_measures_prints_and_is_used(capsys):
    with kernels.interpreted("triton"):
        main(["tune", "--rows", "32", "--inputs", "16", "--repeats", "1", "--dtype", "float32"])
    path = timings.user_path("interpreted triton")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(path)
    rows = json.loads(path.read_text())["entries"]
    assert [(row["op"], row["residuals"]) for row in rows] == [
        ("gated_linear", "save"), ("gated_linear", "recompute"), ("gated", "save"), ("sqs", "save"),
    ]  # fmt: skip
    assert len(printed) == 3 + 2 * len(rows)
    for row in rows:
        assert set(row["xla_ms"]) == set(row["pallas_ms"]) == {"forward", "training"}
        assert all(time > 0 for part in ("xla_ms", "pallas_ms") for time in row[part].values())
    result = timings.lookup("interpreted triton", "gated_linear", "float32", (32, 16, 64), "save", "sqs")
    assert result is not None
    assert result.xla_ms == rows[0]["xla_ms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune"], "no TPU and no NVIDIA GPU"),
        (["tune", "--rows", "0"], "argument --rows: '0': a whole number ≥ 1"),
        (["tune", "--dtype", "float64"], "argument --dtype"),
        (["tone"], "invalid choice"),
    ],
)
def test_mistakes_in_tuning_are_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_device_without_kernels_says_so():
    for call in (lambda: sqs(X, implementation="pallas"), lambda: gated_linear(X, W, W, implementation="pallas")):
        with pytest.raises(NotImplementedError, match=r'but cpu is no TPU and no NVIDIA GPU .*; "xla" does it'):
            call()
    assert sqs(X).shape == X.shape


@pytest.mark.parametrize("backend", kernels.DTYPES)
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sqs(X, c=jnp.ones(32)), NotImplementedError, "a kernel is built for numbers"),
        (lambda: jax.grad(lambda c: sqs(X, c=c).sum())(0.1), NotImplementedError, "a kernel is built for numbers"),
        (lambda: sqs(X, p=1.5), NotImplementedError, "the kernels know a whole `p`, not 1.5"),
        (lambda: gated_linear(X, W, W, gate=SQS(p=1.5)), NotImplementedError, "a whole `p`, not 1.5"),
        (lambda: sqs(X, p=0.5), ValueError, "`p` is 0.5"),
        (lambda: sqs(jnp.arange(3)), TypeError, "`x` has dtype int32"),
        (lambda: sqs(jnp.ones((0, 3))), NotImplementedError, "is empty"),
        (lambda: gated_linear(X, W, W, gate=jnp.tanh), NotImplementedError, "is not one of the table"),
        (lambda: gated_linear(X, W, W, precision="high"), NotImplementedError, "`precision` 'default' and 'highest'"),
        (lambda: gated_linear(X, W, W, w_bias=jnp.ones(128, int)), TypeError, "`w_bias` has dtype int32"),
        (lambda: gated_linear(X, W, W[1:]), ValueError, r"`v` has shape \(31, 128\)"),
        (lambda: gated_linear(X.astype(int), W, W), TypeError, "`x` has dtype int32"),
        (lambda: gated(X, X[1:]), ValueError, r"`u` has shape \(63, 32\)"),
        (lambda: gated(X, X.astype(jnp.bfloat16)), TypeError, "`u` has dtype bfloat16: that of `a`, float32"),
    ],
)
def test_what_no_kernel_does_is_refused_with_the_reason(backend, call, error, message, monkeypatch):
    plan = kernels.plan

    def asked_by_name(op, implementation, *rest, **named):
        return plan(op, "pallas", *rest, **named)

    monkeypatch.setattr(kernels, "plan", asked_by_name)
    with kernels.interpreted(backend), pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("backend", "dtype"), [("tpu", "float16"), ("tpu", "float64"), ("triton", "float64")])
def test_dtypes_that_a_backend_lacks_are_refused_by_name_and_run_by_xla_otherwise(backend, dtype):
    with kernels.interpreted(backend), jax.enable_x64(True):
        x = jnp.ones((4, 4), dtype)
        with pytest.raises(NotImplementedError, match=f"not {dtype}"):
            sqs(x, implementation="pallas")
        assert sqs(x).dtype == dtype


def test_mistakes_in_the_choice_itself():
    with pytest.raises(ValueError, match="`implementation` is 'triton': it must be None or one of 'xla', 'pallas'"):
        sqs(X, implementation="triton")
    with pytest.raises(ValueError, match="`residuals` is 'forget'"):
        gated_linear(X, W, W, residuals="forget")
    with pytest.raises(ValueError, match="`backend` is 'cuda'"), kernels.interpreted("cuda"):
        pass


def test_arrays_too_large_for_a_triton_kernel_are_refused():
    with kernels.interpreted("triton"), pytest.raises(NotImplementedError, match="more than 2147483647 elements"):
        jax.eval_shape(lambda x: sqs(x, implementation="pallas"), jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16))
