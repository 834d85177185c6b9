"""`python -m train adopt` as users run it, on a real small model: its files, its figures, kills, and bad input."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sqs_jax.analysis.cli import main as analysis_main
from sqs_jax.analysis.runs import model_reading
from sqs_jax.analysis.streams import losses
from sqs_jax.messages import InputError
from sqs_jax.pretrained import load_pretrained
from sqs_jax.pretrained.windows import next_tokens
from sqs_jax.train import AdoptConfig, adopt
from sqs_jax.train.adoption.adoption_task import windows_of
from sqs_jax.train.cli.train import main
from sqs_jax.train.config_file import from_json
from tests.helpers import check_page, wrong

SMALL = ["--tokens", "4000", "--distil-steps", "16", "--steps", "4", "--evaluate-every", "2", "--batch-size", "1",
         "--context", "64", "--validation", "256", "--test", "512"]  # fmt: skip


def flags(stories, gate, *more):
    model, text = stories
    return ["adopt", str(model), "--gate", gate, "--text", str(text), *SMALL, *more]


@pytest.fixture(scope="module", autouse=True)
def short_fits():
    """Surrogates of few steps: how good they are is asked elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_reading, "default_steps", lambda model: 16)
        yield


@pytest.fixture(scope="module")
def adopted(stories, tmp_path_factory):
    """A whole adoption with a control and its report."""
    folder = tmp_path_factory.mktemp("adopted") / "run"
    main(flags(stories, "sqs", "--control", "--run-dir", str(folder)))
    return folder


def test_the_run_has_what_was_measured(adopted):
    summary = json.loads((adopted / "summary.json").read_text())
    assert list(summary["loss"]) == ["original", "swapped", "distilled", "tuned", "control"]
    assert summary["loss"]["distilled"] < summary["loss"]["swapped"] - 1
    assert [row["layer"] for row in summary["analysis"]["layers"]] == [0, 1, 2, 3, 4]
    assert all(row["distilled"] > 0.7 and row["after"]["affine"] > 0.5 for row in summary["analysis"]["layers"])
    rows = [json.loads(line) for line in (adopted / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    with np.load(adopted / "spectrum.npz") as file:
        assert file["values_before"].shape == file["values_after"].shape == (5, len(file["tokens"]), 4)


def test_the_losses_are_those_of_the_saved_models(adopted):
    summary = json.loads((adopted / "summary.json").read_text())
    config = from_json(adopted / "config.json")
    original, saved = load_pretrained(config.model), load_pretrained(adopted / "model")
    test = windows_of(original, config)[2]
    for model, name in ((original, "original"), (saved, "tuned")):
        assert losses(model, (test, next_tokens(test)), [{}])[0] == pytest.approx(summary["loss"][name], abs=1e-6)
    own, other = (load_file(path / "model.safetensors") for path in (Path(config.model), adopted / "model"))
    np.testing.assert_array_equal(own["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_the_page_in_a_real_browser(adopted, browser):
    browser.get(f"file://{adopted / 'report.html'}")
    find = browser.find_element
    assert "Signed Quadratic Shrink" in find("id", "verdict").text
    assert len(browser.find_elements("css selector", "#cards .card")) == 5
    assert len(browser.find_elements("css selector", "#adoption-table tbody tr")) == 5
    for side in ("before", "after"):
        assert len(browser.find_elements("css selector", f"#adoption-{side} .vector")) == 4
    title = find("id", "adoption-word").text
    find("css selector", "#adoption-words button:last-child").click()
    find("css selector", "#adoption-layers button:last-child").click()
    assert find("id", "adoption-word").text != title
    bars = browser.find_elements("css selector", "#plot-adoption-loss .bars .point")
    assert len(bars) == 5
    box = find("id", "plot-adoption-loss").rect
    assert all(bar.rect["x"] + bar.rect["width"] <= box["x"] + box["width"] for bar in bars)
    check_page(browser, 3)


def test_a_bilinear_model_is_read_exactly_and_sampled(stories, tmp_path, capsys):
    main(flags(stories, "bilinear", "--stage", "distil", "--inputs", "adopted", "--run-dir", str(tmp_path / "run")))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["loss"]) == ["original", "swapped", "distilled"]
    assert all(row["after"]["identity"] == pytest.approx(1, abs=1e-4) for row in summary["analysis"]["layers"])
    assert all(row["cosine"] > 0.3 for row in summary["analysis"]["layers"])
    assert summary["steps"] == 0
    capsys.readouterr()
    main(["sample", str(tmp_path / "run" / "model"), "--prompt", "once upon a time", "--tokens", "8"])
    assert capsys.readouterr().out.startswith("once upon a time")


def killed_when(command, path: Path) -> None:
    """Runs a command, and kills it without warning once a path is there."""
    process = subprocess.Popen([sys.executable, "-m", "train", *command], stdout=subprocess.DEVNULL)
    while not path.exists():
        assert process.poll() is None, f"it ended before {path} was there"
        time.sleep(0.02)
    process.kill()
    process.wait()


def test_a_run_that_is_killed_in_each_stage_resumes_to_the_bit(stories, tmp_path):
    options = flags(stories, "sqs", "--no-report", "--control")
    main([*options, "--run-dir", str(tmp_path / "whole")])
    run = tmp_path / "killed"
    resume = ["adopt", "--run-dir", str(run), "--resume", "--no-report"]
    killed_when([*options, "--run-dir", str(run)], run / "distilled" / "layer-01.npz")
    killed_when(resume, run / "distilled" / "layer-03.npz")
    killed_when(resume, run / "checkpoints" / "2")
    killed_when(resume, run / "control" / "checkpoints" / "2")
    main(resume)
    for name in (
        "metrics.jsonl",
        "model/model.safetensors",
        "model/config.json",
        "control/metrics.jsonl",
    ):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    loss = [json.loads((path / "summary.json").read_text())["loss"] for path in (run, tmp_path / "whole")]
    assert loss[0] == loss[1]
    assert not [path for path in run.rglob(".*.partial") if path.exists()]
    assert not (run / "distilled" / "streams").exists()


def test_a_signal_in_the_first_stage_says_how_to_go_on(stories, tmp_path):
    import signal

    run = tmp_path / "run"
    command = [sys.executable, "-m", "train", *flags(stories, "bilinear", "--no-report", "--run-dir", str(run))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (run / "distilled" / "layer-00.npz").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"adopt --run-dir {run} --resume" in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--gate", "sqss"], "did you mean 'sqs'"),
        (["--gate", "own"], "there is nothing to fit"),
        (["--blend", "10"], "it goes with `stage` tune"),
        (["--stage", "distil", "--control"], "without training"),
        (["--teacher", "1.5"], "from 0 to 1"),
        (["--batch-size", "3", "--accumulate", "2"], "it must divide"),
        (["--warmup", "4"], "fewer than the run's 4 steps"),
        (["--c", "0"], "`c` and `lam` above 0"),
        (["--p", "2"], "layers are fitted with `p` 1"),
        (["--dtype", "float16"], "float32, bfloat16"),
        (["--text", "nowhere.txt"], "cannot read"),
        (["--test", "100000000"], "that are held out"),
        (["--noise-std", "1"], "unrecognized"),
        (["--config", "pyproject.toml"], "damaged"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(stories, tmp_path, capsys, monkeypatch, change, message):
    with pytest.raises(SystemExit) as stop:
        main(flags(stories, "sqs", *change, "--run-dir", str(tmp_path / "run")))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_layer_is_named(stories, tmp_path, capsys):
    run = tmp_path / "run"
    main(flags(stories, "bilinear", "--stage", "distil", "--no-report", "--run-dir", str(run)))
    (run / "summary.json").unlink()
    (run / "distilled" / "layer-02.npz").write_bytes(b"damaged")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["adopt", "--run-dir", str(run), "--resume"])
    assert stop.value.code == 2
    assert "layer-02.npz is damaged" in capsys.readouterr().err


def test_another_text_is_another_run(stories, tmp_path):
    model, text = stories
    copy = tmp_path / "text.txt"
    copy.write_bytes(text.read_bytes()[:200_000])
    config = AdoptConfig(
        model=str(model), text=str(copy), gate="bilinear", stage="distil", tokens=2000, distil_steps=2, test=512,
        validation=256, context=64,
    )  # fmt: skip
    adopt(config, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    copy.write_bytes(text.read_bytes()[:100_000])
    with pytest.raises(InputError, match="begun with other data"):
        adopt(config, tmp_path / "run", resume=True)


def test_a_run_is_sampled_and_taken_for_nothing_else(adopted, capsys):
    main(["sample", str(adopted), "--prompt", "once upon a time", "--tokens", "8"])
    assert capsys.readouterr().out.startswith("once upon a time")
    assert "unknown field" in wrong(main, ["adopt", "--config", adopted / "model" / "config.json"], capsys)
    assert "adopt --help" in wrong(main, ["--run-dir", adopted, "--resume", "--width", "3"], capsys)
    assert "no --method" in wrong(analysis_main, ["report", adopted, "--method", "joint"], capsys)
