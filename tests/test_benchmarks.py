"""The benchmarks of the kernels, in an interpreter, and of the peers, in small: their times mean nothing here."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import gpu, peers, scaling, start
from benchmarks.common import parsed
from sqs_jax import gated_linear, kernels
from sqs_jax.transformer import Transformer, TransformerConfig


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


@pytest.mark.parametrize("flags", [["--rows", "0"], ["--inputs", "8,-1"], ["--repeats", "often"]])
def test_sizes_below_one_are_refused_in_a_line(flags, capsys):
    with pytest.raises(SystemExit) as end:
        gpu.main(flags)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: argument {flags[0]}: ")
    assert "a whole number ≥ 1 is needed" in line


def test_seconds_to_the_same_loss_are_to_what_every_network_reached():
    curves = {"fast": {"sqs-0": [0.3, 0.1], "sqs-1": [0.4, 0.2]}, "slow": {"sqs-0": [0.5, 0.3], "sqs-1": [0.5, 0.25]}}
    result = {name: {"seconds": 8.0, "peak_mb": 1.0, "curves": curve} for name, curve in curves.items()}
    options = peers.Options(gates=("sqs",), seeds=2, data="digits", epochs=2)
    rows = peers._figures(options, result, {"fast": 6.0, "slow": 2.0})
    # A loss of 0.3, after 1 epoch and after 2: 3 s for the first, most of it for the start, and 1 s for the other.
    assert rows["fast"]["seconds_to_the_same_loss"] == 3.5
    assert rows["slow"]["seconds_to_the_same_loss"] == 4
    assert rows["fast"]["images_a_second"] == 2 * (1237 // 128) * 128 / 4


def test_one_command_stands_for_a_gate_in_short(tmp_path):
    curves = {peers.COMMANDS: ["sqs-0", "relu-0"], peers.SWEEP: ["sqs-0", "sqs-1", "relu-0", "relu-1"]}
    result = {
        name: {"seconds": 8.0, "peak_mb": 1.0, "curves": {key: [0.3, 0.1] for key in keys}}
        for name, keys in curves.items()
    }
    options = peers.Options(gates=("sqs", "relu"), seeds=2, data="digits", epochs=2, short=True, out=tmp_path)
    rows = peers._figures(options, result, {})
    assert [row["networks"] for row in rows.values()] == [2, 4]
    assert [row["seconds_a_network"] for row in rows.values()] == [4, 2]
    peers.write(options, rows, {})
    page = (tmp_path / "docs" / "results" / "peers-cpu.md").read_text()
    assert f"| {peers.COMMANDS} | 2 | 8 | 4 | " in page
    assert "to the same loss" not in page
    assert "eigenpairs" not in page


def test_the_peers_in_small(tmp_path):
    options = peers.Options(gates=("sqs",), seeds=1, data="digits", epochs=2, out=tmp_path)
    (tmp_path / "work").mkdir()
    rows, pairs = peers.measure(options, tmp_path / "work")
    torch = importlib.util.find_spec("torch") is not None
    assert ({peers.TORCH, peers.SWEEP} <= rows.keys()) == torch
    assert ("torch" in pairs) == torch
    losses = [rows[name]["last_validation_loss"] for name in (peers.SWEEP, peers.COMMANDS)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert all(row["peak_mb"] > 50 for row in rows.values())
    peers.write(options, rows, pairs)
    page = (tmp_path / "docs" / "results" / "peers-cpu.md").read_text()
    assert f"| {peers.SWEEP} | " in page
    assert "1 networks on digits" in page
    assert (tmp_path / "docs" / "images" / "peers-cpu.png").stat().st_size > 5000


def example(
    page: Path, /, text: str, width: int = 3, gates: tuple[Literal["a", "b"], ...] = ("a",), only: str | None = None
):
    return page, text, width, gates, only


def test_flags_come_from_a_signature(capsys):
    assert parsed(example, ["p", "--text", "t"]) == (Path("p"), "t", 3, ("a",), None)
    line = ["p", "--text", "t", "--width", "4", "--gates", "b", "a", "--only", "x"]
    assert parsed(example, line) == (Path("p"), "t", 4, ["b", "a"], "x")
    for wrong in (["p"], ["--text", "t"], [*line, "--gates", "c"], [*line, "--width", "x"]):
        with pytest.raises(SystemExit) as end:
            parsed(example, wrong)
        assert end.value.code == 2
    with pytest.raises(SystemExit):
        parsed(peers.Options, ["--help"])
    assert "Networks of each gate. (default: 5)" in " ".join(capsys.readouterr().out.split())


_HLO = """
%all-reduce-scatter.1 (input: bf16[64,8]) -> bf16[16,8] {
  %all-reduce.2 = bf16[64,8]{1,0} all-reduce(%input), channel_id=1
}

%body (carried: (f32[8])) -> (f32[8]) {
  %all-gather.3 = bf16[64,8]{1,0} all-gather(%part), channel_id=2
  %collective-permute-start = (f32[8]{0}, f32[8]{0}) collective-permute-start(%x), channel_id=3
  %collective-permute-done = f32[8]{0} collective-permute-done(%collective-permute-start)
  %fused = bf16[16,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %all-gather-start.4 = (bf16[8]{0}, bf16[64]{0}) all-gather-start(%x), channel_id=4
  %all-reduce.5 = (f32[8]{0}, f32[8]{0}) all-reduce(%x, %y), channel_id=5
  %use = f32[8]{0} add(%all-reduce.5, %all-gather.3)
}
"""


def test_collectives_are_counted_where_they_stand():
    found = scaling.collectives(_HLO)
    counts = {"all-gather": 2, "reduce-scatter": 1, "all-reduce": 1, "collective-permute": 1}
    assert found["collectives"] == counts
    assert found["asynchronous"] == counts | {"all-gather": 1, "reduce-scatter": 0, "all-reduce": 0}


def test_the_parameters_of_a_model_are_counted():
    sizes = scaling.Model(layers=3, width=64, heads=4, hidden=96)
    config = TransformerConfig(vocab=scaling.VOCAB, layers=3, width=64, heads=4, hidden=96)
    network = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    assert sizes.parameters == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network)))


def test_spans_that_lie_in_others_do_not_count_twice():
    assert start.union([(3.0, 2.0), (2.5, 1.0), (3.5, 1.0), (6.0, 0.5)]) == 3.0
    assert start.union([]) == 0


def test_a_command_is_told_by_what_its_time_goes_to(tmp_path):
    words = ["train", "--epochs", "1", "--no-report", "--run-dir", str(tmp_path / "made")]
    first, end = start.timed(words, tmp_path)
    assert first is not None
    assert 0 < first < end
    shutil.rmtree(tmp_path / "made")
    parts = start.parts_of(words, tmp_path)
    assert parts.pop("programs") > 5
    assert min(parts.values()) > 0
    assert set(parts) == set(start.PARTS)
