"""The command line: `python -m analysis report …` and `python -m analysis compare … -- …`."""

import dataclasses
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from sqs_jax.analysis.calibration import Method
from sqs_jax.analysis.eigen import NotConvergedError
from sqs_jax.messages import one_line
from sqs_jax.train.cli.terminal import one_line_errors, program, read
from sqs_jax.train.config import InputError, TextConfig
from sqs_jax.train.run_folder import RunFolder, SweepFolder, read_config

_DESCRIPTION = """Read the weights of gated linear units.

  python -m analysis report runs/mnist-sqs-seed0                       a run: report.html and its numbers
  python -m analysis report runs/sqs --against runs/bilinear-*         beside other runs, with ceiling and nulls
  python -m analysis report --weights layer.safetensors --w up.weight --v gate.weight --out head.weight --transpose
  python -m analysis compare runs/sqs-* -- runs/bilinear-*             two groups of runs, a seed a run"""


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of a run, into its folder, or of weights from a file of any framework."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a finished run, or of a sweep."""
    method: Method | None = None
    """Of a run: gains that the spectrum is read with, by default joint; all are measured."""
    against: tuple[Path, ...] = ()
    """Of a run: two or more others to compare it with."""
    data_dir: Path | None = None
    """Folder with the original files of the run's data set; default SQS_DATA_DIR."""
    weights: Path | None = None
    """A .safetensors or .npz file, or a folder of shards, instead of a run."""
    w: str | None = None
    """Name in that file of the linear branch W (inputs, h)."""
    v: str | None = None
    """Of the gate branch V (inputs, h)."""
    gate_up: str | None = None
    """Instead of both: of one matrix (inputs, 2 h), the gate branch first, as a gate_up_proj is."""
    out: str | None = None
    """Of what reads the layer, P (h, outputs); without it the outputs are the hidden units."""
    embed: str | None = None
    """Of the embedding E (inputs, d)."""
    w_bias: str | None = None
    """Of the bias of the linear branch (h,)."""
    v_bias: str | None = None
    """Of the bias of the gate branch (h,)."""
    transpose: bool = False
    """Matrices stand as (outputs, inputs), as PyTorch's Linear has them."""
    shape: tuple[int, ...] = ()
    """Of weights: shape of the inputs as an image: height width, or height width 3."""
    outputs: tuple[int, ...] = ()
    """Numbers of the outputs to read, from 0; by default all, of more than 64 the first 64."""
    out_dir: Path | None = None
    """Folder for the report of weights; default runs/<name of the file>-report."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare two groups of runs, one before and one after `--`: the second gives the ceiling."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of the first group."""
    method: Method = "joint"
    """Gains that every network is read with."""
    k: int = 10
    """Eigenvectors for each output."""
    data_dir: Path | None = None
    """Folder with the original files of the data set; default SQS_DATA_DIR."""
    out_dir: Path = Path("runs/comparison")
    """Folder for comparison.json and comparison.png."""


Command = Annotated[Report, tyro.conf.subcommand("report")] | Annotated[Compare, tyro.conf.subcommand("compare")]


def main(args: Sequence[str] | None = None) -> None:
    """Runs `python -m analysis` with these arguments; exits with 2 on bad input."""
    args = list(sys.argv[1:] if args is None else args)
    before, after = _groups(args)
    with one_line_errors(ValueError, NotConvergedError):
        command = read(Command, before, prog=program("analysis"), description=_DESCRIPTION)
        if isinstance(command, Compare):
            _compare(command, [Path(path) for path in after])
        elif after:
            raise InputError("report takes one run: `--` and a second group belong to compare")
        elif command.weights:
            _report_weights(command, shlex.join(["python", "-m", "analysis", *args]))
        elif command.run:
            _report(command)
        else:
            raise InputError("a run's folder, or --weights FILE, is needed")


def _groups(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without the second group, and that group: what follows `--` up to the next flag."""
    if "--" not in args:
        return args, []
    place = args.index("--")
    end = next((i for i in range(place + 1, len(args)) if args[i].startswith("-")), len(args))
    return args[:place] + args[end:], args[place + 1 : end]


def _report(command: Report) -> None:
    from sqs_jax.analysis.report.image_page import report
    from sqs_jax.analysis.runs.compare import compare_runs

    if named := [name for name in (*_NAMES, *_OF_WEIGHTS) if getattr(command, name)]:
        raise InputError(f"--{named[0].replace('_', '-')} belongs to --weights FILE: a run has its own")
    assert command.run
    if SweepFolder(command.run).grid.is_file():
        from sqs_jax.analysis.report.sweep_page import write_sweep_report

        if command.method or command.against or command.outputs:
            raise InputError("a sweep is shown by its table alone: no --method, no --against, no --outputs")
        print(write_sweep_report(command.run))
        return
    if isinstance(read_config(RunFolder(command.run)), TextConfig):
        if command.outputs:
            raise InputError("--outputs belongs to a run on images, or to --weights: tokens are looked up on the page")
        from sqs_jax.analysis.report.language_page import report_language

        found = report_language(
            command.run, data_dir=command.data_dir, method=command.method or "joint", against=command.against
        )
        print(found)
        return
    comparison, method = None, command.method or "joint"
    if command.against:
        others = list(command.against)
        comparison = compare_runs([command.run], others, method=method, k=None, data_dir=command.data_dir)
    chosen = {"outputs": command.outputs, "method": method, "comparison": comparison}
    print(report(command.run, data_dir=command.data_dir, **chosen))


_OF_WEIGHTS = ("transpose", "shape", "out_dir")
_NAMES = ("gate_up", "w", "v", "out", "embed", "w_bias", "v_bias")


def _report_weights(command: Report, line: str) -> None:
    from sqs_jax.analysis.report.image_page import report_weights
    from sqs_jax.analysis.weights import read_weights

    assert command.weights
    if command.run or command.against or command.data_dir or command.method:
        raise InputError("--weights is read instead of a run, without data: no run, --against, --data-dir or --method")
    names = {name: getattr(command, name) for name in _NAMES if getattr(command, name)}
    for part in ("w", "v"):
        if part not in names and "gate_up" not in names:
            raise InputError(f"--weights needs --{part}, or --gate-up: the name of an array in {command.weights}")
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        weights = read_weights(command.weights, names, transpose=command.transpose)
    for doubt in doubts:
        print(f"warning: {one_line(doubt.message)}".replace("`transpose`", "--transpose"), file=sys.stderr, flush=True)
    name = command.weights.resolve().name
    out = command.out_dir or Path("runs") / f"{Path(name).stem}-report"
    shape = command.shape or None
    print(report_weights(weights, out, name=name, shape=shape, outputs=command.outputs, command=line))


def _compare(command: Compare, others: list[Path]) -> None:
    from sqs_jax.analysis.runs.compare import compare_runs, free_places, table, write_comparison

    if not others:
        raise InputError("a second group is needed after `--`: compare runs/a… -- runs/b…")
    free_places(command.out_dir)  # before minutes are spent
    found = compare_runs(list(command.runs), others, method=command.method, k=command.k, data_dir=command.data_dir)
    print(found["note"])
    print(table(found))
    for path in write_comparison(found, command.out_dir):
        print(path)
