"""Verdicts: what a claim says of a figure, against its interval over seeds."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

Outcome = Literal["shown", "refuted", "not decided"]


class Interval(NamedTuple):
    """A mean, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 4) -> str:
        """As tables show it; without an interval where there is none."""
        if not math.isfinite(self.mean):
            return "–"
        mean, *ends = (f"{round(value, digits) + 0.0:.{digits}f}" for value in self if math.isfinite(value))
        return f"{mean} [{', '.join(ends)}]" if ends else mean


class Verdict(NamedTuple):
    """A claim, what it was held against, and how it came out."""

    claim: str
    criterion: str
    found: Interval
    outcome: Outcome


def interval(values: Iterable[float], least: float = -math.inf, most: float = math.inf) -> Interval:
    """Mean of independent values and its 95 % interval by Student's t; no interval of fewer than 2, NaN of none.

    The interval is cut to the range of the quantity, from `least` to `most`, which Student's t does not know.
    """
    known = np.asarray([value for value in values if value is not None and math.isfinite(value)], np.float64)
    if len(known) < 2:
        return Interval(float(known.mean()) if len(known) else math.nan, math.nan, math.nan)
    half = student.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    mean = float(known.mean())
    return Interval(mean, float(max(mean - half, least)), float(min(mean + half, most)))


def share(count: int, of: int) -> Interval:
    """Share of independent cases that came out so, and its exact 95 % interval (Clopper and Pearson, 1934)."""
    if not of:
        return Interval(math.nan, math.nan, math.nan)
    low, high = binomtest(count, of).proportion_ci(0.95, method="exact")
    return Interval(count / of, float(low), float(high))


def difference(a: dict[int, float], b: dict[int, float]) -> Interval:
    """Mean of a - b over the seeds that both have: networks of one seed share their start, batches and noise."""
    return interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def above(figure: Interval, bound: float) -> Outcome:
    """Shown where the whole interval lies above the bound, refuted where it lies below."""
    if not (math.isfinite(figure.low) and math.isfinite(figure.high)):
        return "not decided"
    if figure.low > bound:
        return "shown"
    return "refuted" if figure.high < bound else "not decided"


def below(figure: Interval, bound: float) -> Outcome:
    """Shown where the whole interval lies below the bound, refuted where it lies above."""
    return above(Interval(-figure.mean, -figure.high, -figure.low), -bound)


def apart(figure: Interval, bound: float) -> Outcome:
    """Shown where the whole interval lies on one side of the bound; no interval refutes that two figures differ."""
    return "shown" if figure.low > bound or figure.high < bound else "not decided"


def within(figure: Interval, low: float, high: float) -> Outcome:
    """Shown where the whole interval lies from low to high, refuted where none of it does."""
    if not (math.isfinite(figure.low) and math.isfinite(figure.high)):
        return "not decided"
    if low <= figure.low and figure.high <= high:
        return "shown"
    return "refuted" if figure.high < low or figure.low > high else "not decided"


def all_of(outcomes: Sequence[Outcome]) -> Outcome:
    """That of a claim of several parts: shown where all are, refuted where one is."""
    if "refuted" in outcomes:
        return "refuted"
    return "shown" if outcomes and all(outcome == "shown" for outcome in outcomes) else "not decided"
