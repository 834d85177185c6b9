"""The order in which windows are trained on: a permutation that is computed where it is needed, and never stored."""

import functools

import numpy as np

ORDER = "feistel"
"""The name of this order; a run says which it was begun with."""
_ROUNDS = 8
# The constants of splitmix64 (Steele, Lea and Flood 2014).
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def batch_numbers(step: int, batch_size: int, count: int, seed: int) -> np.ndarray:
    """The windows of a step (batch_size,). Each epoch takes all `count` windows once, in an order of its own."""
    positions = step * batch_size + np.arange(batch_size)
    epochs, places = positions // count, positions % count
    numbers = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        numbers[here] = permuted(places[here], count, seed, int(epoch))
    return numbers


def permuted(places: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of range(count) takes these places: one permutation for each seed and epoch.

    A Feistel network permutes the numbers of an even count of bits; what it takes beyond `count` it takes further,
    until it is inside (Black and Rogaway 2002). So no permutation is held in memory.
    """
    half = np.uint64(((count - 1).bit_length() + 1) // 2 or 1)
    keys, mask = _keys(seed, epoch), np.uint64((1 << int(half)) - 1)
    numbers = places.astype(np.uint64)
    outside = np.ones(len(numbers), bool)
    while outside.any():
        left, right = numbers[outside] >> half, numbers[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        numbers[outside] = left << half | right
        outside = numbers >= count
    return numbers.astype(np.int64)


@functools.lru_cache(maxsize=2)
def _keys(seed: int, epoch: int) -> np.ndarray:
    return np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Every bit of a number depends on all bits of the one before."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * _FIRST
    numbers = (numbers ^ numbers >> np.uint64(27)) * _SECOND
    return numbers ^ numbers >> np.uint64(31)
