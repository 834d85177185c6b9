"""The command line: `python -m train [data] [flags]`."""

import contextlib
import dataclasses
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import tyro

from sqs_jax.train.config import PRESETS, InputError, TrainConfig, check, from_json, preset
from sqs_jax.train.run_folder import RunFolder, read_config

_DESCRIPTION = f"""Train a gated linear unit (GLU) classifier on images, and read its eigenvectors from its weights.

  python -m train                                  digits: seconds, and no network
  python -m train mnist --noise-std 0.5 --seed 3   the paper's setting, but for the noise
  python -m train mnist --gate silu --run-dir runs/silu
  python -m train --run-dir runs/silu --resume     after Ctrl-C, SIGTERM or a crash
  python -m train --config runs/silu/config.json --seed 1

Data sets: {", ".join(PRESETS)}, tfds:<name>. Each has defaults of its own, shown by
python -m train <data> --help. A run's folder holds config.json, metrics.jsonl, checkpoints/, summary.json,
spectrum.npz, eigenvectors.png and curves.png. An existing run is never overwritten."""


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


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line says."""

    run: tyro.conf.OmitArgPrefixes[TrainConfig]
    files: tyro.conf.OmitArgPrefixes[Places]


def main(args: Sequence[str] | None = None) -> None:
    """Runs `python -m train` with these arguments; exits with 2 on bad input, 1 on a loss that is not finite."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # σ and λ on a terminal that has no such letters
    try:
        _run(*parse(sys.argv[1:] if args is None else args))
    except KeyboardInterrupt:
        _fail("interrupted; a run that has begun goes on with --resume", 130)
    except InputError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)


def parse(args: Sequence[str]) -> tuple[TrainConfig, Path, Places]:
    """The configuration, the run's folder and the other paths.

    The arguments are read twice: first for the data set, --config and --resume, which decide the defaults
    of the second reading.
    """
    asks_help = {"-h", "--help"}
    first = _read([arg for arg in args if arg not in asks_help], Command(TrainConfig(), Places()))
    run_dir = first.files.run_dir or Path("runs") / _run_name(first.run)
    if first.files.resume and first.files.config:
        raise InputError("--config and --resume exclude each other: a resumed run has its own configuration")
    if first.files.resume and asks_help.isdisjoint(args):
        base = read_config(RunFolder(run_dir))
    elif first.files.config:
        base = from_json(first.files.config)
    else:
        base = preset(first.run.data)
    command = _read(args, Command(base, Places()))
    check(command.run)
    return command.run, command.files.run_dir or Path("runs") / _run_name(command.run), command.files


def _run(config: TrainConfig, run_dir: Path, places: Places) -> None:
    # Imported after the flags are known to be good: it takes a second.
    from sqs_jax.train.loop import NonFiniteLossError, train
    from sqs_jax.train.stop import Stopped

    try:
        summary = train(config, run_dir, data_dir=places.data_dir, resume=places.resume)
    except NonFiniteLossError as error:
        _fail(str(error), 1)
    except Stopped as stop:
        command = f"{_program()} --run-dir {shlex.quote(str(run_dir))} --resume"
        _fail(f"{stop}; go on with: {command}", 128 + stop.number)
    test = summary["test"]
    print(f"test loss {test['loss']:.4f}  accuracy {test['accuracy']:.4f}  ({summary['seconds']:.1f} s of training)")
    for file in ("eigenvectors.png", "curves.png", "summary.json"):
        print(run_dir / file)


def _read(args: Sequence[str], default: Command) -> Command:
    """The command line by tyro, whose framed messages become one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                Command,
                prog=_program(),
                description=_DESCRIPTION,
                args=args,
                default=default,
            )
    except SystemExit as end:
        if end.code == 0:
            raise
        _fail(f"{_one_line(complaint.getvalue())} ({_program()} --help lists the flags)", 2)


def _one_line(framed: str) -> str:
    """What tyro says in a frame: title, message, then maybe the flags that could be meant, with rules between."""
    paragraphs: list[list[str]] = [[]]
    for line in framed.splitlines():
        content = line.strip("│ ")
        if line.startswith(("╭", "╰")) or set(content) <= {"─", "-"}:
            paragraphs.append([])
        else:
            paragraphs[-1].append(content)
    message, *rest = [lines for lines in paragraphs[1:] if lines]
    likely = [lines[1].split()[0] for lines in rest if lines[0].startswith("Perhaps")]
    return " ".join(message) + (f"; did you mean {likely[0]}?" if likely else "")


def _program() -> str:
    """How the command was called: from a clone's root, as an installed module, or by its installed name."""
    main_module = getattr(sys.modules["__main__"], "__spec__", None)
    if main_module and main_module.name == "sqs_jax.train.__main__":
        return "python -m sqs_jax.train"
    return "sqs" if Path(sys.argv[0]).stem == "sqs" else "python -m train"


def _run_name(config: TrainConfig) -> str:
    return f"{config.data.replace(':', '-')}-{config.gate}-seed{config.seed}"


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}" if code in (1, 2) else message, file=sys.stderr, flush=True)
    sys.exit(code)
