"""When a run is saved, which checkpoints are kept, and that writing them meanwhile changes nothing."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from sqs_jax.train import ImageConfig, InputError, TextConfig, checkpoint, loop, train
from sqs_jax.train.checkpoint import numbers, restore_params
from sqs_jax.train.cli import train as train_cli
from sqs_jax.train.cli.train import main
from sqs_jax.train.interrupt import Stopped
from sqs_jax.train.keeping import Clock, Saving
from sqs_jax.train.text.language_task import LanguageTask
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


def test_the_best_is_kept_beside_the_last(tmp_path, monkeypatch):
    validation = iter([5.0, 4.0, 1.0, 3.0, 2.0, 6.0])
    monkeypatch.setattr(LanguageTask, "evaluate", lambda *_: {"validation_loss": next(validation)})
    config = dataclasses.replace(TEXT, validation=5, save_every=1, evaluate_every=2)
    kept, _ = trained(tmp_path / "run", Saving(keep=2), config)
    assert kept == [6, 10, 12]


def test_a_round_that_was_not_saved_is_saved_before_a_stop(tmp_path, monkeypatch):
    def stop(row, config, seconds):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):  # in the report of step 5, which is not saved, and before step 6
        train(TEXT, tmp_path / "run", report=stop)
    assert numbers(tmp_path / "run" / "checkpoints") == [5]


def test_a_round_lasts_from_evaluation_to_evaluation(tmp_path):
    rows = {}
    for name, saving in (("plain", Saving()), ("often", Saving(save_steps=1))):
        seen = rows.setdefault(name, [])
        train(
            TEXT, tmp_path / name, saving=saving, report=lambda row, _, seconds, seen=seen: seen.append((row, seconds))
        )
        for row, seconds in seen:
            steps = row["tokens_per_second"] * seconds / (TEXT.batch_size * TEXT.context)
            assert (
                steps >= row["step"] - (row["step"] - 1) // 5 * 5
            )  # the seconds of saving are beside those of training
    assert [row["step"] for row, _ in rows["often"]] == [5, 10, 12]


def test_the_command_that_goes_on_keeps_what_is_no_part_of_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_cli, "_program", lambda: "python -m train")
    monkeypatch.setattr(loop, "_show", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    flags = ["stories", "--steps", "4", "--evaluate-every", "2", "--width", "16", "--heads", "2", "--samples", "0"]
    kept = ["--keep", "3", "--async-checkpoints"]
    with pytest.raises(SystemExit) as stop:
        main([*flags, *kept, "--no-report", "--run-dir", str(tmp_path / "run")])
    assert stop.value.code == 143
    assert f"--run-dir {tmp_path / 'run'} --resume --keep 3 --async-checkpoints" in capsys.readouterr().err


def test_a_run_of_another_order_does_not_go_on(tmp_path):
    trained(tmp_path / "run", Saving())
    facts = tmp_path / "run" / "text.json"
    facts.write_text("".join(line for line in facts.read_text().splitlines(True) if '"order"' not in line))
    with pytest.raises(InputError, match="begun by a version that took windows in another"):
        trained(tmp_path / "run", Saving(), dataclasses.replace(TEXT, steps=20), resume=True)


def test_settings_are_values():
    with pytest.raises(InputError, match="`keep` is 0"):
        train(TEXT, "/nowhere", saving=Saving(keep=0))
