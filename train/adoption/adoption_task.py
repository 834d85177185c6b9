"""A pretrained model that is given another gate, as the loop trains it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sqs_jax import display, files
from sqs_jax.analysis.layer_fit import Layer
from sqs_jax.analysis.layer_reading import default_tokens
from sqs_jax.analysis.streams import losses
from sqs_jax.display import Stage
from sqs_jax.pretrained.loading import load_pretrained
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.pretrained.saving import check_savable
from sqs_jax.pretrained.windows import next_tokens, read_text, split_windows
from sqs_jax.train.adoption import network
from sqs_jax.train.adoption.distil import Distilled, distil
from sqs_jax.train.config import AdoptConfig
from sqs_jax.train.device_memory import check_fits, check_program, shapes_of
from sqs_jax.train.layout import along_batch, check_devices, make_mesh, replicated
from sqs_jax.train.optimizer import learning_rate
from sqs_jax.train.run_folder import RunFolder
from sqs_jax.train.step import Parameters, TrainState, run_steps
from sqs_jax.train.text.order import ORDER, batch_numbers


class AdoptionTask:
    """A run of `python -m train adopt`, ready to be trained: a `Task`."""

    def __init__(self, config: AdoptConfig):
        """Loads model and text, and compiles the step. Raises InputError for what does not fit."""
        self._mesh = make_mesh()
        check_devices(config.batch_size // config.accumulate, self._mesh, "batch_size` / `accumulate")
        with display.stage(f"loading {config.model}"):
            self._model = load_pretrained(config.model)
        check_savable(self._model)
        _check_size(self._model)
        self._train, self._validation, self._test = windows_of(self._model, config)
        self._config = config
        self._steps = 0 if config.stage == "distil" else config.steps
        self.ends = [*range(config.evaluate_every, self._steps, config.evaluate_every), self._steps][: self._steps]
        self.chosen: dict[str, str] = {}
        self.files = {"text.json": self._facts()}
        self.unit, self.per_step = "tokens", config.batch_size * self._train.shape[1]
        arch = self._model.architecture
        self.about = (
            f"{self._model.name}, {arch.family}: {arch.layers} layers of width {arch.width}, GLUs of {arch.hidden}; "
            f"{self._train.size:,} tokens to train on"
        )
        self._across = along_batch(self._mesh)
        if self._steps:
            self._optimizer = make_optimizer(config)
            self._step = network.make_step(self._model, config, self._optimizer)
            self._frozen = jax.device_put(self._frozen_parts(), replicated(self._mesh))
            self._check_step()

    def _facts(self) -> str:
        """The content of `text.json`: what the model is trained and measured on."""
        parts = {"train": self._train, "validation": self._validation, "test": self._test}
        checksum = hashlib.sha256(b"".join(part.tobytes() for part in parts.values())).hexdigest()
        facts = {"sha256": checksum, "model": self._model.name, "order": ORDER}
        return json.dumps(facts | {name: int(part.size) for name, part in parts.items()}, indent=2) + "\n"

    def _frozen_parts(self) -> network.Frozen:
        config, all_is_trained = self._config, self._config.train == "all"
        teacher = {}
        if config.teacher:
            teacher = {"glu": network.stacked_glus(self._layers(dataclasses.replace(config, gate="own")))}
        if all_is_trained and not teacher:
            return network.Frozen({}, {})
        rest = network.rest_of(self._model)
        return network.Frozen({}, rest | teacher) if all_is_trained else network.Frozen(rest, teacher)

    def _check_step(self) -> None:
        state = jax.eval_shape(lambda: self._first_state(self._layers(self._config)))
        shape = (self._config.batch_size, self._train.shape[1])
        windows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self._across)
        everywhere = replicated(self._mesh)
        check_program(self._step, shapes_of(state, everywhere), shapes_of(self._frozen, everywhere), windows)

    def _layers(self, config: AdoptConfig) -> list[Layer]:
        """The model's own GLUs with the gate of a configuration."""
        return [network.own_layer(self._model, layer, config) for layer in range(self._model.layers)]

    def begin(self, folder: Path, stopping: Callable[[], Any]) -> TrainState:
        """The state that training begins with; layers that were fitted, and the losses before, lie in the folder."""
        run, fitted = RunFolder(folder), []
        if self._config.stage == "tune":
            layers = self._layers(self._config)
        else:
            windows = fitting_windows(self._model, self._train, self._config)
            fitted = distil(self._model, windows, self._config, run.distilled, self._instead, stopping)
            layers = [each.layer for each in fitted]
        if not run.before.is_file():
            files.write(run.before, json.dumps(self._before(layers, fitted), indent=1) + "\n")
        return jax.device_put(self._first_state(layers), replicated(self._mesh))

    def _instead(self, layers: list[Layer]):
        """What a stream of adopted layers goes through: the blocks with the layers fitted so far."""
        kinds = network.adopted_kinds(self._model.architecture, self._config)

        def block(layer: int):
            glu = {name: array[0] for name, array in network.stacked_glus([layers[layer]]).items()}
            return kinds[layer], network.adopted_block(self._model, layer, glu)

        return block

    def _first_state(self, layers: list[Layer]) -> TrainState:
        params: Parameters = {"glu": network.stacked_glus(layers)}
        if self._config.train == "all":
            # A copy: a step consumes the state, and the original is needed on.
            params["rest"] = jax.tree.map(jnp.array, network.rest_of(self._model))
        state = self._optimizer.init(params) if self._steps else optax.EmptyState()
        return TrainState(params, state, jnp.zeros((), jnp.int32))

    def _before(self, layers: list[Layer], fitted: list[Distilled]) -> dict[str, Any]:
        """Losses on the test windows before training, and what was fitted."""
        models = {"original": self._model}
        if self._config.gate != "own":
            models["swapped"] = self.model({"glu": network.stacked_glus(self._layers(self._config))})
        if fitted:
            models["distilled"] = self.model({"glu": network.stacked_glus(layers)})
        loss = {}
        for name, model in models.items():
            with display.stage(f"loss, {name}"):
                loss[name] = self._loss(model, self._test)
        display.line("loss: " + ", ".join(f"{name} {value:.4f}" for name, value in loss.items()))
        rows = [each._asdict() | {"layer": layer} for layer, each in enumerate(fitted)]
        rows = jax.tree.map(lambda value: value if value == value else None, rows)  # JSON has no NaN
        tokens = int(fitting_windows(self._model, self._train, self._config).size) if fitted else 0
        return {"loss": loss, "tokens": tokens, "seconds": sum(each.seconds for each in fitted), "layers": rows}

    def model(self, params: Parameters) -> LanguageModel:
        """The language model of these parameters."""
        return network.adopted_model(self._model, params, self._config)

    def _loss(self, model: LanguageModel, windows: np.ndarray) -> float:
        return losses(model, (windows, next_tokens(windows)), [{}])[0]

    def train(
        self, state: TrainState, end: int, stopping: Callable[[], Any], shown: Stage
    ) -> tuple[TrainState, np.ndarray]:
        """Trains step by step up to the step `end`, until `stopping()`, or until a loss is not finite."""

        def advance(state: TrainState, step: int) -> tuple[TrainState, Any]:
            numbers = batch_numbers(step, self._config.batch_size, len(self._train), self._config.seed)
            return self._step(state, self._frozen, jax.device_put(self._train[numbers], self._across))

        return run_steps(state, end, stopping, shown, advance)

    def evaluate(self, params: Parameters) -> dict[str, Any]:
        """The loss on the validation windows."""
        return {"validation_loss": self._loss(self.model(params), self._validation)} if self._config.validation else {}

    def test(self, params: Parameters) -> dict[str, float]:
        """The loss on the test windows."""
        return {"loss": self._loss(self.model(params), self._test)}

    def learning_rate(self, step: int) -> Any:
        """The learning rate of the GLUs at a step."""
        return learning_rate(self._config, self._steps)(step)

    def epoch(self, step: int) -> float:
        """Passes over the training windows at a step."""
        return round(step * self._config.batch_size / len(self._train), 4)

    def checkpoint_number(self, step: int) -> int:
        """Checkpoints are numbered by step."""
        return step

    def progress_line(self, row: dict[str, Any], seconds: float) -> str:
        """Every evaluation is printed."""
        line = f"step {row['step']:>6}  epoch {row['epoch']:.2f}  train loss {row['train_loss']:.4f}"
        if "validation_loss" in row:
            line += f"  validation loss {row['validation_loss']:.4f}"
        return f"{line}  {row['tokens_per_second']:,.0f} tokens/s"


def windows_of(model: LanguageModel, config: AdoptConfig) -> list[np.ndarray]:
    """The windows (n, length) of a run: to train on, for validation, and for the test."""
    return split_windows(model, read_text(Path(config.text)), (config.validation, config.test), config.context)


def fitting_windows(model: LanguageModel, train: np.ndarray, config: AdoptConfig) -> np.ndarray:
    """Those of the training windows that GLUs are fitted on."""
    tokens = config.tokens or default_tokens(model, ("surrogate",))
    return train[np.linspace(0, len(train) - 1, min(len(train), -(-tokens // train.shape[1]))).astype(int)]


def make_optimizer(config: AdoptConfig) -> optax.GradientTransformation:
    """AdamW for the GLUs, and another with `rest_lr` for all else, after clipping by the norm of both."""

    def adamw(lr: float) -> optax.GradientTransformation:
        rate = learning_rate(dataclasses.replace(config, lr=lr), config.steps)
        return optax.adamw(rate, weight_decay=config.weight_decay, mask=_is_matrix)

    both = optax.partition(
        {"glu": adamw(config.lr), "rest": adamw(config.rest_lr)}, lambda params: {n: n for n in params}
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), both) if config.clip else both


def _is_matrix(params: Parameters) -> Parameters:
    # Arrays of blocks have an axis more, that of the layers; embeddings do not decay.
    return jax.tree.map(lambda array: array.ndim >= 3, params)


def _check_size(model: LanguageModel) -> None:
    arch = model.architecture
    count = arch.blocks_bytes // 4 + 2 * arch.vocab * arch.width
    check_fits(4 * count, f"{count:,} parameters take")
