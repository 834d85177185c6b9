"""Training a language model: a compiled step, called for each batch of windows; a round ends with an evaluation."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from sqs_jax import display
from sqs_jax.attention import attention_on
from sqs_jax.display import Stage
from sqs_jax.generation import Sampling, generate
from sqs_jax.train import initial, processes
from sqs_jax.train.config import TextConfig
from sqs_jax.train.device_memory import check_model, check_program, compiling, shapes_of
from sqs_jax.train.layout import Layout, along_batch, check_devices, make_mesh, parted
from sqs_jax.train.optimizer import learning_rate, make_optimizer
from sqs_jax.train.step import (
    Parameters,
    TrainState,
    first_state,
    make_begin,
    run_steps,
    size_of,
    with_parameters,
)
from sqs_jax.train.text.language_model import fingerprint, make_model, make_score, make_step
from sqs_jax.train.text.order import ORDER, batch_numbers
from sqs_jax.train.text.token_stream import Stream, count_windows, load_text, windows
from sqs_jax.train.text.tokenizer import decode, end_of
from sqs_jax.transformer import Transformer

# How stories are sampled unless asked otherwise: without the tail, of which a story of some hundred tokens draws a few.
SAMPLING = Sampling(temperature=0.8, top_p=0.95)


class Programs(NamedTuple):
    """What a run calls. It is compiled once for all runs of one configuration in a process."""

    model: Any
    """The Transformer, shapes alone."""
    state: TrainState
    """The shapes of the state, and how it lies on the devices."""
    begin: Callable[[Parameters | None], TrainState]
    step: Any
    score: Any


@functools.lru_cache(maxsize=4)
def programs(config: TextConfig, vocab: int, steps: int, layout: Layout) -> Programs:
    """The programs of a run of so many steps."""
    mesh, optimizer = make_mesh(layout), make_optimizer(config, steps)

    def model():
        return make_model(config, vocab)

    shapes: Any = nnx.eval_shape(model)
    state = jax.eval_shape(lambda: first_state(shapes, optimizer))
    placed = parted(state, mesh)
    return Programs(
        shapes,
        shapes_of(state, placed),
        make_begin(model, optimizer, placed),
        make_step(config, shapes, optimizer, mesh),
        make_score(shapes, mesh),
    )


class LanguageTask:
    """A run on text, ready to be trained: a `Task`."""

    def __init__(self, config: TextConfig, data_dir: Path | None, layout: Layout):
        """Loads the text and compiles the step. Raises InputError for what does not fit."""
        self._mesh = make_mesh(layout)
        check_devices(config.batch_size // config.accumulate, self._mesh, "batch_size` / `accumulate")
        with processes.main_first(), display.stage(f"reading {config.text or config.data}"):
            self._config, self._text = config, load_text(config, data_dir)
        self._windows = count_windows(self._text.train, config.context)
        steps = config.steps or -(-config.epochs * self._windows // config.batch_size)
        vocab = self._text.tokenizer.get_vocab_size()
        self._rate, self._across = learning_rate(config, steps), along_batch(self._mesh)
        check_model(lambda: make_model(config, vocab), layout.fsdp * layout.model)
        self._programs = programs(config, vocab, steps, layout)
        state = self._programs.state
        self.unit, self.per_step = "tokens", config.batch_size * config.context
        self.ends = [*range(config.evaluate_every, steps, config.evaluate_every), steps]
        head_width = config.width // config.heads
        attention = attention_on(self._mesh.devices.flat[0], jnp.dtype(config.dtype), config.context, head_width)
        self.chosen = {"attention": attention}
        self.files = {"tokenizer.json": self._text.tokenizer.to_str(), "text.json": self._facts()}
        self._initial = initial.initial_params(config.init_from, TextConfig, state.params)
        self.files |= initial.facts(config.init_from, self._initial)
        batch = jax.ShapeDtypeStruct((config.batch_size, config.context), jnp.int32, sharding=self._across)
        rows = config.batch_size // config.accumulate
        part = jax.ShapeDtypeStruct((rows, config.context), jnp.int32, sharding=self._across)
        with compiling([(self._programs.score, state.params, part, part)]):
            check_program(self._programs.step, state, batch, batch)
        train = self._text.train
        self.about = (
            f"{train.stories:,} stories, {len(train.tokens) - 1:,} tokens of a vocabulary of {vocab:,}, to train on; "
            f"{size_of(state.params):,} parameters"
        )

    def _facts(self) -> str:
        """The content of `text.json`: what the model is trained on."""
        text = self._text
        facts: dict[str, Any] = {"sha256": text.sha256, "vocab": text.tokenizer.get_vocab_size()}
        facts |= {"tokenizer": fingerprint(text.tokenizer), "order": ORDER}
        for part in ("train", "validation", "test"):
            stream = getattr(text, part)
            facts[part] = {"stories": stream.stories, "tokens": len(stream.tokens) - 1, "bytes": stream.bytes}
        return json.dumps(facts, indent=2) + "\n"

    def begin(self, folder: Path, stopping: Callable[[], Any]) -> TrainState:
        """The state that training begins with."""
        return self._programs.begin(self._initial)

    def train(
        self, state: TrainState, end: int, stopping: Callable[[], Any], shown: Stage
    ) -> tuple[TrainState, np.ndarray]:
        """Trains step by step up to the step `end`, until `stopping()`, or until a loss is not finite."""

        def advance(state: TrainState, step: int) -> tuple[TrainState, Any]:
            numbers = batch_numbers(step, self._config.batch_size, self._windows, self._config.seed)
            return self._programs.step(
                state, *placed_windows(self._text.train, self._config.context, numbers, self._across)
            )

        return run_steps(state, end, stopping, shown, advance)

    def evaluate(self, params: Parameters) -> dict[str, Any]:
        """Loss and bits per byte on validation, and stories."""
        row: dict[str, Any] = {}
        if self._config.validation:
            row = {f"validation_{name}": value for name, value in self._measured(params, self._text.validation).items()}
        if self._config.samples:
            row["samples"] = self._stories(params)
        return row

    def test(self, params: Parameters) -> dict[str, float]:
        """Loss and bits per byte on the test stories."""
        return self._measured(params, self._text.test)

    def learning_rate(self, step: int) -> Any:
        """The learning rate of a step."""
        return self._rate(step)

    def epoch(self, step: int) -> float:
        """Passes over the training text at a step."""
        return round(step * self._config.batch_size / self._windows, 4)

    def checkpoint_number(self, step: int) -> int:
        """Checkpoints are numbered by step."""
        return step

    def progress_line(self, row: dict[str, Any], seconds: float) -> str:
        """Every evaluation is printed."""
        line = f"step {row['step']:>6}  epoch {row['epoch']:.2f}  train loss {row['train_loss']:.4f}"
        if "validation_loss" in row:
            line += f"  validation loss {row['validation_loss']:.4f}"
            line += f"  {row['validation_bits_per_byte']:.4f} bits per byte"
        return f"{line}  {row['tokens_per_second']:,.0f} tokens/s"

    def _measured(self, params: Parameters, stream: Stream) -> dict[str, float]:
        nats = stream_nats(lambda *batch: self._programs.score(params, *batch), stream, self._config, self._mesh)
        return {"loss": nats / (len(stream.tokens) - 1), "bits_per_byte": nats / math.log(2) / stream.bytes}

    def _stories(self, params: Parameters) -> list[str]:
        model: Transformer = with_parameters(self._programs.model, params)
        end = end_of(self._text.tokenizer)
        prompts = [[end]] * self._config.samples
        rows = generate(model, prompts, seed=self._config.seed, stop=end, sampling=SAMPLING)
        return [decode(self._text.tokenizer, tokens) for tokens in rows]


def stream_nats(score, stream: Stream, config: TextConfig, mesh: Mesh) -> float:
    """The nats of a whole stream: each token but the first counts once. `score` maps a batch of windows to nats."""
    across = along_batch(mesh)
    count, batch = count_windows(stream, config.context), config.batch_size // config.accumulate
    total = 0.0
    for start in range(0, count, batch):
        numbers = np.arange(start, start + batch)
        numbers = np.where(numbers < count, numbers, -1)
        total += float(score(*placed_windows(stream, config.context, numbers, across)))
    return total


def placed_windows(
    stream: Stream, context: int, numbers: np.ndarray, across: NamedSharding
) -> tuple[jax.Array, jax.Array]:
    """The windows of a batch on the devices: each process reads those of its own devices alone."""
    shape = (len(numbers), context)
    parts: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    def part(index, which: int) -> np.ndarray:
        rows = index[0]
        key = (rows.start, rows.stop)
        if key not in parts:
            parts[key] = windows(stream, context, numbers[rows])
        return parts[key][which]

    inputs, targets = (
        jax.make_array_from_callback(shape, across, lambda index, which=which: part(index, which)) for which in (0, 1)
    )
    return inputs, targets
