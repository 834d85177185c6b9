"""What the paper does not ask, each a function of saved tables: what fidelity and similarity depend on; defaults."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import figures
from experiments.section import Section, at, column, mean, table
from experiments.verdicts import Interval, Verdict, above, below, difference, interval
from sqs_jax.train.table import Row

Readings = Mapping[int, Row]
"""Of the networks of one setting, by seed."""
Measures = dict[str, Any]
"""Of a comparison with bilinear networks of the same seeds."""
Setting = tuple[float, float, float]
"""λ, c and p."""

DEFAULT: Setting = (0.5, 0.01, 1.0)
# R² and agreement closer than this are called equal.
_AS_READABLE = 0.01


class Point(NamedTuple):
    """The networks of one setting along an axis."""

    value: float
    readings: Readings
    beside: Measures | None


_PARTS = {
    "accuracy": "test accuracy",
    "r2_joint": "R², joint gains",
    "agreement_joint": "agreement, joint gains",
    "agreement_identity": "agreement, no gains",
}
_SIMILAR = ("|cos| at rank 1", "overlap of the first 10")


def along(name: str, title: str, label: str, lines: Mapping[str, Sequence[Point]], text: str = "") -> Section:
    """Accuracy, fidelity and similarity to bilinear networks as functions of one setting, a line a gate."""
    shown = ("test accuracy", "R², joint gains", "agreement, no gains", "overlap of the first 10")
    panels: dict[str, dict[str, list[tuple[float, Interval]]]] = {quantity: {} for quantity in shown}
    body = []
    for gate, points in lines.items():
        for point in points:
            found = {head: interval(column(point.readings, part).values()) for part, head in _PARTS.items()}
            found |= dict(zip(_SIMILAR, similar(point.beside), strict=True))
            body.append((gate, f"{point.value:g}", *(value.text() for value in found.values())))
            for quantity in shown:
                panels[quantity].setdefault(gate, []).append((point.value, found[quantity]))
    first, last = lines["sqs"][0], lines["sqs"][-1]
    verdicts = []
    for part in ("accuracy", "r2_joint", "agreement_identity"):
        less = difference(column(last.readings, part), column(first.readings, part))
        claim = f"sqs, {_PARTS[part]}: lower at {label} {last.value:g} than at {first.value:g}"
        verdicts.append(Verdict(claim, "difference < 0", less, below(less, 0)))
    tables = [table(("gate", label, *_PARTS.values(), *_SIMILAR), body)]
    return Section(name, title, text, verdicts, tables, figures.along(panels, label))


def similar(beside: Measures | None) -> tuple[Interval, Interval]:
    """|cos| of the first eigenvectors and overlap of the spans of the first ten, of networks that began as one."""
    if beside is None or not beside["rank_cosine"].get("shared"):
        return interval([]), interval([])
    return at(beside["rank_cosine"]["shared"], 0), at(beside["overlap"]["shared"], -1)


def calibration(readings: Mapping[str, Readings], beside: Mapping[str, Measures], data: str) -> Section:
    """Whether gains make GELU, SiLU and ReLU as readable as SQS."""
    verdicts, body = [], []
    for other in ("gelu", "silu", "relu"):
        for part in ("r2_joint", "agreement_joint", "agreement_identity"):
            gap = difference(column(readings[other], part), column(readings["sqs"], part))
            claim = f"{other} reads as well as sqs: {_PARTS[part]}, {data}"
            verdicts.append(Verdict(claim, f"difference > -{_AS_READABLE}", gap, above(gap, -_AS_READABLE)))
    parts = ("accuracy", "r2_identity", "r2_joint", "agreement_identity", "agreement_joint", "template", "auc")
    for gate, own in readings.items():
        body.append((gate, *(mean(own, part, 3) for part in parts), *(x.text(2) for x in similar(beside.get(gate)))))
    heads = (
        "gate",
        "test accuracy",
        "R², no gains",
        "R², joint gains",
        "agreement, no gains",
        "agreement, joint gains",
    )
    heads = (*heads, "own template", "AUC", *_SIMILAR)
    shown = {"R², joint gains": "r2_joint", _PARTS["agreement_joint"]: "agreement_joint"}
    shown |= {_PARTS["agreement_identity"]: "agreement_identity"}
    panels = {
        head: {gate: list(column(own, part).values()) for gate, own in readings.items()} for head, part in shown.items()
    }
    text = (
        "A form with γ = 1 takes the gate for the identity; with joint gains, one a hidden unit, it is fitted to the "
        "logits of training images. Agreement is the share of test images to which form and network give one class."
    )
    title = f"Do gains make every gate as readable as SQS? {data}"
    return Section(f"calibration_{data}", title, text, verdicts, [table(heads, body)], figures.dots(panels, "share"))


def learnable(learnt: Mapping[float, Readings], fixed: Mapping[float, Readings]) -> Section:
    """c and λ as parameters, from several λ, beside networks whose λ stays where it begins."""
    verdicts, body, panels = [], [], {"test accuracy": {}, "R², joint gains": {}}
    for lam, own in learnt.items():
        for name, rows in (("fixed", fixed[lam]), ("learnt", own)):
            ends = (mean(rows, f"learnt_{part}", 3) if name == "learnt" else "" for part in ("lam", "c"))
            body.append((f"{lam:g}", name, *ends, *(mean(rows, part) for part in _PARTS)))
            for lines, part in zip(panels.values(), ("accuracy", "r2_joint"), strict=True):
                lines[f"λ {lam:g}, {name}"] = list(column(rows, part).values())
        for part in ("accuracy", "r2_joint"):
            more = difference(column(own, part), column(fixed[lam], part))
            claim = f"Learnt λ and c, from λ = {lam:g}: higher {_PARTS[part]} than fixed ones"
            verdicts.append(Verdict(claim, "difference > 0", more, above(more, 0)))
    text = "λ = softplus(a), c = softplus(b), one pair a layer, trained with the weights; c begins at 0.01."
    tables = [table(("λ at first", "λ and c", "λ at the end", "c at the end", *_PARTS.values()), body)]
    return Section("learnable", "Learnt λ and c", text, verdicts, tables, figures.dots(panels, "share"))


class Goal(NamedTuple):
    """What a default is chosen for."""

    name: str
    score: str
    parts: tuple[str, ...]


GOALS = (
    Goal("accuracy alone", "test accuracy", ("accuracy",)),
    Goal("reading with gains", "test accuracy × R², joint gains", ("accuracy", "r2_joint")),
    Goal("reading without data", "test accuracy × agreement, no gains", ("accuracy", "agreement_identity")),
)


def defaults(cells: Mapping[Setting, Readings], others: Mapping[str, Readings]) -> Section:
    """The (λ, c, p) that are best for accuracy and fidelity together, and what follows for each goal."""
    verdicts, chosen, body = [], [], []
    for goal in GOALS:
        scores = {cell: _score(own, goal) for cell, own in cells.items()}
        best = max((cell for cell in cells if cell != DEFAULT), key=lambda cell: interval(scores[cell].values()).mean)
        gain = difference(scores[best], scores[DEFAULT])
        outcome = above(gain, 0)
        verdicts.append(Verdict(f"For {goal.name}, {_text(best)} beats the default", "difference > 0", gain, outcome))
        ends = (interval(scores[cell].values()).text() for cell in (best, DEFAULT))
        chosen.append((goal.name, goal.score, _text(best if outcome == "shown" else DEFAULT), _text(best), *ends))
    fronts = {part: front({cell: _place(own, part) for cell, own in cells.items()}) for part in _FIDELITIES}
    for cell, own in cells.items():
        on = "; ".join(_FIDELITIES[part] for part, members in fronts.items() if cell in members)
        body.append((*(f"{value:g}" for value in cell), *(mean(own, part) for part in _PARTS), on))
    body += [(gate, "", "", *(mean(own, part) for part in _PARTS), "") for gate, own in others.items()]
    text = (
        "A setting is recommended instead of the default where its score is shown to be higher, on the same seeds. "
        "The best of many is chosen on the seeds that judge it, so a small gain may be luck. A network with λ and c "
        "near 0 is nearly bilinear, and reads well for that reason."
    )
    heads = ("goal", "score", "recommended", "best but the default", "its score", "the default's score")
    tables = [table(heads, chosen), table(("λ", "c", "p", *_PARTS.values(), "on the front of"), body)]
    panels = {
        _FIDELITIES[part]: (
            {_text(cell): _place(own, part) for cell, own in cells.items()},
            [_text(cell) for cell in fronts[part]],
            {gate: _place(own, part) for gate, own in others.items()},
        )
        for part in _FIDELITIES
    }
    picture = figures.fronts(panels, "test accuracy")
    return Section("defaults", "Accuracy × fidelity: which λ, c and p", text, verdicts, tables, picture)


_FIDELITIES = {part: _PARTS[part] for part in ("r2_joint", "agreement_identity")}


def front(places: Mapping[Setting, tuple[float, float]]) -> list[Setting]:
    """The settings that no other beats in accuracy without being beaten in fidelity, by accuracy."""

    def beaten(cell):
        a, b = places[cell]
        return any(x >= a and y >= b and (x, y) != (a, b) for x, y in places.values())

    return sorted((cell for cell in places if not beaten(cell)), key=lambda cell: places[cell][0])


def _place(own: Readings, part: str) -> tuple[float, float]:
    return interval(column(own, "accuracy").values()).mean, interval(column(own, part).values()).mean


def _score(own: Readings, goal: Goal) -> dict[int, float]:
    scores = {}
    for seed, row in own.items():
        scores[seed] = 1.0
        for part in goal.parts:
            scores[seed] *= row[part]
    return scores


def _text(cell: Setting) -> str:
    lam, c, p = cell
    return f"λ {lam:g}, c {c:g}" + (f", p {p:g}" if p != 1 else "")
