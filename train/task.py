"""`Task`, the interface between the loop and what is trained: images, text, or a pretrained model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sqs_jax.display import Stage
from sqs_jax.train.config import AdoptConfig, TextConfig, TrainConfig
from sqs_jax.train.layout import Layout
from sqs_jax.train.step import Parameters, TrainState


class Task(Protocol):
    """A run, ready to be trained: `ImageTask`, `LanguageTask` or `AdoptionTask`.

    Steps count from 0. A run consists of rounds; each round ends with an evaluation.
    """

    ends: list[int]
    """The steps at which the rounds end."""
    about: str
    """What is trained on what, in a line."""
    unit: str
    """What is counted by `per_step`."""
    per_step: int
    """How many of these a step takes."""
    chosen: dict[str, str]
    """What was chosen for the devices at hand; the summary says it."""
    files: dict[str, str]
    """What the run's folder holds from the beginning beside its configuration; a resumed run finds it unchanged."""

    def begin(self, folder: Path, stopping: Callable[[], Any]) -> TrainState:
        """The state that training begins with; what it takes long to find is kept in the run's folder.

        Raises Stopped where `stopping()` meanwhile gives a signal's number.
        """
        ...

    def train(
        self, state: TrainState, end: int, stopping: Callable[[], Any], shown: Stage
    ) -> tuple[TrainState, np.ndarray]:
        """Trains up to the step `end`, or less far once `stopping()`; the new state and the losses (steps,).

        Where steps are calls of their own, `shown` is told of each.
        """
        ...

    def evaluate(self, params: Parameters) -> dict[str, Any]:
        """Evaluates; returns what is added to the row of metrics of a round."""
        ...

    def test(self, params: Parameters) -> dict[str, float]:
        """The figures of the finished network."""
        ...

    def learning_rate(self, step: int) -> Any:
        """The learning rate of a step."""
        ...

    def epoch(self, step: int) -> float:
        """Passes over the training data by step."""
        ...

    def checkpoint_number(self, step: int) -> int:
        """The number of the checkpoint that is saved at a step."""
        ...

    def progress_line(self, row: dict[str, Any], seconds: float) -> str:
        """The line that is printed after a round; "" for none."""
        ...


def make_task(config: TrainConfig, data_dir: Path | None, layout: Layout) -> Task:
    """The task of a configuration, its data loaded and its step compiled. Raises InputError for what does not fit."""
    if isinstance(config, AdoptConfig):
        from sqs_jax.train.adoption.adoption_task import AdoptionTask

        return AdoptionTask(config)
    if isinstance(config, TextConfig):
        from sqs_jax.train.text.language_task import LanguageTask

        return LanguageTask(config, data_dir, layout)
    from sqs_jax.train.images.image_task import ImageTask

    return ImageTask(config, data_dir, layout)
