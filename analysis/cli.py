"""The command line: `python -m analysis report …` and `python -m analysis compare … -- …`."""

import dataclasses
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from sqs_jax import display
from sqs_jax.analysis.calibration import Method
from sqs_jax.analysis.eigen import NotConvergedError
from sqs_jax.analysis.reading_kinds import Order, Reading
from sqs_jax.command_line import ANALYSIS, one_line_errors, print_version, program, read
from sqs_jax.gates import GATES, nearest
from sqs_jax.messages import InputError, one_line, quoted
from sqs_jax.options import COUNT, ONE_OR_MORE, check_options, option
from sqs_jax.pretrained.tensor_files import is_pretrained

_DESCRIPTION = """Read the weights of gated linear units.

  python -m analysis report runs/mnist-sqs-seed0                       a run: report.html and its numbers
  python -m analysis report runs/sqs --against runs/bilinear-*         beside other runs, with ceiling and nulls
  python -m analysis report SmolLM2-135M --text corpus.txt             a pretrained language model, layer by layer
  python -m analysis report --weights layer.safetensors --w up.weight --v gate.weight --out head.weight --transpose
  python -m analysis compare runs/sqs-* -- runs/bilinear-*             two groups of runs, a seed a run"""


@dataclasses.dataclass(frozen=True)
class Report:
    """report: the report of a run, a sweep, a pretrained language model, or weights of any framework."""

    run: str | None = option(
        None,
        "Folder of a finished run, or of a sweep; or a pretrained model: a Hugging Face folder, a .gguf file, or "
        "hf:owner/name.",
        positional=True,
    )
    method: Method | None = option(
        None,
        "Of a run, or with --inputs: gains that the spectrum is read with; all are measured. joint: least squares for "
        "the outputs, over all gains at once; output: for each hidden unit; with _affine a linear part beside them; "
        "bussgang: for the gate alone; gaussian: as if inputs were Gaussian; identity: 1. By default joint, with "
        "--inputs and a gate that is not odd joint_affine.",
    )
    against: tuple[Path, ...] = option(
        (),
        "Of a run: two or more others to compare it with. Of a pretrained model: other models, "
        "which are read on the same text, or folders of their readings.",
    )
    members: bool = option(False, "Of a sweep: write the report of every network, too, to which its page links.")
    data_dir: Path | None = option(None, "Folder with the original files of the run's data set; default SQS_DATA_DIR.")
    weights: Path | None = option(None, "A .safetensors or .npz file, or a folder of shards, instead of a run.")
    w: str | None = option(None, "Name in that file of the linear branch W (inputs, h).")
    v: str | None = option(None, "Name of the gate branch V (inputs, h).")
    gate_up: str | None = option(
        None, "Instead of both: name of one matrix (inputs, 2 h), the gate branch first, as a gate_up_proj is."
    )
    out: str | None = option(
        None, "Name of what reads the layer, P (h, outputs); without it the outputs are the hidden units."
    )
    embed: str | None = option(None, "Name of the embedding E (inputs, d).")
    w_bias: str | None = option(None, "Name of the bias of the linear branch (h,).")
    v_bias: str | None = option(None, "Name of the bias of the gate branch (h,).")
    norm: str | None = option(
        None,
        "Name of the scale (d,) of the norm before the layer, which is folded in: the report is then of what the norm "
        "gives before its scale.",
    )
    inputs: Path | None = option(
        None, "A .npy file (n, inputs) of what the layer read, for gains and their fidelity; goes with --gate."
    )
    gate: str | None = option(None, "With --inputs: gate σ of the layer, sqs, bilinear, relu, gelu or silu.")
    labels: Path | None = option(
        None, "With --inputs: a .npy file (n,) with the class of each input, where the outputs are classes."
    )
    transpose: bool = option(False, "Matrices stand as (outputs, inputs), as PyTorch's Linear has them.")
    shape: tuple[int, ...] = option((), "Of weights: shape of the inputs as an image: height width, or height width 3.")
    outputs: tuple[int, ...] = option(
        (), "Numbers of the outputs to read, from 0; by default all, of more than 64 the first 64."
    )
    out_dir: Path | None = option(
        None,
        "Folder for the report of weights, default runs/<name>-report, or of a model, default runs/<name>-reading.",
    )
    text: Path | None = option(None, "Of a pretrained model: the text that it is read on, UTF-8.")
    layers: str = option("", "Of a pretrained model: numbers of layers, from 0, with commas; by default all.")
    words: str = option(
        "",
        "Of a pretrained model: words with commas, each one token, the blank before it a part of it, as in "
        '" king, Monday"; by default the 200 most frequent tokens of the text.',
    )
    reading: tuple[Reading, ...] = option(
        ("affine",),
        "Of a pretrained model: how its gates are read, any of identity, joint, affine, surrogate; the eigenvectors "
        "are those of the last.",
    )
    tokens: int = option(
        0, "Of a pretrained model: tokens that readings are fitted on; 0 for a number that suits its width.", COUNT
    )
    pairs: int = option(4, "Of a pretrained model: eigenvectors of each word.", ONE_OR_MORE)
    order: Order = option(
        "size", "Of a pretrained model: the eigenvectors with the largest |λ|, or those that add most on the data."
    )
    seed: int = option(0, "Of a pretrained model: seed of surrogates.", COUNT)


@dataclasses.dataclass(frozen=True)
class Compare:
    """compare: two groups of runs, one before and one after `--`; the second gives the ceiling."""

    runs: tuple[Path, ...] = option(help="Folders of the first group.", positional=True)
    method: Method = option("joint", "Gains that every network is read with.")
    k: int = option(10, "Eigenvectors for each output.")
    data_dir: Path | None = option(None, "Folder with the original files of the data set; default SQS_DATA_DIR.")
    out_dir: Path = option(Path("runs/comparison"), "Folder for comparison.json and comparison.png.")


_COMMANDS = {"report": Report, "compare": Compare}


def main(args: Sequence[str] | None = None) -> None:
    """Runs `python -m analysis` with these arguments; exits with 2 on bad input."""
    args = list(sys.argv[1:] if args is None else args)
    prog = program("analysis")
    with display.loud_again(), one_line_errors(ValueError, NotConvergedError):
        name, *rest = args or [""]
        if name == "--version":
            print_version()
        if name not in _COMMANDS:
            if {"-h", "--help"} & set(args):
                display.end()
                print(f"{_DESCRIPTION}\n\n{prog} report --help and {prog} compare --help list the flags.")
                sys.exit(0)
            raise InputError(f"the command is {quoted(name)}: {nearest(name, _COMMANDS)} ({prog} --help shows both)")
        before, after = _groups(rest)
        command = read(_COMMANDS[name], before, prog=f"{prog} {name}", description=_DESCRIPTION)
        if isinstance(command, Compare):
            _compare(command, [Path(path) for path in after])
        elif after:
            raise InputError("report takes one run: `--` and a second group belong to compare")
        elif command.weights:
            _report_weights(command, shlex.join([*ANALYSIS, *args]))
        elif command.run and is_pretrained(command.run):
            _report_model(command, shlex.join([*ANALYSIS, *args]))
        elif command.run:
            _report(command)
        else:
            raise InputError("a run's folder, or --weights FILE, is needed")


def _groups(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without the second group, and that group: what follows `--` up to the next flag."""
    if "--" not in args:
        return args, []
    start = args.index("--")
    end = next((i for i in range(start + 1, len(args)) if args[i].startswith("-")), len(args))
    return args[:start] + args[end:], args[start + 1 : end]


_NAMES = ("gate_up", "w", "v", "out", "embed", "w_bias", "v_bias", "norm")
_OF_WEIGHTS = ("transpose", "shape", "inputs", "gate", "labels")
_OF_MODELS = ("text", "layers", "words", "tokens", "seed")


def _report(command: Report) -> None:
    from sqs_jax.analysis.report import write_report

    _refuse(command, (*_NAMES, *_OF_WEIGHTS, "out_dir"), "belongs to --weights FILE: a run has its own")
    _refuse(command, _OF_MODELS, "belongs to a pretrained model: a run has its own")
    assert command.run
    options = {name: getattr(command, name) for name in ("data_dir", "method", "against", "outputs", "members")}
    with display.stage(f"reading {command.run}"):
        page = write_report(Path(command.run), **options)
    display.result(page)


def _refuse(command: Report, names: Sequence[str], why: str) -> None:
    """Raises InputError for the first of these flags that is given."""
    if named := [name for name in names if getattr(command, name)]:
        raise InputError(f"--{named[0].replace('_', '-')} {why}")


def _report_model(command: Report, line: str) -> None:
    from sqs_jax.analysis.report.model_page import write_model_report

    _refuse(command, (*_NAMES, *_OF_WEIGHTS), "belongs to --weights FILE")
    _refuse(command, ("method", "data_dir", "outputs", "members"), "belongs to a run of python -m train")
    check_options(command)
    if not command.text:
        raise InputError("a pretrained model is read on a text: --text FILE is needed")
    assert command.run
    try:
        layers = tuple(int(part) for part in command.layers.split(",") if part.strip())
    except ValueError:
        raise InputError(f"--layers is {quoted(command.layers)}: numbers with commas, as in 4,12, are needed") from None
    with display.stage(f"reading {command.run}"):
        page = write_model_report(
            command.run,
            text=command.text,
            out_dir=command.out_dir,
            layers=tuple(dict.fromkeys(layers)),
            words=tuple(word for word in command.words.split(",") if word),
            readings=command.reading,
            tokens=command.tokens,
            pairs=command.pairs,
            order=command.order,
            seed=command.seed,
            against=command.against,
            command=line,
        )
    display.result(page)


def _report_weights(command: Report, line: str) -> None:
    from sqs_jax.analysis.recorded import read_recorded
    from sqs_jax.analysis.report.weights_page import write_weights_report
    from sqs_jax.analysis.weight_files import read_scale, read_weights

    assert command.weights
    _refuse(command, ("members",), "belongs to the folder of a sweep")
    if command.run or command.against or command.data_dir:
        raise InputError("--weights is read instead of a run, without its data: no run, --against or --data-dir")
    if not command.inputs:
        _refuse(command, ("gate", "labels", "method"), "goes with --inputs FILE, what the layer read")
    elif not command.gate:
        raise InputError(f"--inputs goes with --gate, the gate σ of the layer: {', '.join(GATES)}")
    names = {name: getattr(command, name) for name in _NAMES if getattr(command, name)}
    for part in ("w", "v"):
        if part not in names and "gate_up" not in names:
            raise InputError(f"--weights needs --{part}, or --gate-up: the name of an array in {command.weights}")
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        weights = read_weights(command.weights, names, transpose=command.transpose)
    for doubt in doubts:
        print(f"warning: {one_line(doubt.message)}".replace("`transpose`", "--transpose"), file=sys.stderr, flush=True)
    gate, recorded = command.gate, None
    if command.inputs and gate:
        if gate not in GATES:
            raise InputError(f"--gate is {quoted(gate)}: {nearest(gate, GATES)}")
        recorded = read_recorded(command.inputs, weights, command.labels)
        if command.norm:
            recorded = recorded.unscaled(read_scale(command.weights, command.norm))
    name = command.weights.resolve().name
    out = command.out_dir or Path("runs") / f"{Path(name).stem}-report"
    shape = command.shape or None
    with display.stage(f"reading {name}"):
        page = write_weights_report(
            weights,
            out,
            name=name,
            shape=shape,
            outputs=command.outputs,
            recorded=recorded,
            gate=gate,
            method=command.method,
            command=line,
        )
    display.result(page)


def _compare(command: Compare, others: list[Path]) -> None:
    from sqs_jax.analysis.report.two_groups import free_paths, table, write_comparison
    from sqs_jax.analysis.runs.compare import compare_runs

    if not others:
        raise InputError("a second group is needed after `--`: compare runs/a… -- runs/b…")
    free_paths(command.out_dir)  # before minutes are spent
    settings = {"method": command.method, "k": command.k, "data_dir": command.data_dir}
    with display.stage("comparing"):
        comparison = compare_runs(list(command.runs), others, **settings)
    display.result(comparison["note"])
    display.result(table(comparison))
    for path in write_comparison(comparison, command.out_dir):
        display.result(path)
