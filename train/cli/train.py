"""The command line: `python -m train [data] [flags]`, `python -m train sweep …` and `python -m train sample …`."""

import dataclasses
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqs_jax import display
from sqs_jax.command_line import asks_help, fail, given, one_line_errors, print_help, program
from sqs_jax.messages import InputError, quoted
from sqs_jax.options import option, types_of
from sqs_jax.train.config import AdoptConfig, ImageConfig, TextConfig, TrainConfig, length_of
from sqs_jax.train.config_check import checked
from sqs_jax.train.config_file import from_json
from sqs_jax.train.extension import RESTART, with_restart
from sqs_jax.train.images.own_images import own_preset
from sqs_jax.train.keeping import Saving
from sqs_jax.train.layout import Layout
from sqs_jax.train.presets import IMAGES, OWN, TEXTS, name_of_text, preset, short_name
from sqs_jax.train.processes import Processes, ending_together, is_main, part, start
from sqs_jax.train.run_folder import RunFolder, check_free, read_config

_COMMANDS = ("sweep", "sample", "adopt")
_DESCRIPTION = f"""Train gated linear units (GLU) in a classifier of images or a Transformer on text, and read them.

  python -m train                                  digits: seconds, and no network
  python -m train mnist --noise-std 0.5 --seed 3   the paper's setting, but for the noise
  python -m train mnist --gate silu --run-dir runs/silu
  python -m train images:pets --size 32            your own: a folder with a folder for each class, or an .npz file
  python -m train stories                          a language model: a minute, and no network
  python -m train --text book.txt --layers 6       on any UTF-8 text
  python -m train --run-dir runs/silu --resume     after Ctrl-C, SIGTERM or a crash
  python -m train --config runs/silu/config.json --seed 1
  python -m train sample runs/stories-sqs-seed0 --prompt "Once upon a time"
  python -m train sweep mnist --gate sqs,bilinear --seeds 5   many networks at once, one table
  python -m train adopt SmolLM2-135M --gate bilinear --text corpus.txt   a pretrained model with another gate

Images: {", ".join(IMAGES)}, tfds:<name>, images:<path>.
Text: {", ".join(TEXTS[:-1])}, or --text FILE. Each has defaults and flags of its own, shown by
python -m train <data> --help. A run's folder holds config.json, metrics.jsonl, checkpoints/, summary.json,
report.html, spectrum.npz and pictures, of text also tokenizer.json and samples.txt.
An existing run is never overwritten."""


@dataclasses.dataclass(frozen=True)
class Paths:
    """Paths, and what is done with them."""

    run_dir: Path | None = option(None, "Folder of the run; default runs/<data>-<gate>-seed<seed>.")
    data_dir: Path | None = option(
        None, "Folder with the original files, in it or in a subfolder of the data set's name; default SQS_DATA_DIR."
    )
    config: Path | None = option(None, "A config.json to take the defaults from, instead of the data set's own.")
    restart: bool = option(False, RESTART)
    resume: bool = option(False, "Go on with the run in --run-dir from its last checkpoint.")
    report: bool = option(True, "Read the weights when training is done, and write report.html.")


@dataclasses.dataclass(frozen=True)
class Settings(Processes, Layout, Saving, Paths):
    """Paths of a run on images or text, when it is saved, how it lies on its devices, and its processes."""


_FLAGS = (ImageConfig, TextConfig, Settings)


def main(args: Sequence[str] | None = None) -> None:
    """Runs `python -m train` with these arguments; exits with 2 on bad input, 1 on a loss that is not finite."""
    args = sys.argv[1:] if args is None else args
    interrupted = "interrupted; a run that has begun goes on with --resume"
    with display.loud_again(), ending_together(), one_line_errors(InputError, interrupted=interrupted):
        if args and args[0] == "sample":
            from sqs_jax.train.cli.sample import main as sample

            sample(args[1:])
        elif args and args[0] == "sweep":
            from sqs_jax.train.cli.sweep import main as sweep

            sweep(args[1:])
        elif args and args[0] == "adopt":
            from sqs_jax.train.cli.adopt import main as adopt

            adopt(args[1:])
        elif len(args) > 1 and (meant := difflib.get_close_matches(args[0], _COMMANDS, n=1)):
            raise InputError(f"the command is {quoted(args[0])}: did you mean {meant[0]}?")
        else:
            config, run_dir, paths = parse(args)
            if isinstance(config, AdoptConfig):  # a run that is resumed
                from sqs_jax.train.cli.adopt import run

                if flags := [*_given(Layout, paths), *_given(Saving, paths), *_given(Processes, paths)]:
                    raise InputError(f"{flags[0]} is not for the adoption of a model")
                run(config, run_dir, paths)
            else:
                _run(config, run_dir, paths)


def parse(args: Sequence[str]) -> tuple[Any, Path, Settings]:
    """The configuration, checked, the run's folder and the other settings.

    What the flags set replaces fields of a base: the configuration of a run that is resumed, that of --config, or the
    preset of the data set. The base also decides which flags there are.
    """
    values = given(_FLAGS, args, prog=_program())
    paths = Settings(**{name: values.pop(name) for name in types_of(Settings) if name in values})
    if values.get("text") == "":
        raise InputError("`text` is '': the path of a file is needed")
    if asks_help(_FLAGS, args):
        shown = from_json(paths.config) if paths.config else _preset(values)
        print_help([shown, Settings], prog=_program(), description=_DESCRIPTION)
    if paths.resume and paths.config:
        raise InputError("--config and --resume exclude each other: a resumed run has its own configuration")
    if paths.resume:
        base = read_config(RunFolder(paths.run_dir or _default_dir(_replaced(_preset(values), values))))
    else:
        base = from_json(paths.config) if paths.config else _preset(values)
    config = _replaced(base, values)
    if paths.restart:
        config = with_restart(base if paths.resume else config, config)
    config = checked(config)
    return config, paths.run_dir or _default_dir(config), paths


def _preset(values: dict[str, Any]) -> TrainConfig:
    """The default configuration of the data that the flags name."""
    data = "text" if "text" in values else values.get("data", "digits")
    return own_preset(data) if data.startswith(OWN) else preset(data)


def _replaced(base: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """A configuration with the fields that flags set."""
    types = types_of(type(base))
    for name in values:
        if name not in types:
            flag = f"--{name.replace('_', '-')}"
            if isinstance(base, AdoptConfig):
                raise InputError(
                    f"{flag} is not for the adoption of a model: python -m train adopt --help lists the flags"
                )
            kind = "text" if isinstance(base, TextConfig) else "images"
            raise InputError(f"{flag} is not for {kind}, and {base.data} is {kind}")
    config = dataclasses.replace(base, **values)
    if isinstance(config, TextConfig) and "text" in values and config.data == TextConfig.data:
        config = dataclasses.replace(config, data="text")
    if isinstance(config, TextConfig) and "warmup" not in values and 0 < config.steps <= config.warmup:
        return dataclasses.replace(config, warmup=config.steps // 10)  # the default is for longer runs
    return config


def _run(config: ImageConfig | TextConfig, run_dir: Path, paths: Settings) -> None:
    start(paths)
    run = RunFolder(run_dir)
    if not paths.resume and is_main():
        check_free(run_dir)
    is_finished = paths.resume and run.summary.is_file() and read_config(run) == config
    display.about(f"{_described(config)}, in {run_dir}")
    if is_finished:
        unit = "steps" if getattr(config, "steps", 0) else "epochs"
        display.line(f"finished before; more than its {length_of(config)} --{unit} would make it longer")
    with display.stage(run_dir.name):
        summary = _trained(config, run_dir, paths)
        if not is_main():
            return
        test, seconds = summary["test"], summary["seconds"]
        figures = (
            f"accuracy {test['accuracy']:.4f}" if "accuracy" in test else f"{test['bits_per_byte']:.4f} bits per byte"
        )
        display.result(f"test loss {test['loss']:.4f}  {figures}  ({seconds:.1f} s of training)")
        if paths.report and not run.report.exists():
            from sqs_jax.analysis.report import write_report

            with display.stage("reading the weights", plain=True), one_line_errors(ValueError, ArithmeticError):
                write_report(run_dir, data_dir=paths.data_dir)
    for name in ("report.html", "eigenvectors.png", "curves.png", "samples.txt", "summary.json"):
        if (run_dir / name).exists():
            display.result(run_dir / name)


def _trained(config: ImageConfig | TextConfig, run_dir: Path, paths: Settings) -> dict[str, Any]:
    """The summary of the run; what stops it ends the command."""
    # Imported after the flags are known to be good: it takes a second.
    from sqs_jax.train.interrupt import Stopped
    from sqs_jax.train.loop import NonFiniteLossError, train_checked

    try:
        parts: dict[str, Any] = {"layout": _part(Layout, paths), "saving": _part(Saving, paths)}
        return train_checked(config, run_dir, data_dir=paths.data_dir, resume=paths.resume, **parts)
    except NonFiniteLossError as error:
        fail(str(error), 1)
    except Stopped as stop:
        part()  # all have stopped at the same step
        given = " ".join(
            [f"--run-dir {shlex.quote(str(run_dir))} --resume", *_given(Layout, paths), *_given(Saving, paths)]
        )
        command = f"{_program()} {given}"
        fail(f"{stop}; go on with: {command}", 128 + stop.number)


def _part(kind: Any, settings: Settings) -> Any:
    """The settings of one kind."""
    return kind(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)})


def _given(kind: Any, settings: Settings) -> list[str]:
    """The flags of the settings of one kind that are not the defaults."""
    own, plain = (dataclasses.asdict(each) for each in (_part(kind, settings), kind()))
    changed = {name.replace("_", "-"): value for name, value in own.items() if value != plain[name]}
    return [f"--{name}" if value is True else f"--{name} {value}" for name, value in changed.items()]


def _described(config: ImageConfig | TextConfig) -> str:
    """Data and network in a line."""
    gate = f"gate sqs (c {config.c:g}, λ {config.lam:g}, p {config.p:g})"
    if config.gate != "sqs":
        gate = f"gate {config.gate}"
    count = f"{config.layers} layer" + "s" * (config.layers > 1)
    network = f"{count} of width {config.width}" if isinstance(config, TextConfig) else f"{count} of {config.hidden}"
    return f"{getattr(config, 'text', '') or config.data}: {network}, {gate}, seed {config.seed}"


def _program() -> str:
    return program("train", "sqs")


def _default_dir(config: Any) -> Path:
    name = name_of_text(config.text) if isinstance(config, TextConfig) and config.text else config.data
    return Path("runs") / f"{short_name(name)}-{config.gate}-seed{config.seed}"
