"""What the loop has to know of a kind of data and network: `images.make_task` and `language.make_task` say it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

from sqs_jax.train.step import Parameters, TrainState


class Task(NamedTuple):
    """A run, ready to be trained. Steps are counted from 0 at its beginning; rounds end with an evaluation."""

    begin: Callable[[], TrainState]
    """The state that it begins with."""
    rate: optax.Schedule
    """The learning rate by step."""
    ends: list[int]
    """The steps at which the rounds end."""
    epoch: Callable[[int], float]
    """Passes over the training data by step."""
    checkpoint: Callable[[int], int]
    """The number of the checkpoint that is saved at a step."""
    run: Callable[[TrainState, int, Callable[[], Any]], tuple[TrainState, np.ndarray]]
    """(state, end, stopping) → (state, losses (steps,)): trains up to the step `end`, or less far if `stopping()`."""
    evaluate: Callable[[Parameters], dict[str, Any]]
    """What the evaluation at the end of a round adds to its row of metrics."""
    test: Callable[[Parameters], dict[str, float]]
    """The figures of the finished network."""
    files: dict[str, str]
    """What the run's folder holds from the beginning beside its configuration; a resumed run finds it unchanged."""
    tokens: int
    """Tokens that a step trains on; 0 where there are none."""
