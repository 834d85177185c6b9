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
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sqs_jax.train import InputError, TextConfig, loop, train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.cli.sample import in_order
from sqs_jax.train.cli.train import main
from sqs_jax.train.interrupt import Stopped, StopSignals
from sqs_jax.train.optimizer import make_optimizer
from sqs_jax.train.step import data_mesh, first_state, parameters, with_parameters
from sqs_jax.train.text import language_model
from sqs_jax.train.text.stories import stories
from sqs_jax.train.text.tokenizer import END
from sqs_jax.train.text.tokens import Stream, load_text, windows
from sqs_jax.transformer import Transformer, TransformerConfig

SIZES = {"vocab": 300, "context": 32, "width": 16, "layers": 2, "heads": 2, "steps": 25, "batch_size": 4}
SIZES |= {"evaluate_every": 10, "lr": 1e-2, "warmup": 2, "noise_std": 0.1}
CONFIG = TextConfig(**SIZES)


def flags(**changes):
    sizes = (SIZES | changes).items()
    return ["stories", "--no-report", *(word for name, value in sizes for word in (f"--{name}", str(value)))]


def quiet(*_):
    """A report that says nothing."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nobody interrupted."""
    run_dir = tmp_path_factory.mktemp("runs") / "reference"
    train(CONFIG, run_dir, report=quiet)
    return run_dir


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
    size, tokens = 0, [END]
    for story in stories()[-40:]:
        tokens += [*tokenizer.encode(story).ids, END]
        size += len(story.encode()) + 1
    count = len(tokens) - 1
    padded = np.array(tokens + [END] * (-count % 32))
    log_p = np.asarray(jax.nn.log_softmax(jax.jit(model)(padded[:-1].reshape(-1, 32)))).reshape(-1, model.config.vocab)
    bits = -float(np.sum(log_p[np.arange(count), tokens[1:]], dtype=np.float64)) / math.log(2)
    found = json.loads((reference / "summary.json").read_text())["test"]
    np.testing.assert_allclose(found["bits_per_byte"], bits / size, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], bits * math.log(2) / count, rtol=1e-5)
    assert config == CONFIG


def test_stopping_within_a_round_and_resuming_is_exact(reference, tmp_path, monkeypatch):
    real, calls = language_model.windows, []

    def interrupting(stream, context, numbers):
        calls.append(0)
        if len(calls) == 14:
            signal.raise_signal(signal.SIGINT)
        return real(stream, context, numbers)

    config = dataclasses.replace(CONFIG, validation=0)
    expected = tmp_path / "expected"
    train(config, expected, report=quiet)
    monkeypatch.setattr(language_model, "windows", interrupting)
    with pytest.raises(Stopped, match="SIGINT"):
        train(config, tmp_path / "run", report=quiet)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["14"]
    assert len(rows_of(tmp_path / "run")) == 1
    train(config, tmp_path / "run", resume=True, report=quiet)
    assert_same_end(tmp_path / "run", expected)


def test_the_best_on_validation_outlives_a_stop(reference, tmp_path, monkeypatch):
    real, calls = language_model.make_step, []

    def interrupting(*args):
        step = real(*args)

        def counted(*batch):
            calls.append(0)
            if len(calls) == 17:
                signal.raise_signal(signal.SIGTERM)
            return step(*batch)

        counted.lower = step.lower
        return counted

    monkeypatch.setattr(language_model, "make_step", interrupting)
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


def test_a_text_that_can_be_learnt_by_heart_is(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("\n\n".join(["The quick brown fox jumps over the lazy dog, and then it goes home to sleep."] * 3))
    config = dataclasses.replace(CONFIG, data="text", text=str(path), steps=250, evaluate_every=250, noise_std=0.0)
    summary = train(dataclasses.replace(config, validation=1, test=1), tmp_path / "run", report=quiet)
    assert rows_of(tmp_path / "run")[-1]["train_loss"] > 0.05  # it was not known from the beginning
    assert summary["test"]["loss"] < 0.05
    assert summary["validation"]["loss"] < 0.05


def one_step(config, tokens):
    """The state after one step on these windows, and its loss."""
    model = language_model.make_model(config, 300)
    optimizer = make_optimizer(config, 25)
    stream = Stream(np.asarray(tokens, np.uint16), 1, 1)
    batch = windows(stream, config.context, np.arange(config.batch_size))
    return language_model.make_step(config, model, optimizer, data_mesh())(first_state(model, optimizer), *batch)


def test_accumulating_gradients_is_the_whole_batch():
    tokens = np.random.default_rng(0).integers(0, 300, 101)  # the last window is not full
    whole = dataclasses.replace(CONFIG, noise_std=0.0, warmup=0)
    state, loss = one_step(whole, tokens)
    parts, part_loss = one_step(dataclasses.replace(whole, accumulate=4), tokens)
    np.testing.assert_allclose(loss, part_loss, rtol=1e-6)
    first = jax.tree.leaves(parameters(language_model.make_model(whole, 300)))
    for before, a, b in zip(first, jax.tree.leaves(state.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # Adam's first step has the gradient's sign, even of a tiny one
        assert np.abs(a - before).max() > 1e-3


def test_padding_counts_for_nothing():
    config = dataclasses.replace(CONFIG, noise_std=0.0)
    tokens = np.random.default_rng(0).integers(0, 300, 101)
    _, loss = one_step(config, tokens)
    logits = language_model.make_model(config, 300)(jnp.asarray(np.pad(tokens, (0, 28))[None, :128].reshape(4, 32)))
    log_p = jax.nn.log_softmax(logits).reshape(128, 300)
    expected = -np.mean([log_p[i, tokens[i + 1]] for i in range(100)])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_noise_is_in_units_of_the_embedding(monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 300, 129)
    losses = [float(one_step(dataclasses.replace(CONFIG, noise_std=std), tokens)[1]) for std in (0.0, 1e-6, 3.0)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert abs(losses[2] - losses[0]) > 1e-4


def test_weight_decay_is_for_matrices_alone():
    config = dataclasses.replace(CONFIG, weight_decay=10.0, warmup=0)
    params = parameters(language_model.make_model(config, 300))
    optimizer = make_optimizer(config, 25)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates: dict = optimizer.update(zeros, optimizer.init(params), params)[0]  # pyright: ignore
    for name in ("qkv", "project", "down"):
        np.testing.assert_allclose(updates["blocks"][name], -0.1 * params["blocks"][name], rtol=1e-5)
    for update in (updates["norm"], updates["blocks"]["glu_norm"], updates["blocks"]["attention_norm"]):
        assert not np.any(update)


def test_bfloat16_and_untied_embeddings_train(tmp_path):
    config = dataclasses.replace(
        CONFIG, dtype="bfloat16", tied=False, remat="block", steps=10, learnable=True, samples=0
    )
    summary = train(config, tmp_path / "run", report=quiet)
    assert summary["test"]["loss"] < math.log(300)
    assert {leaf.dtype for leaf in jax.tree.leaves(restore_params(tmp_path / "run" / "checkpoints"))} == {
        jnp.dtype("float32")
    }
    assert not (tmp_path / "run" / "samples.txt").exists()


def test_epochs_set_the_number_of_steps(tmp_path):
    text = load_text(CONFIG)
    count = -(-(len(text.train.tokens) - 1) // 32)
    config = dataclasses.replace(CONFIG, steps=0, epochs=1, batch_size=1024, evaluate_every=1000, samples=0)
    train(config, tmp_path / "run", report=quiet)
    last = rows_of(tmp_path / "run")[-1]
    assert last["step"] == -(-count // 1024)
    np.testing.assert_allclose(last["epoch"], last["step"] * 1024 / count, atol=1e-4)


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
    pieces = list(in_order(tokenizer, [END], 2, iter([*chunks, [[], []]])))
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


_ON_DEVICES = """
import dataclasses, json, pathlib, sys, jax
from sqs_jax.train import TextConfig, train
config = TextConfig(vocab=300, context=32, width=16, heads=2, steps=6, warmup=2, batch_size=8, accumulate=2, samples=0)
summary = train(config, pathlib.Path(sys.argv[1]), report=lambda *_: None)
rows = [json.loads(line) for line in (pathlib.Path(sys.argv[1]) / "metrics.jsonl").read_text().splitlines()]
print(json.dumps([jax.device_count(), summary["test"]["loss"], *[row["train_loss"] for row in rows]]))
"""


def test_the_same_numbers_on_1_and_on_4_devices(tmp_path):
    results = []
    for count in (1, 4):
        environment = dict(os.environ) | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        command = [sys.executable, "-c", _ON_DEVICES, str(tmp_path / str(count))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    assert [result[0] for result in results] == [1, 4]
    np.testing.assert_allclose(results[0][1:], results[1][1:], rtol=1e-4)


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


def test_the_loss_of_a_large_vocabulary_keeps_one_part_of_the_logits():
    config = TransformerConfig(vocab=5000, context=64, layers=1, width=16, heads=2, hidden=16, dtype=jnp.bfloat16)
    network = Transformer(config, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (4, 65), 0, 5000)
    targets = jnp.where(jnp.arange(64)[None] < jnp.array([64, 60, 3, 1])[:, None], tokens[:, 1:], -1)

    def loss(params, limit):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(language_model, "_LOGITS", limit)
            model = with_parameters(network, params)
            return language_model.stream_loss(model, model.stream(model.embed(tokens[:, :-1])), targets)

    params = parameters(network)
    found = {limit: jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, limit) for limit in (2**30, 200_000)}
    (whole, gradient), (parts, parts_gradient) = found.values()
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(parts_gradient), strict=True):
        np.testing.assert_allclose(b, a, rtol=0.02, atol=0.02 * np.abs(a).max())  # sums of bfloat16 in another order
    logits = 4 * 4 * 64 * 5000
    taken = {
        limit: jax.jit(jax.grad(loss), static_argnums=1).lower(params, limit).compile().memory_analysis()
        for limit in (2**30, 200_000)
    }
    assert taken[2**30].temp_size_in_bytes > logits
    assert taken[200_000].temp_size_in_bytes < 0.6 * logits  # parts of 10 of 64 positions


def test_two_processes_prepare_tinystories_at_once(original_files, tmp_path):
    sample = (original_files / "tinystories" / "tinystories_sample.txt").read_text()
    for part in ("train", "valid"):
        (tmp_path / f"TinyStories-{part}.txt").write_text(sample * (20 if part == "train" else 1))
    code = (
        "import sys; from pathlib import Path; from sqs_jax.train import PRESETS; import dataclasses\n"
        "from sqs_jax.train.text.tokens import load_text\n"
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
