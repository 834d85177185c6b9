"""A layer of any framework with its recorded inputs: gains, fidelity and what eigenvectors like, and wrong input."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from sqs_jax.analysis import read_recorded, read_weights, write_weights_report
from sqs_jax.analysis.cli import main
from tests.helpers import check_page, wrong

D, H, OUTPUTS = 12, 20, 4
NAMES = ["--w", "up.weight", "--v", "gate.weight", "--out", "down.weight", "--transpose"]


@pytest.fixture
def layer(tmp_path):
    """A layer as PyTorch has it, (outputs, inputs), and what it read."""
    rng = np.random.default_rng(0)
    arrays = {"up.weight": (H, D), "gate.weight": (H, D), "down.weight": (OUTPUTS, H)}
    arrays = {name: (rng.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32) for name, shape in arrays.items()}
    arrays["norm.weight"] = (0.5 + rng.random(D)).astype(np.float32)
    arrays["gate_up.weight"] = np.concatenate([arrays["gate.weight"], arrays["up.weight"]])
    save_file(arrays, tmp_path / "layer.safetensors")
    x = (rng.normal(size=(2000, D)) @ rng.normal(size=(D, D)) / np.sqrt(D)).astype(np.float32)
    np.save(tmp_path / "acts.npy", x)
    return tmp_path, arrays, x


def branches(arrays, x):
    a, u = (x.astype(np.float64) @ arrays[name].T.astype(np.float64) for name in ("up.weight", "gate.weight"))
    return a, u, arrays["down.weight"].T.astype(np.float64)


def report(folder, *flags):
    main(["report", "--weights", str(folder / "layer.safetensors"), *NAMES, "--inputs", str(folder / "acts.npy"),
          "--out-dir", str(folder / "read"), *flags])  # fmt: skip
    with np.load(folder / "read" / "spectrum.npz") as saved:
        return json.loads((folder / "read" / "summary.json").read_text())["analysis"], dict(saved)


def test_r2_is_that_of_held_out_inputs(layer):
    folder, arrays, x = layer
    figures, saved = report(folder, "--gate", "silu")
    assert figures["method"] == "joint_affine"
    assert (figures["calibration_samples"], figures["test_samples"]) == (1600, 400)
    rows = np.sort(np.random.default_rng(0).permutation(2000)[:400])
    train = np.setdiff1d(np.arange(2000), rows)
    a, u, out = branches(arrays, x)
    y = (a * u / (1 + np.exp(-u))) @ out
    spread = ((y[rows] - y[rows].mean(0)) ** 2).sum()
    # In float64, by NumPy: the gate as the identity, and a linear map and gains by least squares.
    plain = (a * u) @ out
    residual = y[rows] - plain[rows] - (y - plain)[train].mean(0)
    assert figures["fidelity"]["identity"]["r2"] == pytest.approx(1 - (residual**2).sum() / spread, abs=1e-5)
    columns = [np.outer((a * u)[:, unit], out[unit]).ravel() for unit in range(H)]
    linear = [np.outer(x[:, i], np.eye(OUTPUTS)[o]).ravel() for i in range(D) for o in range(OUTPUTS)]
    constant = [np.tile(np.eye(OUTPUTS)[o], len(x)) for o in range(OUTPUTS)]
    design = np.stack([*columns, *linear, *constant], axis=1).reshape(len(x), OUTPUTS, -1)
    found = np.linalg.lstsq(design[train].reshape(-1, design.shape[2]), y[train].ravel())[0]
    residual = y[rows] - design[rows] @ found
    assert figures["fidelity"]["joint_affine"]["r2"] == pytest.approx(1 - (residual**2).sum() / spread, abs=1e-4)
    assert figures["fidelity"]["joint_affine"]["r2"] > figures["fidelity"]["identity"]["r2"]
    assert figures["truncation"]["r2"][-1] == pytest.approx(figures["fidelity"]["joint_affine"]["r2"], abs=1e-3)
    # The inputs that an eigenvector likes are rows of the file, held-out ones.
    response = (x[rows] @ saved["vectors"][1, 0, :D]) ** 2
    assert saved["liked"][1, 0].tolist() == rows[np.argsort(-response)[:8]].tolist()


def test_a_bilinear_layer_is_read_exactly_in_one_matrix(layer):
    folder, *_ = layer
    flags = ["--gate-up", "gate_up.weight", "--out", "down.weight", "--transpose", "--gate", "bilinear"]
    main(["report", "--weights", str(folder / "layer.safetensors"), *flags, "--inputs", str(folder / "acts.npy"),
          "--out-dir", str(folder / "read")])  # fmt: skip
    figures = json.loads((folder / "read" / "summary.json").read_text())["analysis"]
    assert figures["method"] == "joint"
    assert figures["fidelity"]["identity"]["r2"] == pytest.approx(1, abs=1e-6)


def test_with_labels_it_is_read_as_a_classifier(layer):
    folder, arrays, x = layer
    a, u, out = branches(arrays, x)
    labels = ((a * np.maximum(u, 0)) @ out).argmax(1)
    np.save(folder / "labels.npy", labels)
    figures, _ = report(folder, "--gate", "relu", "--labels", str(folder / "labels.npy"), "--shape", "3", "4")
    row = figures["fidelity"]["joint_affine"]
    assert row["network_accuracy"] == 1
    assert row["agreement"] == row["accuracy"] > 0.7
    assert len(figures["eigenvectors"]["selectivity"]) == OUTPUTS
    assert "own class for" in (folder / "read" / "report.html").read_text()


def test_outputs_in_another_order_keep_their_names(layer):
    folder, *_ = layer
    _, saved = report(folder, "--gate", "bilinear", "--outputs", "1", "0", "3", "2")
    (folder / "read").rename(folder / "other")
    _, natural = report(folder, "--gate", "bilinear")
    assert saved["outputs"].tolist() == [1, 0, 3, 2]
    np.testing.assert_allclose(saved["values"], natural["values"][[1, 0, 3, 2]], rtol=1e-5)


def test_gate_and_inputs_go_together(layer):
    folder, *_ = layer
    weights = read_weights(folder / "layer.safetensors", {"gate_up": "gate_up.weight"}, transpose=True)
    recorded = read_recorded(folder / "acts.npy", weights)
    for changes in ({"recorded": recorded}, {"gate": "silu"}, {"method": "joint"}):
        with pytest.raises(ValueError, match="it goes with `recorded`"):
            write_weights_report(weights, folder / "read", name="layer", **changes)


def test_a_norm_is_folded_in(layer):
    folder, arrays, _ = layer
    flags = ["--gate", "silu", "--method", "identity"]
    scaled, saved = report(folder, *flags, "--norm", "norm.weight")
    form = np.einsum("ok,okd,oke->ode", saved["values"], saved["vectors"], saved["vectors"])
    (folder / "read").rename(folder / "folded")
    plain, saved = report(folder, *flags)
    other = np.einsum("ok,okd,oke->ode", saved["values"], saved["vectors"], saved["vectors"])
    scale = arrays["norm.weight"]
    np.testing.assert_allclose(form, other * scale[:, None] * scale[None], rtol=1e-4, atol=1e-5)
    for name, row in plain["fidelity"].items():
        assert scaled["fidelity"][name]["r2"] == pytest.approx(row["r2"], abs=1e-4), name


def test_inputs_that_hardly_vary_and_gains_of_few_samples_are_named(layer):
    folder, arrays, x = layer
    page = folder / "read" / "report.html"
    report(folder, "--gate", "silu")
    assert "one matrix and a linear part for each output explain" in page.read_text()
    assert "hardly vary" not in page.read_text()
    assert "too few for so many gains" not in page.read_text()
    page.parent.rename(folder / "good")
    still = np.concatenate([np.zeros_like(x[:, :2]), x[:, 2:]], axis=1)
    heavy = {name: arrays[name] * np.where(np.arange(D) < 2, 30, 1)[None] for name in ("up.weight", "gate.weight")}
    save_file(
        {name: array.astype(np.float32) for name, array in (arrays | heavy).items()}, folder / "layer.safetensors"
    )
    np.save(folder / "acts.npy", still)
    report(folder, "--gate", "silu")
    assert "2 of the 12 inputs hardly vary, and the leading eigenvectors lie along them" in page.read_text()
    page.parent.rename(folder / "still")
    save_file(arrays, folder / "layer.safetensors")
    np.save(folder / "acts.npy", x[:40])
    figures, _ = report(folder, "--gate", "silu")
    row = figures["fidelity"]["joint_affine"]
    assert row["calibration_r2"] > row["r2"] + 0.02
    assert f"On the 32 samples that the gains were fitted on, R² is {row['calibration_r2']:.3f}" in page.read_text()


def test_the_page_without_classes(layer, browser):
    folder, *_ = layer
    report(folder, "--gate", "gelu")
    browser.get(f"file://{folder / 'read' / 'report.html'}")
    find = browser.find_element
    assert find("id", "plot-truncation").is_displayed()
    assert not find("id", "plot-ablation").is_displayed()
    assert "by row: " in find("id", "detail-figures").text
    heads = [head.text for head in browser.find_elements("css selector", "#fidelity-table th")]
    assert heads == ["gains γ", "R² of the outputs", "R², calibration", "range of γ"]
    check_page(browser, 7)


def test_matrices_that_stand_as_pytorch_has_them_are_named(layer, capsys):
    folder, *_ = layer
    line = ["report", "--weights", str(folder / "layer.safetensors"), *NAMES[:-1], "--out-dir", str(folder / "read")]
    assert "(12, outputs) is needed; matrices (outputs, inputs) need `transpose`" in wrong(main, line, capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--inputs", "wide.npy", "--gate", "silu"], "wide.npy is float32 (30, 13): floating point (n, 12) is needed"),
        (["--inputs", "whole.npy", "--gate", "silu"], "whole.npy is int64 (30, 12): floating point"),
        (["--inputs", "nan.npy", "--gate", "silu"], "nan.npy holds numbers that are NaN or infinite"),
        (["--inputs", "few.npy", "--gate", "silu"], "few.npy has 5 inputs: 20 or more are needed"),
        (["--inputs", "nowhere.npy", "--gate", "silu"], "nowhere.npy cannot be read"),
        (["--inputs", "acts.npy", "--gate", "swish"], "--gate is 'swish'"),
        (["--inputs", "acts.npy"], "--inputs goes with --gate"),
        (["--gate", "silu"], "--gate goes with --inputs"),
        (["--inputs", "acts.npy", "--gate", "silu", "--labels", "few.npy"], "2000 whole numbers are needed"),
        (["--inputs", "acts.npy", "--gate", "silu", "--labels", "high.npy"], "0 to 3, the outputs, are needed"),
        (["--inputs", "acts.npy", "--gate", "silu", "--labels", "same.npy"], "`outputs` has 0: no input of that class"),
        (
            ["--inputs", "acts.npy", "--gate", "silu", "--labels", "same.npy", "--outputs", "1"],
            "2 classes or more are needed",
        ),
        (["--inputs", "acts.npy", "--gate", "silu", "--norm", "up.weight"], "for `norm` has shape (12, 20)"),
    ],
)
def test_wrong_input_is_one_line(flags, message, layer, monkeypatch, capsys):
    folder, _, x = layer
    monkeypatch.chdir(folder)
    high = np.full(2000, 4)
    files = {
        "wide": np.ones((30, D + 1), np.float32),
        "whole": np.ones((30, D), int),
        "few": x[:5],
        "high": high,
        "same": high - 1,
    }
    for name, array in (files | {"nan": np.where(np.arange(2000)[:, None] == 7, np.nan, x)}).items():
        np.save(folder / f"{name}.npy", array)
    error = wrong(main, ["report", "--weights", "layer.safetensors", *NAMES, *flags, "--out-dir", "read"], capsys)
    assert message in error
    assert not (folder / "read").exists()
