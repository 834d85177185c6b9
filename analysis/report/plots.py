"""Pictures: the gallery of eigenvectors, and the curves of a run. Functions of arrays, each returning a Figure."""

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

ROWS = 20
_INK = "#222222"
_COLORS = {"train": "#7a7a7a", "validation": "#0b6e99"}


def gallery(values, images, classes, *, title: str) -> Figure:
    """A row a class, a column an eigenvector, its eigenvalue above it: first the most positive, then the most negative.

    Colours diverge from white at 0, red above and blue below, each picture scaled by its own largest entry.

    Args:
      values: eigenvalues (outputs, 2·k), as `analysis.extremes` gives them; where one is NaN, the place stays empty.
      images: eigenvectors as images (outputs, 2·k, height, width), or (outputs, 2·k, height, width, 3), whose
        channels are then shown as colours around grey.
      classes: names (outputs,). The first 20 are drawn.
      title: above the whole.
    """
    values, images = np.asarray(values), np.asarray(images)
    rows, columns = min(len(values), ROWS), values.shape[1]
    figure = Figure(figsize=(1.25 * columns + 2.3, 1.42 * rows + 1.5), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06)  # pyright: ignore - of the constrained one
    figure.suptitle(f"{title}\n", fontsize=12, color=_INK, parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False)
    digits = _digits(values)
    picture = None
    for axis, heading in ((axes[0, 0], "most positive"), (axes[0, columns // 2], "most negative")):
        axis.text(0, 1.3, heading, transform=axis.transAxes, fontsize=11, color="#777777")
    for (row, column), axis in np.ndenumerate(axes):
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_color("#cccccc")
        if column == 0:
            axis.set_ylabel(
                str(classes[row]),
                rotation=0,
                ha="right",
                va="center",
                fontsize=11,
                color=_INK,
                labelpad=8,
                parse_math=False,
            )
        if np.isnan(values[row, column]):
            axis.spines[:].set_visible(False)
            continue
        picture = _draw(axis, images[row, column])
        axis.set_title(f"{values[row, column] + 0.0:+.{digits}f}", fontsize=9, color=_INK, pad=3)
    if images.ndim == 4 and picture is not None:
        bar = figure.colorbar(picture, ax=axes, shrink=min(1, 3 / rows), aspect=24, ticks=[-1, 0, 1], pad=0.02)
        bar.ax.set_yticklabels(["−", "0", "+"])
        bar.set_label("entry, each picture in its own scale", fontsize=9, color=_INK)
        bar.outline.set_visible(False)  # pyright: ignore - a patch
    if len(values) > rows:
        figure.supxlabel(f"the first {rows} of {len(values)} classes", fontsize=9, color=_INK)
    return figure


def png(figure: Figure) -> bytes:
    """The content of a .png file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(axis, image):
    scaled = image / (np.abs(image).max() or 1.0)
    if image.ndim == 3:
        return axis.imshow(0.5 + 0.5 * scaled, interpolation="nearest")
    return axis.imshow(scaled, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")


def _digits(values) -> int:
    """Decimals that all eigenvalues are written with: three digits of the largest."""
    largest = np.nanmax(np.abs(values), initial=0)
    return int(np.clip(2 - np.floor(np.log10(largest)), 0, 8)) if largest > 0 else 2


def curves(rows: list[dict], *, title: str, noise_std: float) -> Figure:
    """Loss (log scale), and accuracy or bits per byte where there is validation: the rows of a `metrics.jsonl`.

    `noise_std` is the noise of training, which the legend names where there is some.
    """
    quantities = ["loss", *(name for name in ("accuracy", "bits_per_byte") if f"validation_{name}" in rows[0])]
    figure = Figure(figsize=(4.8 * len(quantities), 3.6), layout="constrained")
    figure.suptitle(title, fontsize=12, color=_INK, parse_math=False)
    for axis, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
        for part, color in _COLORS.items():
            name = f"{part}_{quantity}"
            if name in rows[0]:
                points = [(row["epoch"], row[name]) for row in rows]
                label = "train (with noise)" if part == "train" and noise_std > 0 else part
                marker = "o" if len(rows) == 1 else None
                axis.plot(*zip(*points, strict=True), color=color, label=label, marker=marker, linewidth=1.6)
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss (nats)" if quantity == "loss" else quantity.replace("_", " "))
        if quantity == "loss":
            log_scale(axis)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return figure


def log_scale(axis) -> None:
    """Makes the vertical axis logarithmic, what is drawn is there already: plain numbers as ticks, three or more."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    for digits in ((1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        locator = LogLocator(subs=digits)
        seen = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(seen) > 6 or (len(seen) >= 3 and min(seen) < 1.5 * low):  # one is near where curves end
            break
    else:
        locator = MaxNLocator(5)
    axis.yaxis.set_major_locator(locator)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


_ARMS = {
    "disjoint": ("different seeds", "#0b6e99", "-"),
    "shared": ("one initialisation", "#b8640a", "-"),
    "ceiling": ("ceiling: the others with each other", "#7a7a7a", "-"),
    "classes": ("null: other outputs", "#2166ac", ":"),
    "untrained": ("null: before training", "#b2182b", "--"),
    "random": ("null: random vectors", "#222222", "-."),
}


def similarity(measures: dict[str, dict], *, title: str) -> Figure:
    """Cosines by rank and overlaps by k, with ceiling and nulls, as `analysis.compare` gives them."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=12, color=_INK, parse_math=False)
    axes = figure.subplots(1, 2)
    columns = (("rank_cosine", "rank by |λ|", "|cos|"), ("overlap", "first k eigenvectors", "overlap of spans"))
    for axis, (measure, x_label, y_label) in zip(axes, columns, strict=True):
        for arm, (label, color, style) in _ARMS.items():
            if arm in measures[measure]:
                interval = measures[measure][arm]
                ranks = np.arange(1, len(interval["mean"]) + 1)
                mean, low, high = (np.array(interval[name], float) for name in ("mean", "low", "high"))  # None is NaN
                axis.plot(ranks, mean, style, color=color, label=label, linewidth=1.6)
                axis.fill_between(ranks, low, high, color=color, alpha=0.15, linewidth=0)
        axis.set(xlabel=x_label, ylabel=y_label, ylim=(0, 1.03))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
