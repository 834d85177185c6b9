"""Training on text from end to end: what a run leaves, what stopping and killing do to it, and bad input."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from sqs_jax.train import InputError, TextConfig, loop, train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.cli.sample import in_order
from sqs_jax.train.cli.train import main
from sqs_jax.train.interrupt import Stopped, StopSignals
from sqs_jax.train.text import language_model, language_task
from sqs_jax.train.text.embedded_stories import stories
from sqs_jax.train.text.token_stream import load_text
from sqs_jax.train.text.tokenizer import decode
from tests.helpers import quiet, trained

SIZES = {"vocab": 300, "context": 32, "width": 16, "layers": 2, "heads": 2, "steps": 25, "batch_size": 4}
SIZES |= {"evaluate_every": 10, "lr": 1e-2, "warmup": 2, "noise_std": 0.1}
CONFIG = TextConfig(**SIZES)


def flags(**changes):
    sizes = (SIZES | changes).items()
    return ["stories", "--no-report", *(word for name, value in sizes for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return trained(CONFIG, tmp_path_factory.mktemp("runs") / "reference")


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_end(run_dir, reference):
    chex.assert_trees_all_equal(restore_params(run_dir / "checkpoints"), restore_params(reference / "checkpoints"))
    for name in ("metrics.jsonl", "samples.txt", "tokenizer.json", "text.json"):
        assert (run_dir / name).read_bytes() == (reference / name).read_bytes()
    ends = [json.loads((path / "summary.json").read_text())["test"] for path in (run_dir, reference)]
    assert ends[0] == ends[1]


def test_a_run_leaves_all_its_files(reference):
    names = {path.name for path in reference.iterdir()} - {".lock"}
    assert names == {
        "config.json", "metrics.jsonl", "checkpoints", "summary.json", "tokenizer.json", "text.json", "samples.txt",
    }  # fmt: skip
    rows = rows_of(reference)
    assert [row["step"] for row in rows] == [10, 20, 25]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] < math.log(300)
    summary = json.loads((reference / "summary.json").read_text())
    assert set(summary["test"]) == {"loss", "bits_per_byte"}
    assert summary["validation"]["bits_per_byte"] == rows[-1]["validation_bits_per_byte"]
    assert summary["steps"] == 25
    assert summary["tokens_per_second"] > 0
    assert {"tokenizers", "jax"} <= set(summary["versions"])
    samples = (reference / "samples.txt").read_text()
    assert samples.count("==========") == 2
    assert samples.count("---\n") == 3
    assert samples.startswith("step 10\n")


def test_bits_per_byte_are_those_of_the_held_out_stories(reference):
    model, tokenizer, config = language_model.load_language(reference)
    size, tokens = 0, [0]
    for story in stories()[-40:]:
        tokens += [*tokenizer.encode(story).ids, 0]
        size += len(story.encode()) + 1
    count = len(tokens) - 1
    padded = np.array(tokens + [0] * (-count % 32))
    log_p = np.asarray(jax.nn.log_softmax(jax.jit(model)(padded[:-1].reshape(-1, 32)))).reshape(-1, model.config.vocab)
    bits = -float(np.sum(log_p[np.arange(count), tokens[1:]], dtype=np.float64)) / math.log(2)
    result = json.loads((reference / "summary.json").read_text())["test"]
    np.testing.assert_allclose(result["bits_per_byte"], bits / size, rtol=1e-5)
    np.testing.assert_allclose(result["loss"], bits * math.log(2) / count, rtol=1e-5)
    assert config == CONFIG


def test_stopping_within_a_round_and_resuming_is_exact(reference, tmp_path, monkeypatch):
    real, calls = language_task.windows, []

    def interrupting(stream, context, numbers):
        calls.append(0)
        if len(calls) == 14:
            signal.raise_signal(signal.SIGINT)
        return real(stream, context, numbers)

    config = dataclasses.replace(CONFIG, validation=0)
    expected = tmp_path / "expected"
    train(config, expected, report=quiet)
    monkeypatch.setattr(language_task, "windows", interrupting)
    with pytest.raises(Stopped, match="SIGINT"):
        train(config, tmp_path / "run", report=quiet)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["14"]
    assert len(rows_of(tmp_path / "run")) == 1
    train(config, tmp_path / "run", resume=True, report=quiet)
    assert_same_end(tmp_path / "run", expected)


def test_the_best_on_validation_outlives_a_stop(reference, tmp_path, monkeypatch):
    real, calls = language_task.programs, []

    def interrupting(*args):
        step = real(*args).step

        def counted(*batch):
            calls.append(0)
            if len(calls) == 17:
                signal.raise_signal(signal.SIGTERM)
            return step(*batch)

        counted.lower = step.lower
        return real(*args)._replace(step=counted)

    monkeypatch.setattr(language_task, "programs", interrupting)
    with pytest.raises(Stopped, match="SIGTERM"):
        train(CONFIG, tmp_path / "run", report=quiet)
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"10", "17"}
    train(CONFIG, tmp_path / "run", resume=True, report=quiet)
    assert_same_end(tmp_path / "run", reference)


def test_a_killed_process_resumes_to_the_same_numbers(reference, tmp_path):
    command = [sys.executable, "-m", "train", *flags(), "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("step"):
                break
        process.kill()
    assert not (tmp_path / "run" / "summary.json").exists()
    train(CONFIG, tmp_path / "run", resume=True, report=quiet)
    assert_same_end(tmp_path / "run", reference)


def sample(capsys, *words):
    capsys.readouterr()
    main(["sample", *words])
    return capsys.readouterr().out


def test_samples_begin_with_the_prompt_and_depend_on_the_seed(reference, capsys):
    words = [str(reference), "--prompt", "Once upon", "--n", "3", "--tokens", "12"]
    out = sample(capsys, *words, "--seed", "1")
    assert len(parts := out.split("\n\n---\n\n")) == 3
    assert all(part.startswith("Once upon") for part in parts)
    assert len(set(parts)) == 3
    assert sample(capsys, *words, "--seed", "1") == out
    assert sample(capsys, *words, "--seed", "2") != out
    greedy = sample(capsys, *words, "--temperature", "0").split("\n\n---\n\n")
    assert len({part.strip() for part in greedy}) == 1


def test_rows_are_shown_in_order_and_letters_whole():
    tokenizer = load_text(CONFIG).tokenizer
    rows = [tokenizer.encode("ab é").ids, tokenizer.encode("xy").ids]
    assert len(rows[0]) > len(rows[1])
    chunks = [[[a], [b] if b is not None else []] for a, b in zip(rows[0], rows[1] + [None] * 9, strict=False)]
    pieces = list(in_order(lambda tokens: decode(tokenizer, tokens), [0], 2, iter([*chunks, [[], []]])))
    assert "".join(pieces) == "ab é\n\n---\n\nxy\n"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "word " * 40], r"`prompt` has \d+ tokens: fewer than the context, 32, are needed"),
        (["--top-p", "0"], "`top_p` is 0.0"),
        (["--n", "0"], "`n` is 0"),
        (["--tokens", "-1"], "`tokens` is -1"),
        (["--tokens", "9999999999"], "`tokens` is 9999999999"),
        (["--seed", "99999999999999999999"], "`seed` is 99999999999999999999"),
        (["--top-k", "9999999999"], "`top_k` is 9999999999"),
        (["--prompt", "a\udcff"], "it is not UTF-8"),
        (["--temprature", "1"], "did you mean --temperature"),
    ],
)
def test_bad_samples_are_told_in_one_line(reference, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["sample", str(reference), *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def copy(reference, tmp_path):
    return shutil.copytree(reference, tmp_path / "copy")


def test_a_tokenizer_that_does_not_fit_is_refused(reference, tmp_path, capsys):
    run_dir = copy(reference, tmp_path)
    other = load_text(dataclasses.replace(CONFIG, vocab=290)).tokenizer
    (run_dir / "tokenizer.json").write_text(other.to_str())
    with pytest.raises(InputError, match="has 290 tokens, and the checkpoint 300"):
        language_model.load_language(run_dir)
    # As many tokens, of another text.
    path = tmp_path / "other.txt"
    path.write_text(
        "\n\n".join(f"Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich {i}" for i in range(90))
    )
    other = load_text(dataclasses.replace(CONFIG, data="text", text=str(path))).tokenizer
    assert other.get_vocab_size() == 300
    (run_dir / "tokenizer.json").write_text(other.to_str())
    with pytest.raises(InputError, match="is not the tokenizer that"):
        language_model.load_language(run_dir)
    (run_dir / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer.json is damaged"):
        language_model.load_language(run_dir)
    (run_dir / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        language_model.load_language(run_dir)


def test_a_damaged_run_is_told(reference, tmp_path):
    run_dir = copy(reference, tmp_path)
    config = (run_dir / "config.json").read_text()
    (run_dir / "config.json").write_text(config.replace('"heads": 2', '"heads": 3'))
    with pytest.raises(InputError, match="`heads` is 3"):
        language_model.load_language(run_dir)
    (run_dir / "config.json").write_text(config)
    (run_dir / "text.json").unlink()
    with pytest.raises(InputError, match=r"cannot read .*text.json"):
        language_model.load_language(run_dir)


def test_another_text_is_no_continuation(reference, tmp_path):
    run_dir = copy(reference, tmp_path)
    (run_dir / "summary.json").unlink()
    facts = (run_dir / "text.json").read_text()
    (run_dir / "text.json").write_text(facts.replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(InputError, match=r"text.json is not what the data gives"):
        train(CONFIG, run_dir, resume=True, report=quiet)
    with pytest.raises(InputError, match=r"`width` is 32, but the run .* has 16"):
        train(dataclasses.replace(CONFIG, width=32), run_dir, resume=True, report=quiet)


def test_a_stop_before_the_first_step_leaves_a_run_to_resume(reference, tmp_path, monkeypatch):
    class Early(StopSignals):
        """A signal that comes while the run is prepared."""

        def __enter__(self):
            super().__enter__()
            signal.raise_signal(signal.SIGINT)
            return self

    monkeypatch.setattr(loop, "StopSignals", Early)
    with pytest.raises(Stopped):
        train(CONFIG, tmp_path / "run", report=quiet)
    monkeypatch.undo()
    train(CONFIG, tmp_path / "run", resume=True, report=quiet)
    assert_same_end(tmp_path / "run", reference)


def test_ctrl_c_is_answered_within_a_step(tmp_path):
    endless = flags(steps=100_000, evaluate_every=100_000)
    command = [sys.executable, "-m", "train", *endless, "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "go on with: python -m train --run-dir" in error
    assert list((tmp_path / "run" / "checkpoints").glob("[1-9]*"))


def test_two_processes_prepare_tinystories_at_once(original_files, tmp_path):
    sample = (original_files / "tinystories" / "tinystories_sample.txt").read_text()
    for part in ("train", "valid"):
        (tmp_path / f"TinyStories-{part}.txt").write_text(sample * (20 if part == "train" else 1))
    code = (
        "import sys; from pathlib import Path; from sqs_jax.train import PRESETS; import dataclasses\n"
        "from sqs_jax.train.text.token_stream import load_text\n"
        "config = dataclasses.replace(PRESETS['tinystories'], validation=2, vocab=300)\n"
        "print(load_text(config, Path(sys.argv[1])).sha256)"
    )
    environment = dict(os.environ) | {"SQS_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    ends = [(*process.communicate(), process.returncode) for process in processes]
    assert [code for *_, code in ends] == [0, 0, 0], ends[0][1] + ends[1][1] + ends[2][1]
    assert len({out.splitlines()[-1] for out, *_ in ends}) == 1


def test_a_loss_that_is_not_finite_ends_the_round_within_two_steps(tmp_path, monkeypatch):
    real, calls = language_task.programs, []

    def breaking(*args):
        step = real(*args).step

        def broken(state, *batch):
            calls.append(int(state.step))
            state, loss = step(state, *batch)
            return state, loss * np.nan if calls[-1] == 3 else loss

        broken.lower = step.lower
        return real(*args)._replace(step=broken)

    monkeypatch.setattr(language_task, "programs", breaking)
    config = dataclasses.replace(CONFIG, steps=20, evaluate_every=20)
    with pytest.raises(loop.NonFiniteLossError, match="`train_loss` is nan at step 4"):
        train(config, tmp_path / "run", report=quiet)
    assert calls == [0, 1, 2, 3, 4]
