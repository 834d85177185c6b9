"""A run that goes on beyond the end that it was begun with."""

import dataclasses
from typing import Any

from sqs_jax import display, files
from sqs_jax.messages import InputError
from sqs_jax.train.config import TrainConfig, length_of
from sqs_jax.train.config_file import to_json
from sqs_jax.train.run_folder import RunFolder, read_config

RESTART = (
    "With --resume and more --epochs or --steps: begin the cosine of the learning rate again where the run would have "
    "ended; by default it is stretched over the whole."
)
_LENGTH = ("epochs", "steps")
_MAY_CHANGE = (*_LENGTH, "restarts")


def with_restart(stored: Any, config: Any) -> Any:
    """A longer configuration, the cosine of which begins again where that of the stored one ends."""
    if length_of(config) <= length_of(stored):
        raise InputError("--restart goes with --resume and more --epochs or --steps than the run has")
    return dataclasses.replace(config, restarts=(*config.restarts, length_of(stored)))


def check_resumed(run: RunFolder, config: TrainConfig) -> bool:
    """Whether a configuration makes an existing run longer. Raises InputError where it differs in any other way."""
    stored = dataclasses.asdict(read_config(run))
    changed = [name for name, value in dataclasses.asdict(config).items() if stored[name] != value]
    for name in changed:
        if name not in _MAY_CHANGE:
            raise InputError(
                f"`{name}` is {getattr(config, name)!r}, but the run {run.path} has {stored[name]!r}: a resumed run "
                "keeps its own"
            )
    unit = "steps" if stored.get("steps") else "epochs"
    for name in changed:
        if name in _LENGTH and name != unit:
            raise InputError(f"`{name}` is {getattr(config, name)}: the run {run.path} is given in {unit}")
        if name in _LENGTH and getattr(config, name) <= stored[name]:
            raise InputError(
                f"`{name}` is {getattr(config, name)}, but the run {run.path} has {stored[name]}: a resumed run can be "
                "made longer, not shorter"
            )
    if "restarts" in changed:
        kept, added = config.restarts[: len(stored["restarts"])], config.restarts[len(stored["restarts"]) :]
        if unit not in changed or kept != stored["restarts"] or any(at < stored[unit] for at in added):
            raise InputError(
                f"`restarts` is {config.restarts}, but the run {run.path} has {stored['restarts']}: a resumed run "
                f"keeps its own, and with more {unit} than {stored[unit]} may have others from there on"
            )
    return bool(changed)


def extend(run: RunFolder, config: TrainConfig) -> None:
    """Gives a run its longer configuration. What was made of its earlier end is moved to `earlier/<length>/`."""
    stored = read_config(run)
    name = next(name for name in _LENGTH if getattr(stored, name, 0) != getattr(config, name, 0))
    before, after = getattr(stored, name), getattr(config, name)
    kept = run.earlier / str(before)
    for path in run.ends:
        if path.exists():
            kept.mkdir(parents=True, exist_ok=True)
            if (old := kept / path.name).exists():  # of a call that was killed in the middle
                files.remove(old)
            path.replace(old)
    files.write(run.config, to_json(config))
    again = config.restarts[len(stored.restarts) :]
    cosine = f"begins again at {again[-1]}" if again else "is stretched, so that its rate rises where it goes on"
    display.line(f"`{name}` {before} → {after}: the cosine of the learning rate {cosine}")
