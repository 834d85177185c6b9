"""The command line `python -m train sweep DATA --gate A,B --seeds N …`: a grid of networks, one table and one page."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

from sqs_jax import display
from sqs_jax.command_line import fail, given, one_line_errors, program, read
from sqs_jax.gates import nearest
from sqs_jax.messages import InputError, first_line, quoted
from sqs_jax.options import needed, option, plain_type, types_of, value_of
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.config_check import checked
from sqs_jax.train.config_file import from_json
from sqs_jax.train.images.own_images import own_preset
from sqs_jax.train.presets import IMAGES, OWN, preset, short_name
from sqs_jax.train.sweep.grid import MOST_NETWORKS, NEVER_VARIED, Axes, parse_values

_DESCRIPTION = """Train every network of a grid of values, many at once where that is faster.

  python -m train sweep mnist --gate sqs,bilinear,relu,gelu,silu --seeds 5
  python -m train sweep mnist --lam 0.1,0.5,1.0 --c 0.001,0.01,0.1 --p 1,2
  python -m train sweep --file sweep.yaml --seeds 3
  python -m train sweep --sweep-dir sweeps/mnist --resume

Each flag of the second list takes one value or several, with commas between; its default is the data set's. The
sweep's folder holds results.csv (a row a network and epoch), report.html, and members/<name>/, each the folder of an
ordinary run, which python -m analysis reads. c, lam, p and learnable are varied for the gate sqs alone."""


@dataclasses.dataclass(frozen=True)
class HowToSweep:
    """What is swept, and how."""

    data: str | None = option(
        None,
        "Data set: digits, mnist, fashion_mnist, cifar10, cifar100, cifar10_jpeg, tfds:<name>, or your own, "
        "images:<path>.",
        positional=True,
    )
    size: int = option(0, "Images of your own in a folder: height and width that they get, as in python -m train.")
    file: Path | None = option(
        None,
        "A YAML or JSON file with any of these flags, a list where a flag takes several values; flags on the command "
        "line count more.",
    )
    seeds: int | None = option(None, "Number of seeds, from 0; or name them by --seed.")
    share_noise: bool = option(
        False,
        "Draw the noise of a step once for all networks: faster where the noise is most of a step. Networks of two "
        "seeds then see the same noise, and the spread between seeds does not include it.",
    )
    at_once: int = option(
        0, "Networks trained at once, at most; 0 for as many as fit (on a CPU one, unless they share seed or noise)."
    )
    memory: float = option(0.0, "GiB of a device that they may take; 0 for most of what is free.")
    sweep_dir: Path | None = option(None, "Folder of the sweep; default sweeps/<data>.")
    data_dir: Path | None = option(None, "Folder with the original files; default SQS_DATA_DIR.")
    config: Path | None = option(None, "A config.json to take the other values from, instead of the data set's own.")
    resume: bool = option(False, "Go on with the sweep in --sweep-dir.")
    report: bool = option(True, "Write report.html when all is trained.")


# What a grid can vary: the fields of a configuration but the data set, and how often a checkpoint is saved. Networks
# are named, and rows are sorted, in this order; a folder that was begun keeps it.
_ORDER = (
    "seed", "gate", "lam", "c", "p", "learnable", "layers", "width", "hidden", "residual", "bias", "lr", "weight_decay",
    "noise_std", "noise_prob", "warmup", "clip", "epochs", "batch_size", "validation", "dtype",
)  # fmt: skip
_COMMON = (*NEVER_VARIED, "save_every")
_FIELDS = {field.name: field for field in dataclasses.fields(ImageConfig) if field.name not in _COMMON}
_VARIED = tuple(_FIELDS[name] for name in dict.fromkeys((*_ORDER, *_FIELDS)))


_TAKEN_AS_TEXT = {field.name for field in _VARIED}


def _help(field: dataclasses.Field) -> str:
    """The help of a field, with the values that it may have where they are few."""
    annotation = types_of(ImageConfig)[field.name]
    few = annotation is bool or get_origin(annotation) is Literal
    return f"{field.metadata['help']} ({needed(annotation)})" if few else field.metadata["help"]


Options: Any = dataclasses.make_dataclass(
    "Options",
    [(field.name, str | None, option(None, _help(field), metavar="A,B")) for field in _VARIED],
    bases=(HowToSweep,),
    frozen=True,
    namespace={"__doc__": HowToSweep.__doc__},
)


def main(args: Sequence[str]) -> None:
    """Runs a sweep; exits with 2 on bad input and 128 + the signal's number when it is stopped."""
    options = read(Options, args, prog=_program(), description=_DESCRIPTION)
    if options.file:
        options = Options(**_from_file(options.file) | given([Options], args, prog=_program()))
    base, axes, sweep_dir = _grid(options)
    # Imported after the flags are known to be good: it takes a second.
    from sqs_jax.train.interrupt import Stopped
    from sqs_jax.train.run_folder import SweepFolder
    from sqs_jax.train.sweep.run_sweep import Grid, read_grid, sweep

    grid = Grid(base, axes, options.share_noise) if base else read_grid(sweep_dir)
    how = {"at_once": options.at_once, "memory": options.memory, "data_dir": options.data_dir}
    with display.stage(str(sweep_dir)):
        try:
            sweep(grid, sweep_dir, resume=options.resume, **how)
        except Stopped as stop:
            command = f"{_program()} --sweep-dir {shlex.quote(str(sweep_dir))} --resume"
            fail(f"{stop}; go on with: {command}", 128 + stop.number)
        display.result(SweepFolder(sweep_dir).results)
        if options.report:
            from sqs_jax.analysis.report import write_report

            with one_line_errors(ValueError):
                display.result(write_report(sweep_dir))


def _from_file(path: Path) -> dict[str, Any]:
    """The options in a YAML or JSON file. Raises InputError where one is unknown or ill-typed."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML or JSON: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds {quoted(content)}: flags and their values are needed, as in `gate: [sqs, relu]`"
        )
    types, values = types_of(Options), {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in types or name == "file":
            raise InputError(f"{path} has {quoted(key)}: {nearest(name, [name for name in types if name != 'file'])}")
        try:
            text = ",".join(_word(each) for each in (value if isinstance(value, list) else [value]))
            if name in _TAKEN_AS_TEXT:
                parse_values(name, text)
            values[name] = text if name in _TAKEN_AS_TEXT else value_of(text, plain_type(types[name]))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except ValueError as error:
            raise InputError(f"{path}: `{name}` is {quoted(value)}: {error}") from None
    return values


def _word(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError("a number, a text, true or false is needed, or a list of such")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _grid(options: Any) -> tuple[ImageConfig | None, Axes, Path]:
    """Base, axes and folder. The base is None for a sweep that is resumed as it is: its folder says everything."""
    texts = {field.name: getattr(options, field.name) for field in _VARIED}
    axes: dict[str, Any] = {name: parse_values(name, text) for name, text in texts.items() if text is not None}
    if options.seeds is not None:
        if "seed" in axes:
            raise InputError("--seeds and --seed exclude each other")
        if not 1 <= options.seeds <= MOST_NETWORKS:
            raise InputError(f"`seeds` is {quoted(options.seeds)}: a number from 1 to {MOST_NETWORKS} is needed")
        axes["seed"] = tuple(range(options.seeds))
    if options.resume and not (axes or options.data or options.config):
        if options.sweep_dir is None:
            raise InputError("--resume needs the folder of a sweep: --sweep-dir DIR")
        return None, {}, options.sweep_dir
    if options.config:
        base = from_json(options.config)
        base = dataclasses.replace(base, data=options.data) if options.data else base
    else:
        data = options.data or "digits"
        base = own_preset(data) if data.startswith(OWN) else preset(data)
    if not isinstance(base, ImageConfig):
        raise InputError(f"`data` is {base.data!r}: a sweep is on images, of {', '.join(IMAGES)} or tfds:<name>")
    if base.data.startswith(OWN) or options.size:
        base = checked(dataclasses.replace(base, size=options.size or base.size))
    base = dataclasses.replace(base, **{name: values[0] for name, values in axes.items() if len(values) == 1})
    axes = {name: values for name, values in axes.items() if len(values) > 1}
    return base, axes, options.sweep_dir or Path("sweeps") / short_name(base.data)


def _program() -> str:
    return f"{program('train', 'sqs')} sweep"
