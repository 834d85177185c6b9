"""Sweeps: the networks of a grid, trained in groups by one compiled program each, into one folder and one table."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sqs_jax import display, files
from sqs_jax.files import write
from sqs_jax.messages import InputError
from sqs_jax.train import run_folder
from sqs_jax.train.checkpoint import Checkpoints, Progress
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.config_file import from_fields, to_json
from sqs_jax.train.device_memory import free_memory
from sqs_jax.train.images.dataset import Dataset, own_facts
from sqs_jax.train.images.image_task import Images, check_sizes, load_fitting, place_images
from sqs_jax.train.interrupt import Stopped, StopSignals
from sqs_jax.train.layout import make_mesh, replicated
from sqs_jax.train.records import SweepRecord, read_record
from sqs_jax.train.run_folder import RunFolder, SweepFolder
from sqs_jax.train.sweep.grid import Axes, check_axes, members
from sqs_jax.train.sweep.table import Row, member_rows, to_csv
from sqs_jax.train.sweep.together import Member, compile_programs, memory_of, program_of, train_together

# Of the free memory; the compiler does not count everything.
_USABLE = 0.8
_AHEAD = 2  # groups whose programs are compiled, in as many threads, while one is trained

_Group = dict[str, ImageConfig]  # by name

Report = Callable[[str, dict[str, Any], int, int, float], None]


class Grid(NamedTuple):
    """What is swept."""

    base: ImageConfig
    """What all networks have in common."""
    axes: Axes
    """Fields, and the values that they take."""
    share_noise: bool = False
    """Whether all draw the noise of a step from the first seed."""


def print_member(name: str, end: Mapping[str, Any], done: int, count: int, seconds: float) -> None:
    """Prints a finished network, how many of how many are done, and the seconds it took."""
    if "diverged_at" in end:
        figures = f"diverged at step {end['diverged_at']}"
    else:
        figures = f"test loss {end['test']['loss']:.4f}  accuracy {end['test']['accuracy']:.4f}"
    display.line(f"[{done:>{len(str(count))}}/{count}]  {name}  {figures}  {seconds:.1f} s")


def sweep(
    grid: Grid,
    sweep_dir: str | Path,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    at_once: int = 0,
    memory: float = 0.0,
    report: Report = print_member,
) -> list[Row]:
    """Trains every network of a grid. Networks that differ only in numbers are trained by one compiled program.

    Each network ends with the numbers that `train` gives it, up to rounding; with `share_noise`, with others. In
    `sweep_dir` are `members/<name>/`, an ordinary run's folder for each network, and `results.csv`, a row a network and
    epoch. A network that diverges has a `diverged.json` in place of checkpoints and summary.

    Args:
      grid: the configuration, and the fields whose values are combined. c, λ, p and learnable are the gate sqs's alone.
        With `share_noise` the noise is drawn once for all that are trained at once, which costs less; the results of
        two seeds are then not independent.
      sweep_dir: the folder; there must be nothing there, or with `resume` a sweep of the same grid.
      data_dir: as for `train`.
      resume: goes on with the networks that are not finished.
      at_once: networks trained at once, at most; 0 for as many as fit, but one on a CPU where they differ in their
        batches or noise.
      memory: GiB that they may take on a device; 0 for most of what it has free.
      report: called after each network with its name, its summary or where it diverged, how many are done, of how many,
        and the seconds it took: its share of its group's, without what was compiled beside another group's.

    Returns the rows of `results.csv`.

    Raises:
      InputError: a grid that is empty or has a value out of range, a data set that cannot be had or does not fit, a
        folder in the way or in use.
      Stopped: SIGINT or SIGTERM; the group in training is lost, those before it are kept.
      OSError: the folder cannot be written.
    """
    folder = SweepFolder(Path(sweep_dir))
    configs = members(grid.base, grid.axes)
    for name, value in (("at_once", at_once), ("memory", memory)):
        if not 0 <= value < math.inf:
            raise InputError(f"`{name}` is {value}: a number ≥ 0 is needed")
    data, facts = _begun(folder, grid, configs, Path(data_dir) if data_dir else None, resume)
    with run_folder.alone(folder.path), StopSignals() as signals:
        _train_left(folder, grid, configs, data, facts, _Limits(at_once, memory, lambda: signals.received), report)
        rows = _rows(folder, grid)
        write(folder.results, to_csv(rows))  # also where a sweep was killed between its last network and the table
    return rows


def _begun(folder: SweepFolder, grid: Grid, configs, data_dir: Path | None, resume: bool):
    """Checks a sweep, makes its folder unless it is resumed, and returns its data set and the files that tell of it."""
    if resume:
        _check_same(folder, grid)
    else:
        run_folder.check_free(folder.path, "--sweep-dir")
    with display.stage(f"loading {grid.base.data}"):
        data = load_fitting(grid.base, data_dir)
    for config in configs.values():
        check_sizes(config, data)
    facts = own_facts(grid.base.data, data)
    if resume:
        run_folder.check_same_files(folder, facts)
    else:
        run_folder.create(folder.path, facts | {folder.grid.name: _to_json(grid)}, "--sweep-dir")
    return data, facts


class _Limits(NamedTuple):
    """What bounds a group of networks: their number, GiB, and a request to stop."""

    at_once: int
    memory: float
    stopping: Callable[[], Any]


def _train_left(
    folder: SweepFolder, grid: Grid, configs, data: Dataset, facts: dict[str, str], limits: _Limits, report: Report
) -> None:
    """Trains the networks that are not finished, and files each."""
    folder.members.mkdir(exist_ok=True)
    files.clean(folder.members)
    about = run_folder.provenance()
    noise_seed = min(config.seed for config in configs.values()) if grid.share_noise else None
    left = _left(folder, configs)
    with display.stage("training", len(configs), "networks") as shown:
        shown.at(len(configs) - len(left))
        for name, member, seconds in _trained(left, data, noise_seed, limits):
            end = _file(folder.member(name), member, seconds, about, facts)
            write(folder.results, to_csv(_rows(folder, grid)))
            done = len(configs) - len(_left(folder, configs))
            shown.at(done)
            report(name, end, done, len(configs), seconds)


def read_grid(sweep_dir: Path) -> Grid:
    """The grid of an existing sweep. Raises InputError where there is none, or it is damaged."""
    path = SweepFolder(sweep_dir).grid
    if not path.is_file():
        raise InputError(f"{sweep_dir} is not the folder of a sweep: it has no {path.name}")
    fields = read_record(path, SweepRecord)
    axes = {name: tuple(values) for name, values in fields["axes"].items()}
    grid = Grid(from_fields(fields["base"], path), axes, fields["share_noise"])
    check_axes(grid.base, grid.axes)
    return grid


def _to_json(grid: Grid) -> str:
    fields = {"base": json.loads(to_json(grid.base)), "axes": grid.axes, "share_noise": grid.share_noise}
    return json.dumps(fields, indent=2) + "\n"


def _check_same(folder: SweepFolder, grid: Grid):
    stored = read_grid(folder.path)
    if _to_json(stored) != _to_json(grid):
        raise InputError(f"{folder.path} has another grid, see {folder.grid}: a resumed sweep keeps its own")


def _left(folder: SweepFolder, configs: Mapping[str, ImageConfig]) -> dict[str, ImageConfig]:
    """The networks that are not finished."""
    return {name: config for name, config in configs.items() if not folder.member(name).path.exists()}


def _rows(folder: SweepFolder, grid: Grid) -> list[Row]:
    """The rows of all finished networks, in the order of the grid."""
    varied = [name for name, values in grid.axes.items() if len(values) > 1]
    configs = members(grid.base, grid.axes).items()
    finished = [(folder.member(name), config) for name, config in configs if folder.member(name).path.exists()]
    return [row for run, config in finished for row in member_rows(run, config, varied)]


def _file(
    run: RunFolder, member: Member, seconds: float, about: dict[str, Any], facts: dict[str, str]
) -> dict[str, Any]:
    """Writes the folder of a network, and returns how it ended."""
    with files.appearing(run.path) as path:
        partial = RunFolder(path)
        for name, content in (facts | {partial.config.name: to_json(member.config)}).items():
            write(path / name, content)
        run_folder.write_metrics(partial, member.history)
        if member.test is None:
            end: dict[str, Any] = {"diverged_at": member.diverged}
            write(partial.diverged, json.dumps(end) + "\n")
            return end
        progress = Progress(len(member.history), seconds, 0.0, member.history)
        checkpoints = Checkpoints(partial.checkpoints, has_validation=member.config.validation > 0)
        checkpoints.save(len(member.history), member.state, progress)
        end = run_folder.summary(member.test, member.history, seconds) | about
        write(partial.summary, json.dumps(end, indent=2, allow_nan=False) + "\n")
        return end


def _trained(
    configs: dict[str, ImageConfig], data: Dataset, noise_seed: int | None, limits: _Limits
) -> Iterator[tuple[str, Member, float]]:
    """Trains the networks, group by group: each with its name, and its share of the group's seconds."""
    images, taken = None, None
    groups = _groups(configs)
    compiled: dict[Any, Future[int]] = {}
    threads = ThreadPoolExecutor(_AHEAD)
    try:
        for i, group in enumerate(groups):
            if images is None or taken != _batches(group):
                images, taken = place_images(_first(group), data, replicated(make_mesh())), _batches(group)
            for later in groups[i : i + 1 + _AHEAD]:
                if _batches(later) == taken and _key(later) not in compiled:
                    compiled[_key(later)] = threads.submit(_compile, list(later.values()), images, noise_seed, limits)
            ahead = compiled[_key(group)]
            failed = ahead.exception()  # fails again here, which answers
            size = _size(list(group.values()), images, noise_seed, limits) if failed else ahead.result()
            yield from _train_group(group, size, images, noise_seed, limits)
    finally:
        threads.shutdown(cancel_futures=True)


def _first(group: _Group) -> ImageConfig:
    return next(iter(group.values()))


def _batches(group: _Group) -> tuple[int, int]:
    """What the split of the images follows from."""
    return _first(group).batch_size, _first(group).validation


def _key(group: _Group) -> tuple[ImageConfig, int]:
    """Of groups with the same key one alone is compiled ahead."""
    return program_of(_first(group)), len(group)


def _compile(configs: list[ImageConfig], images: Images, noise_seed: int | None, limits: _Limits) -> int:
    """Compiles what a group is trained by, in a thread, and returns how many of it are trained at once."""
    size = _size(configs, images, noise_seed, limits)
    compile_programs(configs[:size], images, noise_seed=noise_seed)
    return size


def _groups(configs: _Group) -> list[_Group]:
    """The networks in groups of one program. Those of one seed, which see the same batches and noise, stay together."""
    programs: dict[ImageConfig, list[str]] = {}
    for name, config in configs.items():
        programs.setdefault(program_of(config), []).append(name)
    groups = []
    for names in programs.values():
        seeds: dict[int, list[str]] = {}
        for name in names:
            seeds.setdefault(configs[name].seed, []).append(name)
        groups += [names] if len(seeds) == len(names) else seeds.values()
    return [{name: configs[name] for name in names} for names in groups]


def _size(configs: list[ImageConfig], images: Images, noise_seed: int | None, limits: _Limits) -> int:
    """How many networks of a group are trained at once: parts about as large as each other."""
    return _even(len(configs), _at_once(configs, images, noise_seed, limits.at_once, limits.memory))


def _at_once(configs: list[ImageConfig], images: Images, noise_seed: int | None, at_once: int, memory: float) -> int:
    """How many networks of a program are trained at once.

    On a CPU networks that differ in their noise are trained one at a time: more at once are no faster there, as
    `benchmarks.sweep` measures.
    """
    devices = jax.device_count()
    alike = noise_seed is not None or len({config.seed for config in configs}) == 1
    if len(configs) <= devices or (not at_once and jax.default_backend() == "cpu" and not alike):
        return at_once or devices
    if at_once and not memory:
        return at_once  # halved where it does not fit
    size, room = min(at_once or len(configs), len(configs)), memory * 2**30 or _USABLE * free_memory()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # too many for the compiler: halved, as in training
        if (taken := memory_of(configs[:size], images, noise_seed=noise_seed)) > room:
            return devices * max(1, int(size * room / taken) // devices)
    return size


def _train_group(group: _Group, size: int, images: Images, noise_seed, limits: _Limits):
    """Trains networks of one program, `size` at a time. A part that does not fit into memory is halved."""
    names = list(group)
    while names:
        if stop := limits.stopping():
            raise Stopped(stop)
        part, start = names[:size], time.perf_counter()
        try:
            trained = train_together(
                [group[name] for name in part], images, noise_seed=noise_seed, stopping=limits.stopping
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if len(part) == 1:
                raise InputError(f"{part[0]} alone is more than the memory holds: {error}") from None
            size = -(-len(part) // 2)
            display.line(f"out of memory with {len(part)} networks at once: going on with {size}")
            continue
        if not trained:
            continue  # to the stop
        seconds = (time.perf_counter() - start) / len(part)
        for name, member in zip(part, trained, strict=True):
            yield name, member, seconds
        names = names[size:]


def _even(count: int, most: int) -> int:
    """The size of parts of `count`: as few parts as possible, each of `most` or fewer, all about equal."""
    return -(-count // -(-count // most))
