"""Pictures of the experiments, drawn from tables alone."""

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.section import at
from experiments.verdicts import Interval
from sqs_jax.analysis.report.plots import log_scale
from sqs_jax.train.sweep.table import Row, by_epoch

COLORS = {"sqs": "#b2182b", "bilinear": "#0b6e99", "relu": "#7a7a7a", "gelu": "#b8640a", "silu": "#5e8c31"}
_MORE = ("#b2182b", "#b8640a", "#0b6e99", "#5e8c31", "#7b5ea7", "#7a7a7a")
Lines = Mapping[str, Sequence[Row]]


def loss_curves(
    panels: Mapping[str, Lines], quantity: str = "validation_loss", label: str = "validation loss (nats)"
) -> Figure:
    """A panel a setting, a line a group of rows: the mean over seeds, the band from the lowest to the highest."""
    figure, axes = _panels(len(panels))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for i, (name, rows) in enumerate(lines.items()):
            by_epoch_values = by_epoch(rows, quantity)
            epochs, columns = list(by_epoch_values), list(by_epoch_values.values())
            color = COLORS.get(name, _MORE[i % len(_MORE)])
            axis.plot(epochs, [statistics.mean(column) for column in columns], color=color, label=name, linewidth=1.6)
            axis.fill_between(
                epochs, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.15, linewidth=0
            )
        axis.set(title=title, xlabel="epoch", ylabel=label)
        log_scale(axis)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False, fontsize=9)
    return figure


def dots(
    panels: Mapping[str, Mapping[str, Sequence[float]]], label: str = "", marks: dict[str, float] | None = None
) -> Figure:
    """A panel a setting, a row a group: each network a dot, their mean a line; `marks` are the figures of the paper."""
    figure, axes = _panels(len(panels), height=0.34 * max(map(len, panels.values())) + 1.6)
    for axis, (title, groups) in zip(axes, panels.items(), strict=True):
        for position, (name, values) in enumerate(groups.items()):
            color = COLORS.get(name, _MORE[2])
            axis.plot(values, [position] * len(values), "o", color=color, alpha=0.6, markersize=5)
            if values:
                axis.plot([statistics.mean(values)] * 2, [position - 0.3, position + 0.3], color=color, linewidth=2)
        for name, value in (marks or {}).items():
            axis.axvline(value, color=COLORS.get(name, "#222222"), linewidth=1.1, linestyle=":", label=f"paper, {name}")
        if marks:
            axis.legend(frameon=False, fontsize=8)
        axis.set(title=title, xlabel=label, ylim=(len(groups) - 0.4, -0.6))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_yticks(range(len(groups)), list(groups))
    return figure


def by_rank(panels: dict[str, dict[str, dict]], label: str, bound: float) -> Figure:
    """A panel a gate, a line an arm of a comparison: mean and 95 % interval by rank, and a bound."""
    figure, axes = _panels(len(panels))
    for axis, (title, arms) in zip(axes, panels.items(), strict=True):
        for i, (name, intervals) in enumerate(arms.items()):
            ranks = range(1, len(intervals["mean"]) + 1)
            mean, low, high = zip(*(at(intervals, rank - 1) for rank in ranks), strict=True)
            axis.plot(ranks, mean, color=_MORE[i], label=name, linewidth=1.6)
            axis.fill_between(ranks, low, high, color=_MORE[i], alpha=0.15, linewidth=0)
        axis.axhline(bound, color="#222222", linewidth=0.9, linestyle=":")
        axis.set(title=title, xlabel="rank by |λ|", ylabel=label, ylim=(0, 1.02))
        axis.legend(frameon=False, fontsize=8)
    return figure


def along(panels: Mapping[str, Mapping[str, Sequence[tuple[float, Interval]]]], label: str) -> Figure:
    """A panel a quantity, a line a gate: mean and 95 % interval by the value of a setting, evenly spaced."""
    figure, axes = _panels(len(panels), width=3.6)
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        values = sorted({value for points in lines.values() for value, _ in points})
        for name, points in lines.items():
            positions = [values.index(value) for value, _ in points]
            mean, low, high = zip(*(interval for _, interval in points), strict=True)
            if not any(map(math.isfinite, mean)):
                continue  # what is not measured of a gate has no line, and no name
            axis.plot(positions, mean, "o-", color=COLORS.get(name), label=name, linewidth=1.6, markersize=4)
            axis.fill_between(positions, low, high, color=COLORS.get(name), alpha=0.15, linewidth=0)
        axis.set(title=title, xlabel=label)
        if axis.get_ylim()[0] < -1:  # R² has no lower end: what lies that low only says that nothing is left
            axis.set_ylim(-1, 1.05)
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    return figure


Places = Mapping[str, tuple[float, float]]


def fronts(panels: Mapping[str, tuple[Places, Sequence[str], Places]], label: str) -> Figure:
    """A panel a kind of fidelity: settings as dots, those on the Pareto front numbered and named, and other gates.

    A gate on the front is a number too.
    """
    figure, axes = _panels(len(panels), width=6.6, height=4.4)
    for axis, (title, (settings, front, others)) in zip(axes, panels.items(), strict=True):
        axis.plot(*zip(*settings.values(), strict=True), "o", color="#9a9a9a", markersize=4, label="sqs")
        points = {**settings, **others}
        axis.plot(*zip(*(points[name] for name in front), strict=True), "o-", color=COLORS["sqs"], label="front")
        for i, name in enumerate(front, 1):
            axis.annotate(str(i), points[name], xytext=(3, 4), textcoords="offset points", fontsize=8)
            axis.plot([], [], " ", label=f"{i}  {name}")
        for name, point in others.items():
            axis.plot(*point, "D", color=COLORS[name], markersize=6, label=name)
        axis.set(xlabel=label, ylabel=title)
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def heat(
    panels: dict[str, list[list[float]]], columns: Sequence[str], rows: Sequence[str], labels: tuple[str, str]
) -> Figure:
    """A panel a quantity, three in a row: its value in each cell of a grid, written and coloured."""
    figure, axes = _panels(len(panels), width=0.85 * len(columns) + 1.6, height=0.62 * len(rows) + 1.4, across=3)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        axis.imshow(values, cmap="viridis", aspect="auto")
        middle = statistics.median(value for row in values for value in row)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                axis.text(
                    j, i, f"{value:.3f}", ha="center", va="center", fontsize=8, color="w" if value <= middle else "k"
                )
        axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    return figure


def _panels(count: int, width: float = 4.4, height: float = 3.5, across: int = 4):
    across, down = min(count, across), -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    axes = axes[:count]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
