"""Runs that go on: beyond their end, with both cosines, killed on the way, and from the weights of others."""

import json
import shutil

import jax
import numpy as np
import pytest

from sqs_jax.analysis.cli import main as analysis_main
from sqs_jax.analysis.report.language_page import write_language_report
from sqs_jax.train import ImageConfig, TextConfig, train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.cli.train import main
from sqs_jax.train.images.dataset import load
from sqs_jax.train.images.image_task import steps_per_epoch
from sqs_jax.train.optimizer import learning_rate
from sqs_jax.train.run_folder import RunFolder
from tests.helpers import quiet, trained, wrong

SHORT = ImageConfig(width=8, hidden=8, epochs=4, save_every=1)
TEXT = TextConfig(width=16, heads=2, layers=1, context=32, vocab=300, steps=6, warmup=2, evaluate_every=4, samples=0)


def rows(folder):
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return trained(SHORT, tmp_path_factory.mktemp("short") / "run")


@pytest.fixture
def copy(short, tmp_path):
    return shutil.copytree(short, tmp_path / "run")


def rates(steps_of, config, epochs):
    schedule = learning_rate(config, steps_of * config.epochs)
    return [float(schedule(steps_of * epoch - 1)) for epoch in epochs]


@pytest.mark.parametrize("restart", [False, True])
def test_a_finished_run_has_more_epochs(copy, restart, capsys):
    before = rows(copy)
    summary = (copy / "summary.json").read_bytes()
    flags = ["--run-dir", str(copy), "--resume", "--epochs", "8", "--no-report"]
    main([*flags, *(["--restart"] if restart else [])])
    out = capsys.readouterr().out
    assert ("begins again at 4" if restart else "is stretched") in out
    after = rows(copy)
    assert after[:4] == before
    config = ImageConfig(**SHORT.__dict__ | {"epochs": 8, "restarts": (4,) if restart else ()})
    assert json.loads((copy / "config.json").read_text())["restarts"] == list(config.restarts)
    steps = steps_per_epoch(config, load("digits"))
    found = [row["learning_rate"] for row in after[4:]]
    np.testing.assert_allclose(found, rates(steps, config, range(5, 9)), rtol=1e-5)
    assert found[0] > 0.3 * SHORT.lr
    assert found[-1] < 0.01 * SHORT.lr
    assert json.loads((copy / "summary.json").read_text())["epochs"] == 8
    assert (copy / "earlier" / "4" / "summary.json").read_bytes() == summary
    main([*flags[:3]])
    assert "finished before; more than its 8 --epochs would make it longer" in capsys.readouterr().out
    words = "begun again" if restart else "stretched"
    assert f"8 epochs, continued after 4 with the cosine {words}, with noise" in (copy / "report.html").read_text()


def test_a_cosine_begins_again_from_its_peak():
    config = ImageConfig(epochs=10, warmup=2, lr=1.0, restarts=(4, 7))
    schedule = learning_rate(config, 100)
    values = np.array([float(schedule(step)) for step in range(100)])
    alone = learning_rate(ImageConfig(epochs=3, warmup=2, lr=1.0), 30)
    np.testing.assert_allclose(values[40:70], [float(alone(step)) for step in range(30)], atol=1e-6)
    np.testing.assert_allclose(values[[0, 2, 40, 42, 70, 72]], [0, 1, 0, 1, 0, 1], atol=1e-6)


def test_one_that_is_stopped_on_the_way_ends_the_same(short, tmp_path):
    longer = ImageConfig(**SHORT.__dict__ | {"epochs": 8, "restarts": (4,)})
    whole, stopped = (shutil.copytree(short, tmp_path / name) for name in ("whole", "stopped"))
    train(longer, whole, resume=True, report=quiet)

    def stop(row, *_):
        if row["epoch"] == 6:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(longer, stopped, resume=True, report=stop)
    assert not (stopped / "summary.json").exists()
    train(longer, stopped, resume=True, report=quiet)
    assert rows(stopped) == rows(whole)
    for name in ("metrics.jsonl", "config.json"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_on_text_has_more_steps(tmp_path):
    run = trained(TEXT, tmp_path / "run")
    assert [row["step"] for row in rows(run)] == [4, 6]
    train(TextConfig(**TEXT.__dict__ | {"steps": 11}), run, resume=True, report=quiet)
    assert [row["step"] for row in rows(run)] == [4, 6, 8, 11]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "3"], "`epochs` is 3, but the run"),
        (["--epochs", "8", "--hidden", "9"], "`hidden` is 9, but the run"),
        (["--restart"], "--restart goes with --resume and more --epochs"),
        (["--restarts", "2"], "`restarts` is (2,), but the run"),
        (["--epochs", "8", "--restarts", "2"], "may have others from there on"),
        (["--epochs", "8", "--restarts", "9"], "`restarts` is (9,): rising numbers from 1 to 7 are needed"),
    ],
)
def test_no_other_change_is_taken(flags, message, copy, capsys):
    before = sorted(path.name for path in copy.rglob("*"))
    assert message in wrong(main, ["--run-dir", str(copy), "--resume", *flags], capsys)
    assert sorted(path.name for path in copy.rglob("*")) == before


def test_a_run_begins_with_the_weights_of_another(short, tmp_path):
    config = ImageConfig(**SHORT.__dict__ | {"epochs": 1, "lr": 1e-12, "init_from": str(short), "seed": 5})
    run = trained(config, tmp_path / "run")
    own, other = (restore_params(RunFolder(path).checkpoints) for path in (run, short))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), own, other)
    losses = [json.loads((path / "summary.json").read_text())["test"]["loss"] for path in (run, short)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_layers_keep_their_places(tmp_path):
    config = ImageConfig(width=8, hidden=8, layers=11, epochs=1, lr=1e-12)
    first = trained(config, tmp_path / "first")
    second = trained(ImageConfig(**config.__dict__ | {"seed": 1, "init_from": str(first)}), tmp_path / "second")
    own, other = (restore_params(RunFolder(path).checkpoints) for path in (second, first))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), own, other)


def test_a_run_on_text_begins_with_another_and_its_tokenizer(tmp_path):
    first = trained(TEXT, tmp_path / "first")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"This is story {i}, and it is long enough to be read." for i in range(200)))
    more = {"data": "text", "text": str(text), "init_from": str(first), "lr": 1e-12, "vocab": 4096}
    second = trained(TextConfig(**TEXT.__dict__ | more), tmp_path / "second")
    assert (second / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    own, other = (restore_params(RunFolder(path).checkpoints) for path in (second, first))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), own, other)
    first.rename(tmp_path / "elsewhere")  # to be read, the second needs it no more
    assert write_language_report(second).is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--width", "16"], "is of another architecture"),
        (["--init-from", "nowhere"], "nowhere is not the folder of a run"),
        (["stories"], "a run on text is needed"),
    ],
)
def test_what_it_cannot_begin_with_is_a_line(flags, message, short, tmp_path, capsys):
    line = ["--init-from", str(short), "--hidden", "8", "--width", "8", *flags]
    if "stories" in flags:
        line = ["stories", "--init-from", str(short)]
    assert message in wrong(main, [*line, "--run-dir", tmp_path / "run"], capsys)
    assert not (tmp_path / "run").exists()


def test_it_is_compared_with_no_other(short, tmp_path, capsys):
    runs = []
    for seed in (1, 2):
        config = ImageConfig(**SHORT.__dict__ | {"epochs": 1, "init_from": str(short), "seed": seed})
        runs.append(str(trained(config, tmp_path / f"run{seed}")))
    line = ["compare", str(short), "--", *runs, "--out-dir", tmp_path / "out"]
    assert "began with the weights of another run" in wrong(analysis_main, line, capsys)
    swept = ["sweep", "--config", f"{runs[0]}/config.json", "--seeds", "2", "--sweep-dir", tmp_path / "sweep"]
    assert "begin with their own weights" in wrong(main, swept, capsys)


def test_what_it_began_with_has_to_stay(short, tmp_path, capsys):
    other = shutil.copytree(short, tmp_path / "other")
    line = ["--init-from", str(other), "--hidden", "8", "--width", "8", "--epochs", "1", "--no-report", "--run-dir"]
    main([*line, str(tmp_path / "run")])
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(other)
    trained(ImageConfig(**SHORT.__dict__ | {"seed": 3, "epochs": 1}), other)
    error = wrong(main, ["--run-dir", tmp_path / "run", "--resume"], capsys)
    assert "init.json names other weights: the run of `init_from` was changed" in error
