"""What is trained for the experiments: the sweeps, in full and in a quick version, and where they lie."""

import dataclasses
from pathlib import Path

from benchmarks.common import GATES
from sqs_jax.train import PRESETS
from sqs_jax.train.run_folder import SweepFolder
from sqs_jax.train.sweep.run_sweep import Grid, sweep


def _grid(data: str, seeds: int, axes, **changes) -> Grid:
    return Grid(dataclasses.replace(PRESETS[data], **changes), axes | {"seed": tuple(range(seeds))})


# Full: the paper's setting, whose noise is 1.0; and 0.5, since its accuracies want less.
FULL = {
    "mnist": _grid("mnist", 5, {"noise_std": (1.0, 0.5), "gate": GATES}),
    "fashion_mnist": _grid("fashion_mnist", 5, {"noise_std": (1.0, 0.5), "gate": GATES}),
    "sensitivity": _grid("mnist", 3, {"p": (1.0, 2.0), "lam": (0.1, 0.5, 1.0), "c": (0.001, 0.01, 0.1)}),
    "extremes": _grid("mnist", 3, {"lam": (0.0, 0.01, 0.5, 2.0, 5.0), "c": (0.01, 0.3, 1.0)}),
    "small_lam": _grid("mnist", 6, {"lam": (0.0, 0.01)}),  # of fewer seeds none could refute that half diverge
    "cifar10_jpeg": _grid("cifar10_jpeg", 3, {"gate": GATES}),
}

# What the paper does not ask. A width alone is two fields, and so a sweep each.
BEYOND = {
    "noise": _grid("mnist", 3, {"noise_std": (0.0, 0.25, 2.0), "gate": GATES[:2]}),
    "noise_prob": _grid("mnist", 3, {"noise_prob": (0.25, 0.5), "gate": GATES[:2]}),
    "learnable": _grid("mnist", 3, {"lam": (0.1, 0.5, 1.0)}, learnable=True),
    "depth": _grid("mnist", 3, {"layers": (2, 3, 4), "gate": GATES[:2]}),
} | {
    f"width{width}": _grid("mnist", 3, {"gate": GATES[:2]}, width=width, hidden=width) for width in (64, 128, 256, 1024)
}

# Quick: the same questions of small networks on the embedded digits, in minutes; their answers are not those of
# the paper's setting.
_SMALL = {"width": 32, "hidden": 32, "epochs": 15, "noise_std": 1.0}
QUICK = {
    "mnist": _grid("digits", 2, {"noise_std": (1.0, 0.5), "gate": GATES}, **_SMALL),
    "sensitivity": _grid("digits", 2, {"p": (1.0, 2.0), "lam": (0.1, 0.5, 1.0), "c": (0.01, 0.1)}, **_SMALL),
    "extremes": _grid("digits", 2, {"lam": (0.0, 0.5, 2.0), "c": (0.01, 0.3)}, **_SMALL),
    "small_lam": _grid("digits", 2, {"lam": (0.0, 0.01)}, **_SMALL),
}
QUICK_BEYOND = {
    "noise": _grid("digits", 2, {"noise_std": (0.25,), "gate": GATES[:2]}, **_SMALL),
    "noise_prob": _grid("digits", 2, {"noise_prob": (0.5,), "gate": GATES[:2]}, **_SMALL),
    "learnable": _grid("digits", 2, {"lam": (0.5,)}, **_SMALL, learnable=True),
    "depth": _grid("digits", 2, {"layers": (2,), "gate": GATES[:2]}, **_SMALL),
    "width16": _grid("digits", 2, {"gate": GATES[:2]}, **_SMALL | {"width": 16, "hidden": 16}),
}


def trained(name: str, folder: Path, *, quick: bool = False, data_dir: Path | None = None) -> Path:
    """The folder of a sweep, all of whose networks are trained; those that are not yet are trained now."""
    path = folder / name
    grid = (QUICK | QUICK_BEYOND if quick else FULL | BEYOND)[name]
    sweep(grid, path, data_dir=data_dir, resume=SweepFolder(path).grid.is_file())
    return path
