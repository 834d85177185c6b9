"""The rows of `metrics.jsonl`, and when a run counts as diverged."""

from typing import Any, NamedTuple

import numpy as np


class Divergence(NamedTuple):
    """The first number of a run that is not finite."""

    metric: str
    value: Any
    step: int


def metrics_row(epoch: float, step: int, learning_rate: Any, losses: Any) -> dict[str, Any]:
    """The row of a round: the mean loss of its steps, and the learning rate of its last step."""
    rate = float(np.asarray(learning_rate))
    return {"epoch": epoch, "step": step, "learning_rate": rate, "train_loss": float(np.mean(losses))}


def divergence(
    losses: np.ndarray, end: int, *, parameters_finite: Any = True, validation_loss: float = 0.0
) -> Divergence | None:
    """The first number of a round that is not finite, or None: a loss, the parameters, the validation loss.

    `losses` (steps,) are those of the last steps up to the step `end`.
    """
    for i in np.flatnonzero(~np.isfinite(losses))[:1]:
        return Divergence("train_loss", losses[i], end - len(losses) + int(i) + 1)
    if not parameters_finite:
        return Divergence("parameters", "not finite", end)
    if not np.isfinite(validation_loss):
        return Divergence("validation_loss", validation_loss, end)
    return None
