"""Weights from files of other frameworks: what is read, what is refused, and what strangers wrote in them."""

import json
import struct
import warnings

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sqs_jax.analysis import read_weights
from sqs_jax.analysis.cli import main

RNG = np.random.default_rng(0)
W, V, OUT = (RNG.normal(size=shape).astype(np.float32) for shape in ((6, 4), (6, 4), (4, 3)))
NAMES = {"w": "up", "v": "gate", "out": "down"}


def write_raw(path, arrays):
    """A .safetensors file by hand: {name: (dtype, array)}."""
    header, content = {}, b""
    for name, (dtype, array) in arrays.items():
        end = len(content) + array.nbytes
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(content), end]}
        content += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def assert_read(weights, rtol=1e-7):
    for result, expected in zip(weights[:3], (W, V, OUT), strict=True):
        np.testing.assert_allclose(result, expected, rtol=rtol, atol=rtol)


def test_a_fused_matrix_is_both_branches_the_gate_first(tmp_path):
    save_file(
        {"mlp.gate_up_proj.weight": np.concatenate([V, W], axis=1).T.copy(), "down": OUT.T.copy()},
        tmp_path / "a.safetensors",
    )
    names = {"gate_up": "mlp.gate_up_proj.weight", "out": "down"}
    assert_read(read_weights(tmp_path / "a.safetensors", names, transpose=True))
    with pytest.raises(ValueError, match="beside `w` or `v`"):
        read_weights(tmp_path / "a.safetensors", names | {"w": "down"}, transpose=True)
    np.savez(tmp_path / "odd.npz", both=np.ones((6, 5), np.float32))
    with pytest.raises(ValueError, match=r"has shape \(6, 5\): \(d, 2·h\) is needed"):
        read_weights(tmp_path / "odd.npz", {"gate_up": "both"})


@pytest.mark.parametrize("place", ["", "model.safetensors.index.json"])
def test_shards_are_read_by_their_folder_and_by_their_index(place, tmp_path):
    save_file({"up": W, "gate": np.zeros_like(V)}, tmp_path / "model-1.safetensors")
    save_file({"gate": V, "down": OUT}, tmp_path / "model-2.safetensors")
    index = {"up": "model-1.safetensors", "gate": "model-2.safetensors", "down": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_read(read_weights(tmp_path / place, NAMES))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"up": "../model-1.safetensors"}}))
    with pytest.raises(ValueError, match="names the shard"):
        read_weights(tmp_path, NAMES)
    (tmp_path / "model.safetensors.index.json").write_text("[")
    with pytest.raises(ValueError, match="is damaged"):
        read_weights(tmp_path, NAMES)


def test_a_folder_of_one_file_needs_no_index(tmp_path):
    with pytest.raises(ValueError, match=r"it has no \.safetensors file"):
        read_weights(tmp_path, NAMES)
    save_file({"up": W, "gate": V, "down": OUT}, tmp_path / "model.safetensors")
    assert_read(read_weights(tmp_path, NAMES))


@pytest.mark.parametrize(
    ("dtype", "kind", "rtol"),
    [
        ("F8_E4M3", ml_dtypes.float8_e4m3fn, 0.07),
        ("F8_E5M2", ml_dtypes.float8_e5m2, 0.14),
        ("BF16", ml_dtypes.bfloat16, 4e-3),
        ("F16", np.float16, 1e-3),
    ],
)
def test_small_floating_point_numbers_are_widened(dtype, kind, rtol, tmp_path):
    arrays = {"up": W, "gate": V, "down": OUT}
    write_raw(tmp_path / "a.safetensors", {name: (dtype, array.astype(kind)) for name, array in arrays.items()})
    assert_read(read_weights(tmp_path / "a.safetensors", NAMES), rtol)
    assert read_weights(tmp_path / "a.safetensors", NAMES).w.dtype == np.float32


def test_quantised_weights_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    small = ml_dtypes.float8_e4m3fn
    parts = {"m.weight": ("F8_E4M3", W.astype(small)), "m.weight_scale_inv": ("F32", np.ones(1, np.float32))}
    write_raw(path, parts | {"gate": ("F32", V)})
    with pytest.raises(ValueError, match=r"is quantised: 'm\.weight_scale_inv' has to be"):
        read_weights(path, {"w": "m.weight", "v": "gate"}, transpose=True)
    for kind in (np.int8, np.int32, np.complex64, "m8[s]", bool):
        array = W.astype(kind) if kind != "m8[s]" else W.astype(np.int64).view("m8[s]")
        np.savez(tmp_path / "a.npz", up=array, gate=V)
        with pytest.raises(ValueError, match=r"'up' for `w` is of dtype .*: real floating point is needed"):
            read_weights(tmp_path / "a.npz", {"w": "up", "v": "gate"})


def test_names_as_pytorch_has_them_are_doubted_without_transpose(tmp_path, capsys):
    # A LLaMA's: up and gate (h, d), down (d, h). The wrong way round they fit as well.
    arrays = {"up.weight": W.T.copy(), "gate.weight": V.T.copy(), "down.weight": RNG.normal(size=(6, 4)).astype("f4")}
    save_file(arrays, tmp_path / "a.safetensors")
    names = {"w": "up.weight", "v": "gate.weight", "out": "down.weight"}
    with pytest.warns(UserWarning, match="need `transpose`"):
        wrong = read_weights(tmp_path / "a.safetensors", names)
    assert wrong.w.shape == (4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_weights(tmp_path / "a.safetensors", names, transpose=True).w.shape == (6, 4)
    flags = ["--w", "up.weight", "--v", "gate.weight", "--out", "down.weight"]
    main(["report", "--weights", str(tmp_path / "a.safetensors"), *flags, "--out-dir", str(tmp_path / "r")])
    error = capsys.readouterr().err
    assert error.startswith("warning: up.weight has a name as PyTorch's")
    assert "--transpose" in error
    assert error.count("\n") == 1


def test_hostile_names_and_files_end_in_one_harmless_line(tmp_path, capsys):
    names = {f"\x1b[2J\r\n{'x' * 5000}{i}": ("F32", W) for i in range(30)}
    write_raw(tmp_path / "a.safetensors", names)
    with pytest.raises(SystemExit):
        main(["report", "--weights", str(tmp_path / "a.safetensors"), "--w", "\x1b[31m" + "y" * 10**5, "--v", "b"])
    error = capsys.readouterr().err
    assert error[:-1].isprintable()
    assert len(error) < 1300
    np.save(tmp_path / "b.npy", W)
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"as an \.npy file does"):
        read_weights(tmp_path / "b.npz", NAMES)
    np.savez(tmp_path / "c.npz", up=np.array([{"a": 1}], object), gate=V)
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(tmp_path / "c.npz", {"w": "up", "v": "gate"})


def test_the_parts_that_are_needed_are_named():
    for names, message in (({"w": "a"}, "lacks 'v'"), ({"v": "a"}, "lacks 'w'"), ({"x": "a"}, "`names` has 'x'")):
        with pytest.raises(ValueError, match=message):
            read_weights("a.npz", names)


def test_scales_in_another_shard_are_seen_and_shards_that_are_not_needed_may_be_missing(tmp_path):
    small = ml_dtypes.float8_e4m3fn
    write_raw(tmp_path / "m-1.safetensors", {"a.weight": ("F8_E4M3", W.astype(small)), "b": ("F32", V)})
    index = {"a.weight": "m-1.safetensors", "b": "m-1.safetensors", "a.weight_scale_inv": "m-2.safetensors"}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ValueError, match="has to be applied"):
        read_weights(tmp_path, {"w": "a.weight", "v": "b"}, transpose=True)
    assert read_weights(tmp_path, {"w": "b", "v": "b"}).w.shape == (6, 4)
