"""How alike two sets of spectra are: measures of vectors, subspaces and forms, with a ceiling, nulls and intervals."""

import itertools
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

LEAST_SEEDS = 5  # fewer tell little of the spread between seeds
_BOOTSTRAP = 2000
_SHIFTS = 10  # each output beside up to nine others, for what different outputs have in common


class Reading(NamedTuple):
    """What of one trained network is compared: its forms and their leading eigenvectors, of every output."""

    seed: int
    vectors: np.ndarray
    """Orthonormal rows (outputs, k, d), sorted by |λ|."""
    matrices: np.ndarray
    """Interaction matrices (outputs, d, d)."""


def rank_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|cos| of the vectors of equal rank, rows of a and b (k, d): (k,). Falls where close eigenvalues swap ranks.

    Source: arXiv 2509.01874, figure 2B.
    """
    return np.abs(np.sum(a * b, axis=1))


def matched_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|cos| of each row of a (k, d) with its partner among b's, one to one, whose sum is largest: (k,).

    Biased up where k is small: compare with the null.
    """
    table = np.abs(a @ b.T)
    rows, columns = linear_sum_assignment(-table)
    return table[rows, columns]


def subspace_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """‖a bᵀ‖²_F / k for orthonormal rows a, b (k, d): 1 for one subspace, k/d on average for random ones."""
    return float(np.sum((a @ b.T) ** 2) / len(a))


def principal_angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles (k,) in radians, the smallest first, between the spans of orthonormal rows a, b (k, d)."""
    return np.arccos(np.clip(np.linalg.svd(a @ b.T, compute_uv=False), 0, 1))


def form_cosine(a: np.ndarray, b: np.ndarray, second_moment: np.ndarray | None = None) -> float:
    """⟨A, B⟩ / ‖A‖‖B‖ of two symmetric matrices (d, d): of whole forms, so no eigenvector has to be matched.

    By default ⟨A, B⟩ = tr(A B). With Σ = E[x xᵀ], the metric of the data, that of Gaussian inputs with mean 0:
    ⟨A, B⟩ = E[(xᵀAx)(xᵀBx)] = 2 tr(A Σ B Σ) + tr(A Σ) tr(B Σ). NaN where a form is 0.
    """
    if second_moment is not None:
        return _cosine(a @ second_moment, b @ second_moment, _data_inner)
    return _cosine(a, b, _inner)


def _inner(a, b):
    return np.sum(a * b.T)


def _data_inner(a, b):
    """⟨A, B⟩ in the metric of the data, of A Σ and B Σ."""
    return 2 * np.sum(a * b.T) + np.trace(a) * np.trace(b)


def _cosine(a, b, inner) -> float:
    size = np.sqrt(inner(a, a) * inner(b, b))
    return float(inner(a, b) / size) if size > 0 else float("nan")


MEASURES = ("rank_cosine", "matched_cosine", "overlap", "angle", "form_cosine", "data_form_cosine")


class _Weighted(NamedTuple):
    """A reading, and its matrices times Σ, which all its comparisons in the metric of the data share."""

    reading: Reading
    matrices: np.ndarray


class _Weighted(NamedTuple):
    """A reading, and its matrices times Σ, which all its comparisons in the metric of the data share."""

    reading: Reading
    matrices: np.ndarray


def similarities(a: Reading, b: Reading, second_moment: np.ndarray) -> dict[str, np.ndarray]:
    """Every measure of two networks, (k,) each, or () for whole forms: the mean over outputs.

    `overlap` at place i is that of the spans of the first i + 1 vectors; `angle` the i-th principal angle of all k.
    """
    left, right = (_Weighted(reading, reading.matrices @ second_moment) for reading in (a, b))
    return _similarities(left, right, [(o, o) for o in range(len(a.vectors))])


def _similarities(left: _Weighted, right: _Weighted, partners: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """The same for output i of the one and j of the other, (i, j) in `partners`."""
    a, b = left.reading, right.reading
    found: dict[str, list[Any]] = {name: [] for name in MEASURES}
    for i, j in partners:
        u, v = a.vectors[i], b.vectors[j]
        found["rank_cosine"].append(rank_cosines(u, v))
        found["matched_cosine"].append(matched_cosines(u, v))
        found["overlap"].append([subspace_overlap(u[:k], v[:k]) for k in range(1, len(u) + 1)])
        found["angle"].append(principal_angles(u, v))
        found["form_cosine"].append(_cosine(a.matrices[i], b.matrices[j], _inner))
        found["data_form_cosine"].append(_cosine(left.matrices[i], right.matrices[j], _data_inner))
    return {name: np.mean(values, axis=0) for name, values in found.items()}


def compare(
    a: list[Reading], b: list[Reading], untrained: list[Reading], second_moment: np.ndarray, *, seed: int = 0
) -> dict[str, Any]:
    """Compares two groups of networks, a network a seed, with 95 % intervals by bootstrap over the seeds.

    Args:
      a: readings of the one group, 1 or more; b: of the group that it is measured against, 2 or more.
      untrained: readings of the initial weights of `a`'s networks, in its order.
      second_moment: Σ = E[x xᵀ] (d, d) of the data, for the data's metric.
      seed: of the bootstrap and of the random subspaces.

    Returns:
      {measure: {arm: {"mean", "low", "high"}}}, lists (k,) or numbers. Arms:
        "shared"     networks of a and b of one seed, so of one initialisation; absent if no seed is in both
        "disjoint"   networks of a and b of different seeds
        "ceiling"    networks of b with each other
        "fraction"   disjoint / ceiling; not for angles
        "classes"    null: different outputs, of a and b, of different seeds
        "untrained"  null: a's networks before training, with b's, of different seeds
        "random"     null: a's networks with random orthonormal vectors; not for whole forms

    Raises ValueError for too few networks in a group, two of one seed, or shapes that differ.
    """
    _check_groups(a, b)
    rng = np.random.default_rng(seed)
    outputs = len(a[0].vectors)
    same = [(o, o) for o in range(outputs)]
    others = [(o, (o + shift) % outputs) for o in range(outputs) for shift in range(1, min(outputs, _SHIFTS))]
    left, right, initial = (
        [_Weighted(reading, reading.matrices @ second_moment) for reading in group] for group in (a, b, untrained)
    )

    def table(rows, partners=same):
        return {(i, j): _similarities(x, y, partners) for i, x in enumerate(rows) for j, y in enumerate(right)}

    across = table(left)
    shared = {(i, j) for i, j in across if a[i].seed == b[j].seed}
    within = {}
    for (i, x), (j, y) in itertools.combinations(enumerate(right), 2):
        within[i, j] = within[j, i] = _similarities(x, y, same)
    chance = [x._replace(reading=x.reading._replace(vectors=_random_like(x.reading.vectors, rng))) for x in left]
    arms = {
        "shared": {pair: across[pair] for pair in shared},
        "disjoint": _without(across, shared),
        "ceiling": within,
        "classes": _without(table(left, others), shared) if others else {},
        "untrained": _without(table(initial), shared),
        "random": {(i, i): _similarities(x, y, same) for i, (x, y) in enumerate(zip(left, chance, strict=True))},
    }
    arms = {name: pairs for name, pairs in arms.items() if pairs}
    draws = [(rng.integers(len(a), size=len(a)), rng.integers(len(b), size=len(b))) for _ in range(_BOOTSTRAP)]
    return {measure: _intervals(arms, measure, draws, len(a), len(b)) for measure in MEASURES}


def _without(pairs, shared):
    return {pair: value for pair, value in pairs.items() if pair not in shared}


def _check_groups(a, b):
    for name, group, least in (("a", a, 1), ("b", b, 2)):
        if len(group) < least:
            raise ValueError(
                f"`{name}` has {len(group)} networks: {least} or more are needed, {LEAST_SEEDS} to tell much"
            )
        seeds = [reading.seed for reading in group]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"`{name}` has the seeds {seeds}: each network needs one of its own")
    shapes = {reading.vectors.shape for reading in (*a, *b)}
    if len(shapes) > 1:
        raise ValueError(f"`a` and `b` have eigenvectors of shapes {sorted(shapes)}: one shape is needed")


def _intervals(arms, measure, draws, size_a, size_b) -> dict[str, Any]:
    tables = {}
    for name, pairs in arms.items():
        rows, columns = (size_b, size_b) if name == "ceiling" else (size_a, size_b)
        if name == "random":
            if "form" in measure:
                continue
            columns = size_a
        example = next(iter(pairs.values()))[measure]
        tables[name] = np.full((rows, columns, *np.shape(example)), np.nan)
        for (i, j), values in pairs.items():
            tables[name][i, j] = values[measure]
    means = {name: _mean(table) for name, table in tables.items()}
    samples: dict[str, list[Any]] = {name: [] for name in tables}
    for i, j in draws:
        for name, table in tables.items():
            if name == "random":
                samples[name].append(table[i, i].mean(0))
            else:
                rows = j if name == "ceiling" else i
                samples[name].append(_mean(table[rows][:, j]))
    if "disjoint" in tables and measure != "angle":  # whose ceiling is 0
        means["fraction"] = means["disjoint"] / means["ceiling"]
        samples["fraction"] = list(np.array(samples["disjoint"]) / np.array(samples["ceiling"]))
    return {name: _summary(means[name], np.array(samples[name])) for name in means}


def _mean(table):
    """Mean over the pairs that exist, of (rows, columns, …); NaN where a draw holds none."""
    exists = ~np.isnan(table)
    count = exists.sum((0, 1))
    return np.where(count > 0, np.where(exists, table, 0).sum((0, 1)) / np.maximum(count, 1), np.nan)


def _summary(mean, samples) -> dict[str, Any]:
    whole = samples[~np.isnan(samples).reshape(len(samples), -1).any(1)]
    low, high = np.percentile(whole, [2.5, 97.5], axis=0) if len(whole) else (mean * np.nan, mean * np.nan)
    return {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}


def _random_like(vectors, rng) -> np.ndarray:
    """Random orthonormal rows of the same shape (outputs, k, d)."""
    q, _ = np.linalg.qr(rng.normal(size=(len(vectors), vectors.shape[2], vectors.shape[1])))
    return q.transpose(0, 2, 1)
