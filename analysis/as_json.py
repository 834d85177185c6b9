"""Numbers as JSON has them."""

from typing import Any

import numpy as np


def as_json(values: Any, digits: int | None = None) -> Any:
    """A number, or nested lists of numbers for an array: None for NaN and the infinite, which JSON does not have.

    `digits` rounds to so many significant digits.

    >>> as_json([0.123456789, float("nan"), float("-inf")], digits=3)
    [0.123, None, None]
    """
    array = np.asarray(values, np.float64)
    if array.ndim:
        return [as_json(value, digits) for value in array]
    if not np.isfinite(array):
        return None
    return float(array) if digits is None else float(f"{float(array):.{digits}g}")
