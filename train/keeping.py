"""When a run is saved beside the rounds of its configuration, how many checkpoints are kept, how they are written."""

import dataclasses
import time

from sqs_jax.messages import InputError
from sqs_jax.options import COUNT, FINITE, ONE_OR_MORE, check_options, option
from sqs_jax.train.config import ImageConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Saving:
    """No part of a run's configuration: a run may go on with another."""

    save_steps: int = option(
        0, "Text: save also every so many steps, between two evaluations, too; 0 for never.", COUNT
    )
    save_minutes: float = option(0.0, "Save also every so many minutes; 0 for never.", FINITE)
    keep: int = option(
        1, "Checkpoints that are kept: the last so many, and beside them the best on validation.", ONE_OR_MORE
    )
    async_checkpoints: bool = option(
        False, "Write checkpoints while training goes on, from a copy of the state in the host's memory."
    )


_FEWEST = 0.01  # minutes: a step has to end between two saves
BY_ROUNDS = Saving()
"""As the configuration says, and no more."""


def check_saving(saving: Saving, config: TrainConfig) -> None:
    """Raises InputError for a field out of range, or that is not for this configuration."""
    check_options(saving)
    if 0 < saving.save_minutes < _FEWEST:
        raise InputError(f"`save_minutes` is {saving.save_minutes}: 0, or a number ≥ {_FEWEST} is needed")
    if saving.save_steps and isinstance(config, ImageConfig):
        raise InputError(f"`save_steps` is {saving.save_steps}: it goes with text; images have `save_every`, of epochs")


class Clock:
    """Which step, or what time, is the next at which a run is saved."""

    def __init__(self, saving: Saving):
        self._saving, self._last = saving, time.monotonic()

    def end(self, step: int, end: int) -> int:
        """Up to where is trained from `step` before a save; at most up to `end`."""
        every = self._saving.save_steps
        return min(end, (step // every + 1) * every) if every else end

    def is_at(self, step: int) -> bool:
        """Whether a step is one after which is saved."""
        return bool(self._saving.save_steps) and step % self._saving.save_steps == 0

    def is_due(self) -> bool:
        """Whether the minutes since the last save have passed."""
        return 0 < 60 * self._saving.save_minutes <= time.monotonic() - self._last

    def saved(self) -> None:
        """The run was saved now."""
        self._last = time.monotonic()
