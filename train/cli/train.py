"""The command line: `python -m train [data] [flags]`, `python -m train sweep …` and `python -m train sample …`."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro

from sqs_jax.train.cli.terminal import fail, one_line_errors, program, read
from sqs_jax.train.config import (
    IMAGES,
    TEXTS,
    ImageConfig,
    InputError,
    TextConfig,
    TrainConfig,
    check,
    from_json,
    located,
    preset,
)
from sqs_jax.train.run_folder import RunFolder, read_config

_DESCRIPTION = f"""Train gated linear units (GLU) in a classifier of images or a Transformer on text, and read them.

  python -m train                                  digits: seconds, and no network
  python -m train mnist --noise-std 0.5 --seed 3   the paper's setting, but for the noise
  python -m train mnist --gate silu --run-dir runs/silu
  python -m train stories                          a language model: half a minute, and no network
  python -m train --text book.txt --layers 6       on any UTF-8 text
  python -m train --run-dir runs/silu --resume     after Ctrl-C, SIGTERM or a crash
  python -m train --config runs/silu/config.json --seed 1
  python -m train sample runs/stories-sqs-seed0 --prompt "Once upon a time"
  python -m train sweep mnist --gate sqs,bilinear --seeds 5   many networks at once, one table

Images: {", ".join(IMAGES)}, tfds:<name>. Text: {", ".join(TEXTS[:-1])}, or --text FILE. Each has defaults
and flags of its own, shown by python -m train <data> --help. A run's folder holds config.json, metrics.jsonl,
checkpoints/, summary.json, report.html, spectrum.npz and pictures, of text also tokenizer.json and samples.txt.
An existing run is never overwritten."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Where things lie."""

    run_dir: Path | None = None
    """Folder of the run; default runs/<data>-<gate>-seed<seed>."""
    data_dir: Path | None = None
    """Folder with the original files, in it or in a subfolder of the data set's name; default SQS_DATA_DIR."""
    config: Path | None = None
    """A config.json to take the defaults from, instead of the data set's own."""
    resume: bool = False
    """Go on with the run in --run-dir from its last checkpoint."""
    report: bool = True
    """Read the weights when training is done, and write report.html."""


@dataclasses.dataclass(frozen=True)
class ImageCommand:
    """What the command line says of a run on images."""

    run: tyro.conf.OmitArgPrefixes[ImageConfig]
    files: tyro.conf.OmitArgPrefixes[Places]


@dataclasses.dataclass(frozen=True)
class TextCommand:
    """What the command line says of a run on text."""

    run: tyro.conf.OmitArgPrefixes[TextConfig]
    files: tyro.conf.OmitArgPrefixes[Places]


def main(args: Sequence[str] | None = None) -> None:
    """Runs `python -m train` with these arguments; exits with 2 on bad input, 1 on a loss that is not finite."""
    args = sys.argv[1:] if args is None else args
    with one_line_errors(InputError, interrupted="interrupted; a run that has begun goes on with --resume"):
        if args and args[0] == "sample":
            from sqs_jax.train.cli.sample import main as sample

            sample(args[1:])
        elif args and args[0] == "sweep":
            from sqs_jax.train.cli.sweep import main as sweep

            sweep(args[1:])
        else:
            _run(*parse(args))


def parse(args: Sequence[str]) -> tuple[Any, Path, Places]:
    """The configuration, the run's folder and the other paths.

    The arguments are read twice: first for the data set, --config and --resume, which decide the flags and the
    defaults of the second reading.
    """
    asks_help = {"-h", "--help"}
    first = _first_reading([arg for arg in args if arg not in asks_help])
    run_dir = first.files.run_dir or Path("runs") / _run_name(first.run)
    if first.files.resume and first.files.config:
        raise InputError("--config and --resume exclude each other: a resumed run has its own configuration")
    if first.files.resume and asks_help.isdisjoint(args):
        base = read_config(RunFolder(run_dir))
    elif first.files.config:
        base = from_json(first.files.config)
    else:
        base = preset("text" if getattr(first.run, "text", "") else first.run.data)
    command = _read(args, base)
    config = command.run
    if any(flag == "--text=" or pair == ("--text", "") for flag, pair in zip(args, pairwise([*args, ""]), strict=True)):
        raise InputError("`text` is '': the path of a file is needed")
    if isinstance(config, TextConfig) and config.text and config.data == TextConfig.data:
        config = dataclasses.replace(config, data="text")
    if isinstance(config, TextConfig) and config.warmup == base.warmup and 0 < config.steps <= config.warmup:
        config = dataclasses.replace(config, warmup=config.steps // 10)  # the default is for longer runs
    config = located(config)
    check(config)
    return config, command.files.run_dir or Path("runs") / _run_name(config), command.files


def _first_reading(args: Sequence[str]) -> Any:
    """The arguments as those of a run on images or, where they are not, on text; what they say goes by the likelier."""
    is_text = any(arg in TEXTS or arg.partition("=")[0] == "--text" for arg in args)
    likely, other = (TextConfig, ImageConfig) if is_text else (ImageConfig, TextConfig)
    try:
        return _read(args, likely())
    except InputError as error:
        try:
            return _read(args, other())
        except InputError:
            raise error from None


def _run(config: TrainConfig, run_dir: Path, places: Places) -> None:
    # Imported after the flags are known to be good: it takes a second.
    from sqs_jax.train.interrupt import Stopped
    from sqs_jax.train.loop import NonFiniteLossError, train

    try:
        summary = train(config, run_dir, data_dir=places.data_dir, resume=places.resume)
    except NonFiniteLossError as error:
        fail(str(error), 1)
    except Stopped as stop:
        command = f"{_program()} --run-dir {shlex.quote(str(run_dir))} --resume"
        fail(f"{stop}; go on with: {command}", 128 + stop.number)
    test = summary["test"]
    figures = f"accuracy {test['accuracy']:.4f}" if "accuracy" in test else f"{test['bits_per_byte']:.4f} bits per byte"
    print(f"test loss {test['loss']:.4f}  {figures}  ({summary['seconds']:.1f} s of training)")
    if places.report and not RunFolder(run_dir).report.exists():
        print("reading the weights", flush=True)
        with one_line_errors(ValueError, ArithmeticError):
            _write_report(config, run_dir, places.data_dir)
    for file in ("report.html", "eigenvectors.png", "curves.png", "samples.txt", "summary.json"):
        if (run_dir / file).exists():
            print(run_dir / file)


def _write_report(config: TrainConfig, run_dir: Path, data_dir: Path | None) -> None:
    if isinstance(config, TextConfig):
        from sqs_jax.analysis.report.language_page import report_language as report
    else:
        from sqs_jax.analysis.report.image_page import report
    report(run_dir, data_dir=data_dir)


def _read(args: Sequence[str], base: TrainConfig) -> Any:
    kind = TextCommand if isinstance(base, TextConfig) else ImageCommand
    default = kind(base, Places())  # pyright: ignore[reportArgumentType] - of its kind
    return read(kind, args, prog=_program(), description=_DESCRIPTION, default=default)


def _program() -> str:
    return program("train", "sqs")


def _run_name(config: TrainConfig) -> str:
    name = Path(config.text).stem if isinstance(config, TextConfig) and config.text else config.data
    return f"{name.replace(':', '-')}-{config.gate}-seed{config.seed}"
