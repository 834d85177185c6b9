"""The report of weights from files of any framework, and of some outputs of many."""

import base64
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sqs_jax.analysis import GLUWeights, load_weights, spectrum
from sqs_jax.analysis.cli import main
from sqs_jax.analysis.report import page
from sqs_jax.analysis.report.weights_page import write_weights_report
from sqs_jax.train import ImageConfig, train
from sqs_jax.train.images.dataset import Dataset
from tests.helpers import quiet, wrong

CONFIG = ImageConfig(epochs=30, width=32, hidden=32)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_weights_of_any_framework(suffix, tmp_path):
    rng = np.random.default_rng(0)
    # As PyTorch has them: (outputs, inputs).
    arrays = {"up.weight": (20, 12), "gate.weight": (20, 12), "head.weight": (3, 20)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    path = tmp_path / f"layer.{suffix}"
    np.savez(path, **arrays) if suffix == "npz" else save_file(arrays, path)
    names = ["--w", "up.weight", "--v", "gate.weight", "--out", "head.weight", "--transpose"]
    main(["report", "--weights", str(path), *names, "--shape", "3", "4", "--out-dir", str(tmp_path / "read")])
    with np.load(tmp_path / "read" / "spectrum.npz") as saved:
        form = np.einsum("ok,okd,oke->ode", saved["values"], saved["vectors"], saved["vectors"])
    expected = np.einsum("hi,oh,hj->oij", *(arrays[name] for name in ("up.weight", "head.weight", "gate.weight")))
    np.testing.assert_allclose(form, (expected + expected.transpose(0, 2, 1)) / 2, rtol=1e-3, atol=1e-3)


def test_bad_weight_files_are_told_and_nothing_is_written(tmp_path, capsys):
    good = {"w": np.ones((4, 3)), "v": np.ones((4, 3)), "out": np.ones((3, 2))}
    out = tmp_path / "out"

    def told(arrays, *flags):
        np.savez(tmp_path / "a.npz", **arrays)
        names = flags or ("--w", "w", "--v", "v", "--out", "out")
        return wrong(main, ["report", "--weights", tmp_path / "a.npz", *names, "--out-dir", out], capsys)

    assert "`out` holds numbers that are NaN" in told(good | {"out": np.full((3, 2), np.nan)})
    assert "`w` and `v` have shapes (4, 3) and (4, 2)" in told(good | {"v": np.ones((4, 2))})
    assert "has no array 'gate' for `v`: it has out, v, w" in told(good, "--w", "w", "--v", "gate")
    assert "--weights needs --v" in told(good, "--w", "w")
    for shape in (("3", "3"), ("-2", "-2"), ("2", "1", "2")):
        assert "`shape` is (" in told(good, "--w", "w", "--v", "v", "--shape", *shape)
    for name, array in (("w", np.float32(1)), ("w", np.ones((4, 0))), ("w", np.ones((4, 3), complex))):
        assert "`w`" in told(good | {name: array}, "--w", "w", "--v", "v")
    assert "`out` has shape (3, 0)" in told(good | {"out": np.ones((3, 0))})
    (tmp_path / "b.safetensors").write_bytes(b"no weights")
    assert "cannot be read" in wrong(
        main, ["report", "--weights", tmp_path / "b.safetensors", "--w", "w", "--v", "v"], capsys
    )
    assert "no such file" in wrong(main, ["report", "--weights", tmp_path / "c.npz", "--w", "w", "--v", "v"], capsys)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))
    out.mkdir()
    (out / "mine").touch()
    np.savez(tmp_path / "a.npz", **good)
    taken = ["report", "--weights", tmp_path / "a.npz", "--w", "w", "--v", "v", "--out", "out", "--out-dir", out]
    assert "something is there already" in wrong(main, taken, capsys)
    assert "--method goes with --inputs" in wrong(main, [*taken, "--method", "joint"], capsys)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_weights_alone_in_python(tmp_path):
    rng = np.random.default_rng(0)
    w, v = (jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    page = write_weights_report(GLUWeights(w, v, jnp.eye(4)), tmp_path / "out", name="a <layer>", outputs=(3, 1))
    assert page.read_text().count("<title>a &lt;layer&gt;</title>") == 1
    with np.load(tmp_path / "out" / "spectrum.npz") as saved:
        form = np.einsum("k,kd,ke->de", saved["values"][0], saved["vectors"][0], saved["vectors"][0])
    np.testing.assert_allclose(form, (np.outer(w[:, 3], v[:, 3]) + np.outer(v[:, 3], w[:, 3])) / 2, atol=1e-5)
    with pytest.raises(ValueError, match="`outputs` has 4: numbers from 0 to 3"):
        write_weights_report(GLUWeights(w, v, jnp.eye(4)), tmp_path / "b", name="", outputs=(0, 4))


def test_of_many_classes_some_are_shown_and_others_on_demand(tmp_path, monkeypatch, capsys):
    rng, count = np.random.default_rng(0), 70
    labels = np.concatenate([np.arange(count)] * 20).astype(np.int32)
    images = (np.abs(rng.normal(size=(count, 6, 6)))[labels] * 60 + rng.integers(0, 40, (len(labels), 6, 6))).astype(
        "u1"
    )
    names = tuple(f"class $_{{{i}" + "$" for i in range(count))  # no formula, though it begins like one
    planted = Dataset("digits", names, images, labels, images[:700], labels[:700])
    for module in ("image_task", "dataset"):
        monkeypatch.setattr(f"sqs_jax.train.images.{module}.load", lambda *_, **__: planted)
    run_dir = tmp_path / "run"
    train(ImageConfig(epochs=3, width=24, hidden=24), run_dir, report=quiet)
    for flags, expected in (([], range(64)), (["--outputs", "69", "3"], (69, 3))):
        main(["report", str(run_dir), *flags])
        page = (run_dir / "report.html").read_text()
        shown = json.loads(page.split('<script id="data" type="application/json">')[1].split("</script>")[0])
        assert shown["outputs"] == [names[i] for i in expected]
        assert f"Shown are {len(expected)} of 70 classes, others by --outputs" in page
        figures = json.loads((run_dir / "summary.json").read_text())["analysis"]
        assert figures["outputs"] == list(expected)
        assert len(figures["eigenvectors"]["selectivity"]) == len(expected)
        # The fidelity is that of the whole network: its accuracy that of all classes.
        test = json.loads((run_dir / "summary.json").read_text())["test"]
        assert figures["fidelity"]["joint"]["network_accuracy"] == pytest.approx(test["accuracy"])
        with np.load(run_dir / "spectrum.npz") as saved:
            assert saved["outputs"].tolist() == list(expected)
            values = saved["values"]
        gain = figures["method"]
        assert gain == "joint"
    whole = spectrum_of(run_dir)
    np.testing.assert_allclose(np.abs(values), np.abs(whole[[69, 3]]), rtol=1e-3, atol=1e-3)
    for outputs, message in (("70", "`outputs` has 70: numbers from 0 to 69"), ("3 3", "each of them once")):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["report", str(run_dir), "--outputs", *outputs.split()])
        assert message in capsys.readouterr().err


def spectrum_of(run_dir):
    """The values of the calibrated form of all outputs, by the numbers that lie beside the page."""
    with np.load(run_dir / "spectrum.npz") as saved:
        gain, kept = saved["gain"], saved["values"].shape[1]
    return np.asarray(spectrum(load_weights(run_dir), gain=jnp.asarray(gain), count=kept).values)


@pytest.mark.parametrize("shape", [(10, 784, 784), (64, 3072, 3072), (3, 5, 16), (1, 1, 10**7)])
def test_a_page_has_as_many_pictures_as_it_has_room_for(shape):
    outputs, k, d = shape
    count = page.picture_count(shape)
    assert 1 <= count <= min(k, 24)
    assert count == 1 or outputs * count * d <= 800_000
    if count < min(k, 24):
        assert outputs * (count + 1) * d > 800_000
    if outputs * k * d < 10**6:
        pictures = page.pictures(np.ones(shape), (1, d))
        assert pictures["count"] == count
        assert len(base64.b64decode(pictures["data"])) == outputs * count * d
