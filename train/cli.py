"""The command line: `python -m train [data] [flags]`."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from sqs_jax.train.config import PRESETS, InputError, TrainConfig, check, from_json, preset
from sqs_jax.train.run_folder import RunFolder, read_config
from sqs_jax.train.terminal import fail, one_line_errors, program, read

_DESCRIPTION = f"""Train a gated linear unit (GLU) classifier on images, and read its eigenvectors from its weights.

  python -m train                                  digits: seconds, and no network
  python -m train mnist --noise-std 0.5 --seed 3   the paper's setting, but for the noise
  python -m train mnist --gate silu --run-dir runs/silu
  python -m train --run-dir runs/silu --resume     after Ctrl-C, SIGTERM or a crash
  python -m train --config runs/silu/config.json --seed 1

Data sets: {", ".join(PRESETS)}, tfds:<name>. Each has defaults of its own, shown by
python -m train <data> --help. A run's folder holds config.json, metrics.jsonl, checkpoints/, summary.json,
report.html, spectrum.npz, eigenvectors.png and curves.png. An existing run is never overwritten."""


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
class Command:
    """What the command line says."""

    run: tyro.conf.OmitArgPrefixes[TrainConfig]
    files: tyro.conf.OmitArgPrefixes[Places]


def main(args: Sequence[str] | None = None) -> None:
    """Runs `python -m train` with these arguments; exits with 2 on bad input, 1 on a loss that is not finite."""
    with one_line_errors(InputError, interrupted="interrupted; a run that has begun goes on with --resume"):
        _run(*parse(sys.argv[1:] if args is None else args))


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
        fail(str(error), 1)
    except Stopped as stop:
        command = f"{_program()} --run-dir {shlex.quote(str(run_dir))} --resume"
        fail(f"{stop}; go on with: {command}", 128 + stop.number)
    test = summary["test"]
    print(f"test loss {test['loss']:.4f}  accuracy {test['accuracy']:.4f}  ({summary['seconds']:.1f} s of training)")
    if places.report and not RunFolder(run_dir).report.exists():
        from sqs_jax.analysis.report import report

        print("reading the weights", flush=True)
        with one_line_errors(ValueError):
            report(run_dir, data_dir=places.data_dir)
    for file in ("report.html", "eigenvectors.png", "curves.png", "summary.json"):
        if (run_dir / file).exists():
            print(run_dir / file)


def _read(args: Sequence[str], default: Command) -> Command:
    return read(Command, args, prog=_program(), description=_DESCRIPTION, default=default)


def _program() -> str:
    return program("train", "sqs")


def _run_name(config: TrainConfig) -> str:
    return f"{config.data.replace(':', '-')}-{config.gate}-seed{config.seed}"
