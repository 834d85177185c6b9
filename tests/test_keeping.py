"""When a run is saved, which checkpoints are kept, and that writing them meanwhile changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from sqs_jax.train import ImageConfig, InputError, TextConfig, checkpoint, train
from sqs_jax.train.checkpoint import numbers, restore_params
from sqs_jax.train.cli.train import main
from sqs_jax.train.keeping import Clock, Saving
from tests.helpers import quiet, wrong

TEXT = TextConfig(
    vocab=320,
    context=32,
    width=32,
    heads=2,
    steps=12,
    warmup=2,
    evaluate_every=5,
    save_every=99,
    samples=0,
    validation=0,
)


def trained(folder, saving, config=TEXT, **settings):
    summary = train(config, folder, saving=saving, report=quiet, **settings)
    return numbers(folder / "checkpoints"), summary


def params(folder, number=None):
    return jax.tree.leaves(restore_params(folder / "checkpoints", number))


def check_equal(first, second):
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_steps_and_a_count(tmp_path):
    plain, summary = trained(tmp_path / "plain", Saving())
    assert plain == [12]
    kept, same = trained(tmp_path / "steps", Saving(save_steps=2, keep=3))
    assert kept == [8, 10, 12]  # 10 by both
    assert same["test"] == summary["test"]
    check_equal(params(tmp_path / "plain"), params(tmp_path / "steps"))
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("plain", "steps")]
    assert metrics[0] == metrics[1]


def test_what_is_written_meanwhile_is_what_was(tmp_path):
    expected, _ = trained(tmp_path / "plain", Saving(save_steps=1, keep=20))
    found, _ = trained(tmp_path / "meanwhile", Saving(save_steps=1, keep=20, async_checkpoints=True))
    assert found == expected == list(range(1, 13))
    for number in expected:
        check_equal(params(tmp_path / "plain", number), params(tmp_path / "meanwhile", number))


def test_a_run_goes_on_from_a_save_between_two_evaluations(tmp_path, monkeypatch):
    reference, _ = trained(tmp_path / "reference", Saving())
    save = checkpoint.Checkpoints.save

    def stopped(self, number, *rest):
        save(self, number, *rest)
        if number == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoints, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", Saving(save_steps=7, async_checkpoints=True))
    monkeypatch.undo()
    assert numbers(tmp_path / "run" / "checkpoints") == [7]
    assert trained(tmp_path / "run", Saving(), resume=True)[0] == reference
    check_equal(params(tmp_path / "run"), params(tmp_path / "reference"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "reference" / "metrics.jsonl").read_text()


def test_minutes(tmp_path, monkeypatch):
    answers = iter([False, False, True, *[False] * 3, True])
    monkeypatch.setattr(Clock, "is_due", lambda self: next(answers, False))
    kept, _ = trained(tmp_path / "run", Saving(save_minutes=1, keep=9))
    assert len(kept) > 2
    images = ImageConfig(width=8, hidden=8, epochs=4, save_every=99, validation=0)
    answers = iter([False, True, False, False])
    assert trained(tmp_path / "images", Saving(save_minutes=1, keep=9), images)[0] == [2, 4]


def test_the_clock():
    clock = Clock(Saving(save_steps=4, save_minutes=0.01))
    assert [clock.end(step, 10) for step in (0, 3, 4, 7, 8, 9)] == [4, 4, 8, 8, 10, 10]
    assert not clock.is_due()
    clock._last -= 0.6
    assert clock.is_due()
    clock.saved()
    assert not clock.is_due()
    assert not Clock(Saving()).is_due()


def test_what_fails_meanwhile_is_raised_and_leaves_the_one_before(tmp_path, monkeypatch):
    finish = checkpoint.Checkpoints._finish

    def failing(self, writing, number, loss):
        if number == 4:
            writing.callback(lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        finish(self, writing, number, loss)

    monkeypatch.setattr(checkpoint.Checkpoints, "_finish", failing)
    with pytest.raises(OSError, match="No space left on device"):
        trained(tmp_path / "run", Saving(save_steps=2, async_checkpoints=True))
    assert numbers(tmp_path / "run" / "checkpoints") == [2]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["digits", "--save-steps", "5"], "`save_steps` is 5: it goes with text; images have `save_every`, of epochs"),
        (["stories", "--keep", "0"], "`keep` is 0"),
        (["stories", "--save-minutes", "0.001"], "`save_minutes` is 0.001: 0, or a number ≥ 0.01 is needed"),
        (["stories", "--save-minutes", "-1"], "`save_minutes` is -1"),
    ],
)
def test_what_does_not_fit_is_one_line(flags, message, tmp_path, capsys):
    assert message in wrong(main, [*flags, "--run-dir", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()


def test_the_best_is_kept_beside_the_last(tmp_path):
    config = dataclasses.replace(TEXT, validation=5, lr=0.05, steps=20, save_every=1, evaluate_every=2)
    kept, _ = trained(tmp_path / "run", Saving(keep=2), config)
    rows = [eval(line, {"null": None}) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["validation_loss"])["step"]
    assert kept == sorted({best, 18, 20})


def test_settings_are_values():
    with pytest.raises(InputError, match="`keep` is 0"):
        train(TEXT, "/nowhere", saving=Saving(keep=0))
