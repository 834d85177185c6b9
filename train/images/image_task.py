"""Training a classifier on images, as the loop wants it: an epoch is one compiled scan, and a round."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from sqs_jax.train.config import ImageConfig, InputError
from sqs_jax.train.images.dataset import Dataset, load, split_validation
from sqs_jax.train.memory import check_fits, check_model, check_program, shapes_of
from sqs_jax.train.optimizer import learning_rate, make_optimizer
from sqs_jax.train.step import (
    check_devices,
    data_mesh,
    first_state,
    make_epoch,
    make_evaluation,
    make_model,
    replicated,
)
from sqs_jax.train.task import Task


class Images(NamedTuple):
    """A data set on the device, and how a configuration takes it: what an epoch and an evaluation are called with."""

    images: jax.Array
    """Training images uint8 (n, …), with"""
    labels: jax.Array
    """their labels (n,),"""
    training: jax.Array
    """those that are trained on, by index,"""
    validation: jax.Array
    """those that are held out,"""
    test: tuple[jax.Array, jax.Array, jax.Array]
    """and the images, labels and indices of the test set."""
    inputs: int
    """Numbers in an image."""
    outputs: int
    """Classes."""
    steps: int
    """Steps an epoch."""


def load_images(config: ImageConfig, data_dir: Path | None) -> Dataset:
    """The data set of a configuration. Raises InputError for what does not fit."""
    data = load_fitting(config.data, data_dir)
    check_sizes(config, data)
    return data


def load_fitting(name: str, data_dir: Path | None) -> Dataset:
    """A data set, for any configuration. Raises InputError where it is more than the device's memory holds."""
    data = load(name, data_dir)
    check_fits(data.train_images.nbytes + data.test_images.nbytes, f"{data.name} takes")
    return data


def place_images(config: ImageConfig, data: Dataset, everywhere: NamedSharding) -> Images:
    """What a configuration takes of a data set, on the devices."""
    indices = split_validation(len(data.train_labels), config.validation)
    arrays = (np.asarray(data.train_images), np.asarray(data.train_labels), *indices)
    images, labels, training, validation = jax.device_put(arrays, everywhere)
    test = (np.asarray(data.test_images), np.asarray(data.test_labels), np.arange(len(data.test_labels)))
    return Images(
        images=images,
        labels=labels,
        training=training,
        validation=validation,
        test=jax.device_put(test, everywhere),
        inputs=math.prod(data.shape),
        outputs=len(data.classes),
        steps=steps_per_epoch(config, data),
    )


def make_task(config: ImageConfig, data_dir: Path | None) -> Task:
    """Loads the images, builds and lays out all that is trained. Raises InputError for what does not fit."""
    mesh = data_mesh()
    everywhere = replicated(mesh)
    check_devices(config.batch_size)
    found = place_images(config, load_images(config, data_dir), everywhere)
    steps = found.steps
    optimizer = make_optimizer(config, steps * config.epochs)
    model = make_model(config, found.inputs, found.outputs)
    epoch, evaluation = make_epoch(config, model, optimizer, mesh), make_evaluation(model, mesh)
    state = jax.eval_shape(lambda: first_state(model, optimizer))
    check_program(epoch, shapes_of(state, everywhere), found.images, found.labels, found.training)

    def run(state, end, stopping):
        del end, stopping  # an epoch is not interrupted
        state, losses = epoch(state, found.images, found.labels, found.training)
        return state, np.asarray(losses)

    def evaluate(params) -> dict[str, Any]:
        if not len(found.validation):
            return {}
        metrics = evaluation(params, found.images, found.labels, found.validation)
        return {"validation_loss": float(metrics.loss), "validation_accuracy": float(metrics.accuracy)}

    def test(params) -> dict[str, float]:
        metrics = evaluation(params, *found.test)
        return {"loss": float(metrics.loss), "accuracy": float(metrics.accuracy)}

    return Task(
        begin=lambda: jax.device_put(first_state(model, optimizer), everywhere),
        rate=learning_rate(config, steps * config.epochs),
        ends=[steps * epoch for epoch in range(1, config.epochs + 1)],
        epoch=lambda step: step // steps,
        checkpoint=lambda step: step // steps,
        run=run,
        evaluate=evaluate,
        test=test,
        files={},
        tokens=0,
    )


def steps_per_epoch(config: ImageConfig, data: Dataset) -> int:
    """Whole batches of the training images that are not held out."""
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
