"""The command line `python -m train adopt MODEL --gate sqs|bilinear --text FILE`: another gate for a model."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqs_jax import display
from sqs_jax.command_line import asks_help, fail, given, one_line_errors, print_help, program
from sqs_jax.messages import InputError
from sqs_jax.options import option, types_of
from sqs_jax.train.config import AdoptConfig
from sqs_jax.train.config_check import checked
from sqs_jax.train.config_file import from_json
from sqs_jax.train.extension import RESTART, with_restart
from sqs_jax.train.run_folder import RunFolder, read_config

_DESCRIPTION = """Give a pretrained language model another gate: one that is read exactly, or nearly so.

  python -m train adopt SmolLM2-135M --gate bilinear --text corpus.txt --control
  python -m train adopt SmolLM2-135M --gate sqs --text corpus.txt --stage distil
  python -m train adopt --run-dir runs/SmolLM2-135M-sqs-seed0 --resume

Each GLU is first fitted to what the model's own reads and gives, then all are trained end to end. The run's folder
holds model/, which programs of Hugging Face's formats read, and summary.json, whose `loss` says what each step cost."""


@dataclasses.dataclass(frozen=True)
class Paths:
    """Paths, and what is done with them."""

    run_dir: Path | None = option(None, "Folder of the run; default runs/<model>-<gate>-seed<seed>.")
    config: Path | None = option(None, "A config.json to take the defaults from.")
    restart: bool = option(False, RESTART)
    resume: bool = option(False, "Go on with the run in --run-dir.")
    report: bool = option(True, "Read both models when training is done, and write report.html.")


def main(args: Sequence[str]) -> None:
    """Runs `python -m train adopt` with these arguments; exits with 2 on bad input."""
    run(*parse(args))


def parse(args: Sequence[str]) -> tuple[AdoptConfig, Path, Paths]:
    """The configuration, checked, the run's folder and the other paths."""
    groups = (AdoptConfig, Paths)
    if asks_help(groups, args):
        print_help(groups, prog=_program(), description=_DESCRIPTION)
    values = given(groups, args, prog=_program())
    paths = Paths(**{name: values.pop(name) for name in types_of(Paths) if name in values})
    if paths.resume and paths.config:
        raise InputError("--config and --resume exclude each other: a resumed run has its own configuration")
    base = AdoptConfig(dtype=_default_dtype())
    if paths.resume:
        base = read_config(RunFolder(paths.run_dir or _default_dir(dataclasses.replace(base, **values))))
    elif paths.config:
        base = from_json(paths.config)
    if not isinstance(base, AdoptConfig):
        raise InputError(f"{paths.config or paths.run_dir} is no adoption: it names no model")
    config: Any = dataclasses.replace(base, **values)
    if "warmup" not in values and config.steps <= config.warmup:
        config = dataclasses.replace(config, warmup=config.steps // 10)  # the default is for longer runs
    if paths.restart:
        config = with_restart(base if paths.resume else config, config)
    return checked(config), paths.run_dir or _default_dir(config), paths


def _default_dtype() -> Any:
    """bfloat16 where the device computes it faster."""
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def run(config: AdoptConfig, run_dir: Path, paths: Any) -> None:
    """Adopts, and reports."""
    # Imported after the flags are known to be good: it takes a second.
    from sqs_jax.train.adoption.run_adoption import adopt
    from sqs_jax.train.interrupt import Stopped
    from sqs_jax.train.loop import NonFiniteLossError

    display.about(f"{config.model}: gate {config.gate}, on {config.text}, in {run_dir}")
    folder = RunFolder(run_dir)
    with display.stage(run_dir.name):
        try:
            summary = adopt(config, run_dir, resume=paths.resume)
        except NonFiniteLossError as error:
            fail(str(error), 1)
        except Stopped as stop:
            fail(f"{stop}; go on with: {_program()} --run-dir {shlex.quote(str(run_dir))} --resume", 128 + stop.number)
        losses = ", ".join(f"{name} {value:.4f}" for name, value in summary["loss"].items())
        display.result(f"loss, nats a token: {losses}")
        if paths.report and not folder.report.exists():
            from sqs_jax.analysis.report import write_report

            with display.stage("reading both models", plain=True), one_line_errors(ValueError, ArithmeticError):
                write_report(run_dir)
    for path in (folder.report, folder.model, folder.summary):
        if path.exists():
            display.result(path)


def _program() -> str:
    return f"{program('train', 'sqs')} adopt"


def _default_dir(config: AdoptConfig) -> Path:
    name = Path(config.model.removeprefix("hf:")).name.removesuffix(".gguf")
    return Path("runs") / f"{name}-{config.gate}-seed{config.seed}"
