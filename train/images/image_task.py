"""Training a classifier on images. A round is an epoch: one compiled scan."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from sqs_jax import display
from sqs_jax.display import Stage
from sqs_jax.messages import InputError
from sqs_jax.train import initial, processes
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.device_memory import check_fits, check_model, check_program, compiling, shapes_of
from sqs_jax.train.images.classifier import make_epoch, make_evaluation, make_model
from sqs_jax.train.images.dataset import Dataset, load, own_facts, split_validation
from sqs_jax.train.layout import Layout, check_devices, make_mesh, parted, placed, replicated
from sqs_jax.train.optimizer import learning_rate, make_optimizer
from sqs_jax.train.step import (
    Parameters,
    TrainState,
    first_state,
    make_begin,
    size_of,
)


class Images(NamedTuple):
    """A data set on the device, with the split that a configuration makes: the arguments of an epoch."""

    images: jax.Array
    """Training images uint8 (n, …)."""
    labels: jax.Array
    """Their labels (n,)."""
    training: jax.Array
    """Indices of the images that are trained on."""
    validation: jax.Array
    """Indices of the images that are held out."""
    test: tuple[jax.Array, jax.Array, jax.Array]
    """Images, labels and indices of the test set."""
    inputs: int
    """Numbers in an image."""
    outputs: int
    """Classes."""
    steps: int
    """Steps an epoch."""


class Programs(NamedTuple):
    """What a run calls. It is compiled once for all runs of one configuration in a process."""

    state: TrainState
    """The shapes of the state, and how it lies on the devices."""
    begin: Callable[[Parameters | None], TrainState]
    epoch: Any
    evaluation: Any


@functools.lru_cache(maxsize=4)
def programs(config: ImageConfig, inputs: int, outputs: int, steps: int, layout: Layout) -> Programs:
    """The programs of a run with so many inputs, outputs and steps an epoch."""
    mesh, optimizer = make_mesh(layout), make_optimizer(config, steps * config.epochs)

    def model():
        return make_model(config, inputs, outputs)

    shapes: Any = nnx.eval_shape(model)
    state = jax.eval_shape(lambda: first_state(shapes, optimizer))
    placed = parted(state, mesh)
    return Programs(
        shapes_of(state, placed),
        make_begin(model, optimizer, placed),
        make_epoch(config, shapes, optimizer, mesh),
        make_evaluation(shapes, mesh),
    )


class ImageTask:
    """A run on images, ready to be trained: a `Task`."""

    def __init__(self, config: ImageConfig, data_dir: Path | None, layout: Layout):
        """Loads the images and compiles the epoch. Raises InputError for what does not fit."""
        mesh = make_mesh(layout)
        check_devices(config.batch_size, mesh)
        with processes.main_first(), display.stage(f"loading {config.data}"):
            data = load_images(config, data_dir)
            self._data = place_images(config, data, replicated(mesh))
        self._epochs = config.epochs
        self._programs = programs(config, self._data.inputs, self._data.outputs, self._data.steps, layout)
        self._rate = learning_rate(config, self._data.steps * config.epochs)
        self.ends = [self._data.steps * epoch for epoch in range(1, config.epochs + 1)]
        self._initial = initial.initial_params(config.init_from, ImageConfig, self._programs.state.params)
        self.chosen: dict[str, str] = {}
        self.files = initial.facts(config.init_from, self._initial)
        self.files |= own_facts(config.data, data)
        self.unit, self.per_step = "images", config.batch_size
        state = self._programs.state
        with compiling(self._later()):
            check_program(self._programs.epoch, state, *self._data[:3])
        self.about = (
            f"{len(self._data.training):,} images of {' × '.join(map(str, data.shape))} to train on, "
            f"{len(self._data.validation):,} for validation, {len(data.test_labels):,} for the test; "
            f"{len(data.classes)} classes; {size_of(state.params):,} parameters"
        )

    def _later(self) -> Iterator[tuple[Any, ...]]:
        """What is called after the first epoch: programs and their arguments."""
        data, evaluation, params = self._data, self._programs.evaluation, self._programs.state.params
        if len(data.validation):
            yield evaluation, params, data.images, data.labels, data.validation
        yield evaluation, params, *data.test

    def begin(self, folder: Path, stopping: Callable[[], Any]) -> TrainState:
        """The state that training begins with."""
        return self._programs.begin(self._initial)

    def train(
        self, state: TrainState, end: int, stopping: Callable[[], Any], shown: Stage
    ) -> tuple[TrainState, np.ndarray]:
        """Trains one epoch, which is not interrupted."""
        state, losses = self._programs.epoch(state, self._data.images, self._data.labels, self._data.training)
        return state, np.asarray(losses)

    def evaluate(self, params: Parameters) -> dict[str, Any]:
        """Loss and accuracy on validation, where there is one."""
        data = self._data
        if not len(data.validation):
            return {}
        metrics = self._programs.evaluation(params, data.images, data.labels, data.validation)
        return {"validation_loss": float(metrics.loss), "validation_accuracy": float(metrics.accuracy)}

    def test(self, params: Parameters) -> dict[str, float]:
        """Loss and accuracy on the test set."""
        metrics = self._programs.evaluation(params, *self._data.test)
        return {"loss": float(metrics.loss), "accuracy": float(metrics.accuracy)}

    def learning_rate(self, step: int) -> Any:
        """The learning rate of a step."""
        return self._rate(step)

    def epoch(self, step: int) -> int:
        """Epochs done at a step."""
        return step // self._data.steps

    def checkpoint_number(self, step: int) -> int:
        """Checkpoints are numbered by epoch."""
        return self.epoch(step)

    def progress_line(self, row: dict[str, Any], seconds: float) -> str:
        """Some twenty epochs of a long run are printed."""
        if row["epoch"] % max(1, self._epochs // 20) and row["epoch"] != self._epochs:
            return ""
        width = len(str(self._epochs))
        line = f"epoch {row['epoch']:>{width}}/{self._epochs}  train loss {row['train_loss']:.4f}"
        if "validation_loss" in row:
            line += f"  validation loss {row['validation_loss']:.4f}  accuracy {row['validation_accuracy']:.4f}"
        return f"{line}  {seconds:.2f} s"


def load_images(config: ImageConfig, data_dir: Path | None) -> Dataset:
    """The data set of a configuration. Raises InputError for what does not fit."""
    data = load_fitting(config, data_dir)
    check_sizes(config, data)
    return data


def load_fitting(config: ImageConfig, data_dir: Path | None) -> Dataset:
    """The data set of a configuration. Raises InputError where it does not fit into the memory of the device."""
    data = load(config.data, data_dir, size=config.size)
    check_fits(data.train_images.nbytes + data.test_images.nbytes, f"{data.name} takes")
    return data


def place_images(config: ImageConfig, data: Dataset, everywhere: NamedSharding) -> Images:
    """Puts a data set on the devices, split as a configuration says."""
    indices = split_validation(len(data.train_labels), config.validation)
    arrays = (np.asarray(data.train_images), np.asarray(data.train_labels), *indices)
    test = (np.asarray(data.test_images), np.asarray(data.test_labels), np.arange(len(data.test_labels)))
    (images, labels, training, validation), test = jax.tree.map(lambda array: placed(array, everywhere), (arrays, test))
    return Images(
        images=images,
        labels=labels,
        training=training,
        validation=validation,
        test=test,
        inputs=math.prod(data.shape),
        outputs=len(data.classes),
        steps=steps_per_epoch(config, data),
    )


def steps_per_epoch(config: ImageConfig, data: Dataset) -> int:
    """The number of whole batches of training images, without those held out."""
    return (len(data.train_labels) - config.validation) // config.batch_size


def check_sizes(config: ImageConfig, data: Dataset) -> None:
    """Raises InputError where the configuration does not fit the data set, before the run's folder is made."""
    size = len(data.train_labels)
    if config.validation >= size:
        raise InputError(f"`validation` is {config.validation}: fewer than the {size} training images are needed")
    inputs = math.prod(data.shape)
    if config.residual and config.width == 0 and config.hidden != inputs:
        raise InputError(
            f"`residual` without an embedding needs `hidden` = {inputs}, the inputs; it is {config.hidden}"
        )
    if config.batch_size > size - config.validation:
        raise InputError(
            f"`batch_size` is {config.batch_size}: at most the {size - config.validation} training images are needed"
        )
    learning_rate(config, steps_per_epoch(config, data) * config.epochs)
    sizes = {name: getattr(config, name) for name in ("width", "hidden", "layers", "residual", "bias")}
    _check_network(ImageConfig(**sizes), inputs, len(data.classes))


@functools.cache
def _check_network(sizes: ImageConfig, inputs: int, outputs: int) -> None:
    check_model(lambda: make_model(sizes, inputs, outputs))
