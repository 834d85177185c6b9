"""The report: its files, its page in a real browser, weights of other frameworks, and bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks.screenshot import opened
from sqs_jax import gated_linear
from sqs_jax.analysis import GLUWeights, load_weights, spectrum
from sqs_jax.analysis.cli import main
from sqs_jax.analysis.report import image_page
from sqs_jax.analysis.report.image_page import write_image_report
from sqs_jax.analysis.report.weights_page import write_weights_report
from sqs_jax.analysis.runs.compare import compare_runs
from sqs_jax.analysis.runs.load import load_run
from sqs_jax.train import ImageConfig, InputError, train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.images.dataset import Dataset
from tests.helpers import check_page, quiet, wrong

CONFIG = ImageConfig(epochs=30, width=32, hidden=32)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A trained run with its report."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train(CONFIG, folder, report=quiet)
    assert write_image_report(load_run(folder)) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Two bilinear runs of other seeds."""
    folders = [tmp_path_factory.mktemp("runs") / f"bilinear-{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        train(dataclasses.replace(CONFIG, gate="bilinear", seed=seed, epochs=5), folder, report=quiet)
    return folders


def requests(browser):
    """Addresses that the browser asked for."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def check_truncation_as_csv(browser, run_dir):
    csv = browser.execute_script("return csvOf(document.getElementById('plot-truncation').data)").splitlines()
    figures = json.loads((run_dir / "summary.json").read_text())["analysis"]["truncation"]
    rows = [line.split(",") for line in csv]
    assert rows[0] == ["series", "x", "y", "text"]
    assert [(int(k), float(r2)) for name, k, r2, _ in rows if name == "R²"] == list(
        zip(figures["k"], figures["r2"], strict=True)
    )


def test_the_page_in_a_real_browser(run_dir, browser, tmp_path):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    opened(browser, run_dir / "report.html")
    outside = [url for url in requests(browser) if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []

    def chosen():
        title = browser.find_element(By.ID, "detail-title").text
        return title, browser.execute_script("return document.getElementById('vector').toDataURL()")

    before = chosen()
    points = browser.find_elements(By.CSS_SELECTOR, "#plot-spectrum .scatterlayer .trace:first-child .point")
    assert len(points) == 32
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", points[0])
    target = 0 if "eigenvector 1," not in before[0] else 1
    ActionChains(browser).move_to_element(points[target]).pause(0.4).perform()
    hovered = chosen()
    assert f"eigenvector {target + 1}," in hovered[0]
    assert hovered != before
    assert hovered[1] != before[1]

    tab = browser.find_elements(By.CSS_SELECTOR, "#outputs button")[3]
    ActionChains(browser).move_to_element(tab).click().perform()
    clicked = chosen()[0]
    assert clicked.startswith("3: eigenvector")
    rank = int(clicked.split("eigenvector ")[1].split(",")[0])
    tab.send_keys(Keys.ARROW_RIGHT)
    assert f"3: eigenvector {rank + 1}," in chosen()[0]
    tab.send_keys(Keys.ARROW_DOWN)
    assert f"4: eigenvector {rank + 1}," in chosen()[0]
    liked = browser.find_elements(By.CSS_SELECTOR, "#liked canvas")
    assert len(liked) >= 2
    for image in browser.find_elements(By.CSS_SELECTOR, "canvas[role=img], .plot"):
        assert image.get_attribute("aria-label")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert f"{summary['analysis']['fidelity']['joint']['r2']:.4f}" in browser.find_element(By.ID, "cards").text

    check_page(browser, 19)
    check_truncation_as_csv(browser, run_dir)
    colors = []
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        colors.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colors[0] != colors[1]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_run_leaves_every_number_that_the_page_shows(run_dir):
    names = {"report.html", "spectrum.npz", "eigenvectors.png", "curves.png", "summary.json"}
    assert names <= {path.name for path in run_dir.iterdir()}
    assert [path.name for path in run_dir.glob(".*")] == [".lock"]
    assert (run_dir / "report.html").stat().st_size < 8e6
    for picture in ("eigenvectors.png", "curves.png"):
        with Image.open(run_dir / picture) as image:
            assert min(image.size) > 300
            colors = image.convert("RGB").getcolors(10**6)
            assert colors is not None
            assert len(colors) > 50
    page = (run_dir / "report.html").read_text()
    shown = json.loads(page.split('<script id="data" type="application/json">')[1].split("</script>")[0])
    summary = json.loads((run_dir / "summary.json").read_text())
    assert shown["analysis"] == summary["analysis"]
    assert shown["curves"] == [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    with np.load(run_dir / "spectrum.npz") as saved:
        np.testing.assert_allclose(shown["spectrum"]["values"], saved["values"], rtol=1e-5)
    assert {"versions", "device", "git"} <= set(summary["analysis"]["provenance"])


def test_the_spectrum_is_that_of_the_calibrated_network_of_the_last_checkpoint(run_dir):
    params = restore_params(run_dir / "checkpoints")
    layer = params["layers"][0] if 0 in params["layers"] else params["layers"]["0"]
    run = load_run(run_dir)
    x = np.asarray(run.data.test_images).reshape(360, 64) / np.float32(255)
    with np.load(run_dir / "spectrum.npz") as saved:
        values, vectors, gain, liked = (saved[name] for name in ("values", "vectors", "gain", "liked"))
    assert vectors.shape == (10, 32, 64)
    form = np.einsum("ok,nok->no", values, np.einsum("okd,nd->nok", vectors, x) ** 2)
    bilinear = gated_linear(x @ params["embed"], layer["w"], layer["v"], gate="bilinear") * jnp.asarray(gain)[None]
    np.testing.assert_allclose(form, bilinear @ params["head"], rtol=1e-3, atol=1e-3)
    y = gated_linear(x @ params["embed"], layer["w"], layer["v"]) @ params["head"]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["test"]["accuracy"] == pytest.approx(np.mean(y.argmax(1) == run.data.test_labels))
    assert summary["analysis"]["fidelity"]["joint"]["network_accuracy"] == pytest.approx(summary["test"]["accuracy"])
    assert summary["analysis"]["fidelity"]["joint"]["r2"] > 0.9
    response = (x @ vectors[4, 2]) ** 2
    np.testing.assert_array_equal(liked[4, 2], np.argsort(-response, kind="stable")[:8])


def test_load_weights_is_the_network(run_dir):
    weights = load_weights(run_dir)
    run = load_run(run_dir)
    x = jnp.asarray(np.asarray(run.data.test_images[:50]).reshape(50, 64), jnp.float32) / 255
    assert weights.embed is not None
    logits = gated_linear(x @ weights.embed, weights.w, weights.v) @ weights.out
    np.testing.assert_allclose(logits, run.model(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="`layer` is 1: a number from -1 to 0"):
        load_weights(run_dir, layer=1)
    with pytest.raises(InputError, match="holds no checkpoint of epoch 7"):
        load_weights(run_dir, epoch=7)


def test_deep_networks_with_everything(tmp_path):
    config = ImageConfig(
        epochs=2, layers=2, residual=True, width=16, hidden=16, bias=True, learnable=True, noise_prob=0.5
    )
    train(config, tmp_path / "deep", report=quiet)
    write_image_report(load_run(tmp_path / "deep"), method="output")
    analysis = json.loads((tmp_path / "deep" / "summary.json").read_text())["analysis"]
    assert len(analysis["layers"]) == 2
    assert analysis["linear_share"] < 1
    assert analysis["fidelity"]["joint"]["calibration_r2"] >= analysis["fidelity"]["output"]["calibration_r2"] - 1e-4
    with np.load(tmp_path / "deep" / "spectrum.npz") as saved:
        assert saved["vectors"].shape == (10, 17, 17)  # the hidden units and the constant
        assert saved["masks"].shape == (10, 16)
    for row in analysis["layers"]:
        assert row["output"] >= row["identity"]
        assert row["output"] <= 1


def test_a_network_without_embedding(tmp_path):
    direct = ImageConfig(epochs=2, width=0, hidden=8, gate="gelu", dtype="bfloat16", warmup=3, clip=1.0)
    train(direct, tmp_path / "direct", report=quiet)
    write_image_report(load_run(tmp_path / "direct"))
    with np.load(tmp_path / "direct" / "spectrum.npz") as saved:
        assert saved["vectors"].shape == (10, 16, 64)


def test_beside_other_runs(run_dir, others, tmp_path, capsys):
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    main(["report", str(copy), "--against", *map(str, others), "--method", "output"])
    comparison = json.loads((copy / "summary.json").read_text())["comparison"]
    assert comparison["names"] == ["sqs", "bilinear"]
    assert 0 < comparison["measures"]["overlap"]["ceiling"]["mean"][0] <= 1
    assert "Fewer than 5 seeds" in comparison["note"]
    assert f"--against {others[0]}" in (copy / "report.html").read_text().split("<footer>")[1]
    capsys.readouterr()

    main(["compare", str(run_dir), "--", *map(str, others), "--out-dir", str(tmp_path / "c")])
    assert "ceiling" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"comparison.json", "comparison.png"}
    with pytest.raises(SystemExit) as end:
        main(["compare", str(run_dir), "--out-dir", str(tmp_path / "c"), "--", *map(str, others)])
    assert end.value.code == 2
    assert "comparison.json exists already" in capsys.readouterr().err


def test_the_pages_of_a_comparison_and_of_weights_alone(run_dir, others, tmp_path, browser):
    from selenium.webdriver.common.by import By

    copy = shutil.copytree(run_dir, tmp_path / "copy")
    write_image_report(load_run(copy), comparison=compare_runs([run_dir], others, k=4))
    opened(browser, copy / "report.html")
    assert browser.find_element(By.ID, "comparison").is_displayed()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#plot-rank .scatterlayer .trace")) > 3
    rng = np.random.default_rng(0)
    w, v, out = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 4), (6, 4), (4, 3)))
    name = "</script><!--<script>"  # what a file's name can do to a page
    opened(browser, write_weights_report(GLUWeights(w, v, out), tmp_path / "read", name=name))
    assert browser.title == name
    assert not browser.find_element(By.ID, "fidelity").is_displayed()
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_network_that_is_too_little_trained_to_be_read_is_told(run_dir):
    figures = json.loads((run_dir / "summary.json").read_text())["analysis"]
    assert image_page._hint(figures) == ""
    rough = [[0.97] * len(row) for row in figures["smoothness"]]
    assert "as rough as noise (total variation 0.97" in image_page._hint(figures | {"smoothness": rough})


def test_a_network_that_says_nothing_gets_its_report(tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, gate="relu", width=0, hidden=2)
    train(config, tmp_path / "dead", report=quiet)
    run = load_run(tmp_path / "dead")
    run.model.head[...] = 0 * run.model.head[...]
    page = write_image_report(run).read_text()
    assert "there is nothing to explain" in page
    assert json.loads((tmp_path / "dead" / "summary.json").read_text())["analysis"]["fidelity"]["joint"]["r2"] is None


def test_colour_images(tmp_path, monkeypatch):
    # A data set of its own, in the cache's own format: nothing else of the code knows it is not CIFAR-10.
    rng = np.random.default_rng(0)
    labels = np.arange(400, dtype=np.int32) % 10
    images = rng.integers(0, 60, size=(400, 32, 32, 3)).astype(np.uint8)
    images[np.arange(400), labels, :, labels % 3] += 180
    classes = tuple(map(str, range(10)))
    dataset = Dataset("cifar10", classes, images[:300], labels[:300], images[300:], labels[300:])
    monkeypatch.setattr("sqs_jax.train.images.image_task.load", lambda *_, **__: dataset)
    monkeypatch.setattr("sqs_jax.train.images.dataset.load", lambda *_, **__: dataset)
    config = ImageConfig(data="cifar10", epochs=2, width=8, hidden=8, batch_size=100, validation=0)
    train(config, tmp_path / "run", report=quiet)
    page = write_image_report(load_run(tmp_path / "run")).read_text()
    shown = json.loads(page.split('<script id="data" type="application/json">')[1].split("</script>")[0])
    assert shown["pictures"]["shape"] == [32, 32, 3]
    assert shown["images"]["shape"] == [32, 32, 3]
    assert len(page) < 9e6


def test_runs_that_cannot_be_read_are_told(run_dir, others, tmp_path, capsys):
    assert "a run's folder, or --weights FILE, is needed" in wrong(main, ["report"], capsys)
    assert "is not the folder of a run" in wrong(main, ["report", tmp_path], capsys)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run_dir / "config.json", bare)
    assert "has no checkpoint" in wrong(main, ["report", bare], capsys)
    assert [path.name for path in bare.iterdir()] == ["config.json"]
    shutil.copytree(run_dir / "checkpoints", bare / "checkpoints")
    assert "is not finished: go on with" in wrong(main, ["report", bare], capsys)
    assert "--w belongs to --weights" in wrong(main, ["report", run_dir, "--w", "w"], capsys)
    assert "--out-dir belongs to --weights" in wrong(main, ["report", run_dir, "--out-dir", bare], capsys)
    twice = wrong(main, ["report", run_dir, "--against", run_dir, *others], capsys)
    assert "is in both groups" in twice
    assert "a second group is needed" in wrong(main, ["compare", run_dir], capsys)
    assert "1 network to compare with: 2 or more" in wrong(
        main, ["compare", run_dir, "--out-dir", bare, "--", others[0]], capsys
    )
    assert "`k` is 33" in wrong(main, ["compare", run_dir, "--k", "33", "--out-dir", bare, "--", *others], capsys)
    damaged = shutil.copytree(run_dir, tmp_path / "damaged")
    for text, why in (("{", "is damaged"), ("{}", "required field `test`")):
        (damaged / "summary.json").write_text(text)
        assert why in wrong(main, ["report", damaged], capsys)
        assert (damaged / "summary.json").read_text() == text
    foreign = shutil.copytree(others[0], tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    for change in ({"layers": 2}, {"bias": True}, {"width": 0}, {"hidden": 16}):
        (foreign / "config.json").write_text(json.dumps(config | change))
        assert "of another architecture" in wrong(main, ["report", foreign], capsys)
    (foreign / "config.json").write_text(json.dumps(config | {"data": "mnist"}))
    told = wrong(main, ["compare", run_dir, "--out-dir", bare, "--", foreign, others[1]], capsys)
    assert "`data` 'digits' and" in told
    assert "'mnist': no comparison" in told


def test_a_data_set_other_than_the_runs_is_told(run_dir, original_files, tmp_path, capsys):
    foreign = shutil.copytree(run_dir, tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | {"data": "mnist"}))
    before = (foreign / "summary.json").read_bytes()
    told = wrong(main, ["report", foreign, "--data-dir", original_files], capsys)
    assert "has 64 inputs, not the 784 of mnist" in told
    assert (foreign / "summary.json").read_bytes() == before


def test_the_command_runs_as_a_module(run_dir):
    done = subprocess.run([sys.executable, "-m", "analysis", "--help"], capture_output=True, text=True, check=True)
    assert "compare runs/sqs-* -- runs/bilinear-*" in done.stdout
    done = subprocess.run([sys.executable, "-m", "analysis", "reprot"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def spectrum_of(run_dir):
    """The values of the calibrated form of all outputs, by the numbers that lie beside the page."""
    with np.load(run_dir / "spectrum.npz") as saved:
        gain, kept = saved["gain"], saved["values"].shape[1]
    return np.asarray(spectrum(load_weights(run_dir), gain=jnp.asarray(gain), count=kept).values)
