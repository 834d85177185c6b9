"""The benchmark of the kernels, in small and in an interpreter: its times mean nothing, its checks do."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu
from sqs_jax import gated_linear, kernels


def test_the_whole_benchmark_in_small(tmp_path, capsys):
    flags = ["--interpret", "triton", "--rows", "16", "--inputs", "8", "--repeats", "2", "--out", str(tmp_path)]
    gpu.main(flags)
    result = json.loads((tmp_path / "benchmarks" / "results" / "interpreted-triton.json").read_text())
    assert set(result["largest_errors"]) == {"bfloat16", "float16", "float32"}
    assert all(0 < error <= gpu.LIMITS[dtype] for dtype, error in result["largest_errors"].items())
    variants = {(row["variant"], row["pass"]) for row in result["rows"]}
    for name in ("xla", "ours, save", "ours, recompute", "picked", "jax.numpy"):
        assert {(name, "forward"), (name, "training")} <= variants
    kept = {row["variant"]: row["kept_bytes"] for row in result["rows"] if "kept_bytes" in row}
    assert kept["ours, save"] == kept["xla"] == 2 * 16 * 32 * 2
    assert kept["ours, recompute"] == 0
    assert kept["jax.numpy"] > kept["ours, save"]
    page = (tmp_path / "docs" / "results" / "kernels-interpreted-triton.md").read_text()
    assert page.count("\n| 16, 8, 32 |") == len(result["rows"])
    assert "correct on this device" in capsys.readouterr().out


def test_a_wrong_kernel_does_not_pass(monkeypatch):
    def wrong(x, w, v, **_):
        return 1.02 * gated_linear(x, w, v, implementation="xla")

    monkeypatch.setattr(gpu, "gated_linear", wrong)
    with kernels.interpreted("triton"), pytest.raises(SystemExit, match=r"wrong: .* bfloat16 sqs"):
        gpu.check("triton", [(8, 8, 8)])


def test_a_kernel_that_is_wrong_in_one_corner_does_not_pass(monkeypatch):
    def wrong(x, w, v, *, gate, **_):
        h = gated_linear(x, w, v, gate=gate, implementation="xla")
        return h.at[-1, -1].add(100 if gate.name == "relu" else 0)

    monkeypatch.setattr(gpu, "gated_linear", wrong)
    with kernels.interpreted("triton"), pytest.raises(SystemExit, match=r"wrong: .* bfloat16 relu"):
        gpu.check("triton", [(130, 64, 260)])


def test_errors_are_counted_in_spacings():
    wanted = np.array([1.0, -2.0])
    assert gpu._units(jnp.array([1.0, -2.0 + 2**-21]), wanted, "float32", jumps=True) == 2.0


def test_a_device_without_kernels_ends_it(capsys):
    with pytest.raises(SystemExit) as end:
        gpu.main([])
    assert end.value.code == 2
    assert "cpu has no kernels" in capsys.readouterr().err
