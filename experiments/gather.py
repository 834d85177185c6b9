"""The sections of both pages: which tables each is a function of."""

from collections.abc import Iterator
from typing import Any

from benchmarks.common import GATES
from experiments import beyond, paper
from experiments.section import Section, column, with_settings
from experiments.tables import Tables
from sqs_jax.train.sweep.grid import members
from sqs_jax.train.sweep.table import Row

_LEARNT = 0.5  # the accuracy that every network of a group has, or some did not learn


def paper_sections(tables: Tables) -> Iterator[Section]:
    """The paper's claims, experiments and predicted failures."""
    images = [name for name in ("mnist", "fashion_mnist") if name in tables.plan]
    data = {name: tables.plan[name].base.data for name in images}
    claimed = ({"bilinear": 0.978, "sqs": 0.979}, {"bilinear": 0.846, "sqs": 0.862})
    for number, (name, figures) in enumerate(zip(images, claimed, strict=False), 1):
        yield paper.accuracy(data[name], tables.rows(name), figures, number)
    yield paper.loss({data[name]: tables.rows(name) for name in images})
    for name in images:
        yield paper.similarity(_gates_beside(tables, name), data[name])
    for name in images:
        yield paper.classes(tables.readings(name), data[name])
    if not tables.quick:  # of language models there is no quick version
        machine, bits = tables.bits_per_byte()
        yield paper.language(bits, machine)
    yield paper.ablation(tables.rows("sensitivity"), tables.rows("mnist"))
    yield paper.sensitivity(tables.rows("sensitivity"), tables.readings("sensitivity"))
    yield paper.frechet({gate: tables.distances(gate) for gate in GATES[:2]})
    if "cifar10_jpeg" in tables.plan:
        yield paper.stress(tables.rows("cifar10_jpeg"))
    cells = ((0.0, 0.01), (0.01, 0.01), (0.5, 0.01), (2.0, 0.01), (5.0, 0.01), (0.5, 0.3), (0.5, 1.0))
    axes = tables.plan["extremes"].axes
    beside = {
        (lam, c): _beside_cell(tables, "extremes", lam, c) for lam, c in cells if lam in axes["lam"] and c in axes["c"]
    }
    extremes = tables.rows("extremes"), tables.readings("extremes")
    machine, seconds = tables.seconds()
    yield paper.failures(*extremes, beside, tables.rows("small_lam"), seconds, machine)


def beyond_sections(tables: Tables) -> Iterator[Section]:
    """What the paper does not ask."""
    for name in ("mnist", "fashion_mnist"):
        for noise in paper.NOISES if name in tables.plan else ():
            gates = {gate: with_settings(tables.readings(name), gate=gate, noise_std=noise) for gate in GATES}
            yield beyond.calibration(gates, _gates_beside(tables, name, noise), tables.plan[name].base.data, noise)
    cells = _cells(tables)
    others = {gate: with_settings(tables.readings("mnist"), gate=gate, noise_std=1.0) for gate in GATES[1:]}
    yield beyond.defaults({cell: networks for cell, (_, networks) in cells.items()}, others)
    for name, label, index in (("lam", "λ", 0), ("c", "c", 1), ("p", "p", 2)):
        along = sorted(cell for cell in cells if all(cell[i] == beyond.DEFAULT[i] for i in range(3) if i != index))
        points = [
            beyond.Point(cell[index], cells[cell][1], _beside_cell(tables, cells[cell][0], *cell)) for cell in along
        ]
        yield beyond.along(name, f"Along {label}", label, {"sqs": points}, _AT_DEFAULT)
    yield beyond.along("noise", "Along the noise", "noise", _lines(tables, ("noise", "mnist"), "noise_std"), _NOISE)
    chances = _lines(tables, ("noise_prob", "mnist"), "noise_prob")
    yield beyond.along("noise_prob", "Along the chance of noise", "chance", chances, _CHANCE)
    yield beyond.along("depth", "Along the depth", "layers", _lines(tables, ("depth", "mnist"), "layers"), _DEEP)
    widths = [name for name in tables.plan if name.startswith("width")]
    yield beyond.along("width", "Along the width", "width", _lines(tables, (*widths, "mnist"), "width"), _WIDE)
    starts = tables.plan["learnable"].axes["lam"]
    learnt = {lam: with_settings(tables.readings("learnable"), lam=lam) for lam in starts}
    fixed = {lam: with_settings(tables.readings("sensitivity"), lam=lam, c=0.01, p=1.0) for lam in starts}
    fixed = {lam: with_settings(tables.readings("sensitivity"), lam=lam, c=0.01, p=1.0) for lam in starts}
    yield beyond.learnable(learnt, fixed)


_AT_DEFAULT = "The other two of λ = 0.5, c = 0.01, p = 1 as they are; noise 1.0."
_NOISE = "Standard deviation of the noise on training images, whose pixels lie in [0, 1]; test images have none."
_CHANCE = "The chance with which an image gets the noise, of standard deviation 1.0, in a step."
_DEEP = (
    "Every GLU is replaced by its quadratic layer, and each reads what the one before it gives. Similarity is of the "
    "last layer's forms, in the coordinates of its input: those of two deep networks need not be the same. It is left "
    "out where a bilinear network did not learn its classes, so that there is nothing to be like."
)
_WIDE = "Embedding and GLU are of one width."


def _cells(tables: Tables) -> dict[beyond.Setting, tuple[str, dict[int, Row]]]:
    """The sweep and the readings of every (λ, c, p) of noise 1.0, the default among them."""
    cells: dict[beyond.Setting, tuple[str, dict[int, Row]]] = {}
    for name in ("extremes", "sensitivity"):
        grid, readings = tables.plan[name], tables.readings(name)
        for config in members(grid.base, grid.axes).values():
            networks = with_settings(readings, lam=config.lam, c=config.c, p=config.p)
            if networks:  # none where all diverged
                cells[config.lam, config.c, config.p] = name, networks
    return cells


def _usual(tables: Tables) -> dict[str, Any]:
    """What a network has where nothing else is asked for."""
    return {"noise_std": 1.0, "noise_prob": 1.0, "layers": 1, "width": tables.plan["mnist"].base.width}


def _lines(tables: Tables, names: tuple[str, ...], field: str) -> dict[str, list[beyond.Point]]:
    """The networks of some sweeps along a field, all else as usual."""
    lines: dict[str, list[beyond.Point]] = {}
    for gate in GATES[:2]:
        points = []
        for name in names:
            grid, readings = tables.plan[name], tables.readings(name)
            for value in grid.axes.get(field, (getattr(grid.base, field),)):
                settings = _usual(tables) | {field: value}
                if networks := with_settings(readings, gate=gate, **settings):
                    other = with_settings(readings, gate="bilinear", **settings)
                    compare = gate != "bilinear" and min(column(other, "accuracy").values(), default=0.0) > _LEARNT
                    beside = tables.beside(name, {"gate": gate} | settings, name, settings) if compare else None
                    points.append(beyond.Point(value, networks, beside))
        lines[gate] = sorted(points, key=lambda point: point.value)
    return lines


def _gates_beside(tables: Tables, name: str, noise: float = 1.0) -> dict[str, dict[str, Any] | None]:
    """Every other gate compared with bilinear networks of the same noise, all else as usual."""
    usual = _usual(tables) | {"noise_std": noise}
    return {gate: tables.beside(name, {"gate": gate} | usual, name, usual) for gate in GATES if gate != "bilinear"}


def _beside_cell(tables: Tables, name: str, lam: float, c: float, p: float = 1.0) -> dict[str, Any] | None:
    return tables.beside(name, {"lam": lam, "c": c, "p": p}, "mnist", _usual(tables))
