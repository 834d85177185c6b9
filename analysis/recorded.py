"""Recorded inputs of a layer: read from .npy files, and parted into those that are fitted on and those held out."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sqs_jax.analysis.interaction import GLUWeights, input_size
from sqs_jax.messages import InputError, first_line

_HELD_OUT = 5  # one in so many
_LEAST = 20
_MOST_TEST = 10_000


class Recorded(NamedTuple):
    """Inputs (n, d) of a layer, float32, in two parts, with the classes and the numbers of their rows."""

    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    test_rows: np.ndarray

    def unscaled(self, scale: np.ndarray) -> "Recorded":
        """The inputs before the scale (d,) of a norm. Raises InputError where a scale is 0."""
        if not np.all(scale):
            raise InputError(f"the scale of the norm is 0 for input {int(np.argmin(np.abs(scale)))}: leave --norm out")
        return self._replace(train=self.train / scale[None], test=self.test / scale[None])


def read_recorded(inputs: Path, weights: GLUWeights, labels: Path | None = None) -> Recorded:
    """Inputs that were recorded from a layer, one in five of them, 10,000 at most, held out, drawn once and for all.

    Args:
      inputs: a .npy file (n, d) or (…, n, d), floating point.
      weights: of the layer, whose d they have to have.
      labels: a .npy file (n,), whole numbers: the classes of the inputs, where the outputs are classes.

    Raises InputError for files that cannot be read, another width or length, numbers that are NaN or infinite, fewer
    than 20 inputs, and labels that the layer has no output for.
    """
    x = _array(inputs)
    width = input_size(weights)
    if x.ndim < 2 or x.shape[-1] != width or not np.issubdtype(x.dtype, np.floating):
        raise InputError(
            f"{inputs} is {x.dtype} {x.shape}: floating point (n, {width}) is needed, what the layer reads"
        )
    x = x.reshape(-1, width)
    if len(x) < _LEAST:
        raise InputError(f"{inputs} has {len(x)} inputs: {_LEAST} or more are needed")
    y = None if labels is None else _labels(labels, len(x), weights.out.shape[1])
    order = np.random.default_rng(0).permutation(len(x))
    held = min(len(x) // _HELD_OUT, _MOST_TEST)
    test, train = np.sort(order[:held]), np.sort(order[held:])
    train_x, test_x = (np.ascontiguousarray(x[rows], np.float32) for rows in (train, test))
    if not (np.isfinite(train_x).all() and np.isfinite(test_x).all()):
        raise InputError(f"{inputs} holds numbers that are NaN or infinite, or too large for float32")
    if y is None:
        return Recorded(train_x, test_x, None, None, test)
    return Recorded(train_x, test_x, y[train], y[test], test)


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # whatever the reader of a damaged file may raise
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{path} is an .npz file: one array in an .npy file is needed")
    return array


def _labels(path: Path, count: int, outputs: int) -> np.ndarray:
    y = np.asarray(_array(path)).reshape(-1)
    if len(y) != count or not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{path} is {y.dtype} ({len(y)},): {count} whole numbers are needed, one for each input")
    if y.min() < 0 or y.max() >= outputs:
        raise InputError(f"{path} has labels from {y.min()} to {y.max()}: 0 to {outputs - 1}, the outputs, are needed")
    return y.astype(np.int32)
