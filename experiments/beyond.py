"""What the paper does not ask, each a function of saved tables: what fidelity and similarity depend on; defaults."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.common import markdown_table as table
from experiments import figures
from experiments.section import Section, at, average, column, mean
from experiments.verdicts import Interval, Verdict, above, apart, difference, interval
from sqs_jax.train.sweep.table import Row

Networks = Mapping[int, Row]
"""What is read from the networks of one setting, by seed."""
Measures = dict[str, Any]
"""Of a comparison with bilinear networks of the same seeds."""
Setting = tuple[float, float, float]
"""λ, c and p."""

DEFAULT: Setting = (0.5, 0.01, 1.0)
# R² and agreement closer than this are called equal, and so are accuracies.
_AS_READABLE, _AS_ACCURATE = 0.01, 0.002
_GAIN = 0.001
"""What a change has to add, to count."""


class Point(NamedTuple):
    """The networks of one setting along an axis."""

    value: float
    readings: Networks
    beside: Measures | None


_PARTS = {
    "accuracy": "test accuracy",
    "r2_joint": "R², joint gains",
    "agreement_joint": "agreement, joint gains",
    "agreement_identity": "agreement, no gains",
}
_SIMILARITY = ("|cos| at rank 1", "overlap of the first 10")


def along(name: str, title: str, label: str, lines: Mapping[str, Sequence[Point]], text: str = "") -> Section:
    """Accuracy, fidelity and similarity to bilinear networks as functions of one setting, a line a gate."""
    shown = ("test accuracy", "R², joint gains", "agreement, no gains", "overlap of the first 10")
    panels: dict[str, dict[str, list[tuple[float, Interval]]]] = {quantity: {} for quantity in shown}
    body = []
    for gate, points in lines.items():
        for point in points:
            intervals = {head: average(point.readings, part) for part, head in _PARTS.items()}
            intervals |= dict(zip(_SIMILARITY, similar(point.beside), strict=True))
            body.append((gate, f"{point.value:g}", *(value.text() for value in intervals.values())))
            for quantity in shown:
                panels[quantity].setdefault(gate, []).append((point.value, intervals[quantity]))
    verdicts = _ends_differ(lines["sqs"], label) if lines["sqs"] else []
    tables = [table(("gate", label, *_PARTS.values(), *_SIMILARITY), body)]
    return Section(name, title, text, verdicts, tables, figures.along(panels, label))


def _ends_differ(points: Sequence[Point], label: str) -> list[Verdict]:
    first, last = points[0], points[-1]
    verdicts = []
    for part in ("accuracy", "r2_joint", "agreement_identity"):
        more = difference(column(last.readings, part), column(first.readings, part))
        best = max(points, key=lambda point: _rank(average(point.readings, part)))
        claim = (
            f"sqs, {_PARTS[part]}: differs between {label} {first.value:g} and {last.value:g} "
            f"(best mean at {best.value:g})"
        )
        verdicts.append(Verdict(claim, "difference ≠ 0", more, apart(more, 0)))
    return verdicts


def _rank(interval_of: Interval) -> float:
    return interval_of.mean if math.isfinite(interval_of.mean) else -math.inf


def similar(beside: Measures | None) -> tuple[Interval, Interval]:
    """|cos| of the first eigenvectors and overlap of the spans of the first ten, of networks that began as one."""
    if beside is None or not beside["rank_cosine"].get("shared"):
        return interval([]), interval([])
    return at(beside["rank_cosine"]["shared"], 0), at(beside["overlap"]["shared"], -1)


def calibration(
    readings: Mapping[str, Networks], beside: Mapping[str, Measures | None], data: str, noise: float
) -> Section:
    """Whether gains make GELU, SiLU and ReLU as readable as SQS."""
    verdicts, body = [], []
    setting = f"{data}, noise {noise}"
    for other in ("gelu", "silu", "relu"):
        for part in ("r2_joint", "agreement_joint", "agreement_identity"):
            gap = difference(column(readings[other], part), column(readings["sqs"], part))
            claim = f"{other} reads as well as sqs: {_PARTS[part]}, {setting}"
            verdicts.append(Verdict(claim, f"difference > -{_AS_READABLE}", gap, above(gap, -_AS_READABLE)))
    parts = ("accuracy", "r2_identity", "r2_joint", "agreement_identity", "agreement_joint", "template", "auc")
    for gate, networks in readings.items():
        body.append(
            (gate, *(mean(networks, part, 3) for part in parts), *(x.text(2) for x in similar(beside.get(gate))))
        )
    fidelities = ("R², no gains", "R², joint gains", "agreement, no gains", "agreement, joint gains")
    heads = ("gate", "test accuracy", *fidelities, "own template", "AUC", *_SIMILARITY)
    shown = {"R², joint gains": "r2_joint", _PARTS["agreement_joint"]: "agreement_joint"}
    shown |= {_PARTS["agreement_identity"]: "agreement_identity"}
    panels = {
        head: {gate: list(column(networks, part).values()) for gate, networks in readings.items()}
        for head, part in shown.items()
    }
    text = (
        "A form with γ = 1 takes the gate for the identity; with joint gains, one a hidden unit, it is fitted to the "
        "logits of training images. Agreement is the share of test images to which form and network give one class."
    )
    title = f"Do gains make every gate as readable as SQS? {setting}"
    name = f"calibration_{data}_{noise}"
    return Section(name, title, text, verdicts, [table(heads, body)], figures.dots(panels))


def learnable(learnt: Mapping[float, Networks], fixed: Mapping[float, Networks]) -> Section:
    """c and λ as parameters, from several λ, beside networks whose λ stays where it begins."""
    verdicts, body, panels = [], [], {"test accuracy": {}, "R², joint gains": {}}
    for lam, networks in learnt.items():
        for name, rows in (("fixed", fixed[lam]), ("learnt", networks)):
            ends = (mean(rows, f"learnt_{part}", 3) if name == "learnt" else "" for part in ("lam", "c"))
            body.append((f"{lam:g}", name, *ends, *(mean(rows, part) for part in _PARTS)))
            for lines, part in zip(panels.values(), ("accuracy", "r2_joint"), strict=True):
                lines[f"λ {lam:g}, {name}"] = list(column(rows, part).values())
        for part in ("accuracy", "r2_joint"):
            more = difference(column(networks, part), column(fixed[lam], part))
            claim = f"Learnt λ and c, from λ = {lam:g}: higher {_PARTS[part]} than fixed ones"
            verdicts.append(Verdict(claim, f"difference > {_GAIN}", more, above(more, _GAIN)))
    text = "λ = softplus(a), c = softplus(b), one pair a layer, trained with the weights; c begins at 0.01."
    tables = [table(("λ at first", "λ and c", "λ at the end", "c at the end", *_PARTS.values()), body)]
    return Section("learnable", "Learnt λ and c", text, verdicts, tables, figures.dots(panels))


class Goal(NamedTuple):
    """What a default is chosen for."""

    name: str
    score: str
    parts: tuple[str, ...]
    as_accurate: bool = False
    """Whether a setting has to be shown to be as accurate as the default."""


GOALS = (
    Goal("accuracy alone", "test accuracy", ("accuracy",)),
    Goal("reading with gains", "test accuracy × R², joint gains", ("accuracy", "r2_joint")),
    Goal("reading without data", "test accuracy × agreement, no gains", ("accuracy", "agreement_identity")),
    Goal("reading with gains, as accurate", "R², joint gains", ("r2_joint",), as_accurate=True),
    Goal("reading without data, as accurate", "agreement, no gains", ("agreement_identity",), as_accurate=True),
)


def defaults(cells: Mapping[Setting, Networks], others: Mapping[str, Networks]) -> Section:
    """The (λ, c, p) that are best for accuracy and fidelity together, and what follows for each goal."""
    verdicts, chosen = zip(*(_choice(goal, cells) for goal in GOALS), strict=True)
    named = {_text(cell): networks for cell, networks in cells.items()} | {
        name: networks for name, networks in others.items() if networks
    }
    points = {part: {name: _place(networks, part) for name, networks in named.items()} for part in _FIDELITIES}
    fronts = {part: front(point_of) for part, point_of in points.items()}
    body = []
    for name, networks in named.items():
        on = "; ".join(_FIDELITIES[part] for part, members in fronts.items() if name in members)
        body.append((name, *(mean(networks, part) for part in _PARTS), on))
    text = (
        f"A setting is recommended instead of the default where its score is shown to be more than {_GAIN} higher, on "
        "the same seeds. The best of many is chosen on the seeds that judge it, so a small gain may be luck. A network "
        "with λ and c near 0 is nearly bilinear, and reads well for that reason: *as accurate* takes only settings "
        "whose accuracy "
        f"is shown to be above the default's less {_AS_ACCURATE}. A front has what nothing here beats in both, by "
        "means over seeds; neighbours on it may differ by less than their intervals."
    )
    heads = ("goal", "score", "recommended", "best other setting", "its score", "the default's score")
    tables = [table(heads, chosen), table(("network", *_PARTS.values(), "on the front of"), body)]
    panels = {
        _FIDELITIES[part]: (
            {name: point for name, point in point_of.items() if name not in others},
            fronts[part],
            {name: point for name, point in point_of.items() if name in others},
        )
        for part, point_of in points.items()
    }
    picture = figures.fronts(panels, "test accuracy")
    return Section("defaults", "Accuracy × fidelity: which λ, c and p", text, list(verdicts), tables, picture)


def _choice(goal: Goal, cells: Mapping[Setting, Networks]) -> tuple[Verdict, tuple[str, ...]]:
    """Whether a setting beats the default for a goal, and the goal's row of the table."""
    scores = {
        cell: _score(networks, goal)
        for cell, networks in cells.items()
        if cell != DEFAULT and (not goal.as_accurate or _as_accurate(networks, cells.get(DEFAULT, {})))
    }
    usual = _score(cells.get(DEFAULT, {}), goal)
    best = max(scores, key=lambda cell: _rank(interval(scores[cell].values())), default=None)
    best_scores = scores[best] if best else {}
    gain = difference(best_scores, usual)
    outcome = above(gain, _GAIN)
    name = _text(best) if best else "–"
    claim = f"For {goal.name}, {name if best else 'another setting'} beats the default"
    ends = (interval(values.values(), most=1).text() for values in (best_scores, usual))
    verdict = Verdict(claim, f"difference > {_GAIN}", gain, outcome)
    return verdict, (goal.name, goal.score, name if outcome == "shown" else _text(DEFAULT), name, *ends)


_FIDELITIES = {part: _PARTS[part] for part in ("r2_joint", "agreement_identity")}


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that no other beats in accuracy without being beaten in fidelity, by accuracy; none of NaN."""

    def beaten(name):
        a, b = points[name]
        return any(x >= a and y >= b and (x, y) != (a, b) for x, y in points.values())

    known = [name for name in points if all(map(math.isfinite, points[name]))]
    return sorted((name for name in known if not beaten(name)), key=lambda name: points[name][0])


def _place(networks: Networks, part: str) -> tuple[float, float]:
    return average(networks, "accuracy").mean, average(networks, part).mean


def _as_accurate(networks: Networks, default: Networks) -> bool:
    less = difference(column(networks, "accuracy"), column(default, "accuracy"))
    return above(less, -_AS_ACCURATE) == "shown"


def _score(networks: Networks, goal: Goal) -> dict[int, float]:
    return {
        seed: math.prod(row[part] for part in goal.parts)
        for seed, row in networks.items()
        if all(row[part] is not None for part in goal.parts)
    }


def _text(cell: Setting) -> str:
    lam, c, p = cell
    return f"λ {lam:g}, c {c:g}" + (f", p {p:g}" if p != 1 else "")
