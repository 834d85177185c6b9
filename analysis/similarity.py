"""How alike two sets of spectra are: measures of vectors, subspaces and forms, with a ceiling, nulls and intervals."""

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from sqs_jax.analysis.as_json import as_json

LEAST_SEEDS = 5  # fewer tell little of the spread between seeds
_BOOTSTRAP = 2000
_SHIFTS = 10  # each output beside up to nine others, for what different outputs have in common


class Reading(NamedTuple):
    """What is compared of one trained network: the forms of its outputs and their leading eigenvectors."""

    seed: Any
    """What its initial weights were drawn from: networks with equal ones began as one."""
    vectors: Float[np.ndarray, "outputs k d"]
    """Orthonormal rows (outputs, k, d), sorted by |λ|."""
    w: Float[np.ndarray, "d h"]
    """The forms by their factors, A_o = Σ_h P[h, o]·sym(w_h v_hᵀ): W (d, h), gains included,"""
    v: Float[np.ndarray, "d h"]
    """V (d, h),"""
    out: Float[np.ndarray, "h outputs"]
    """and P (h, outputs)."""


def rank_cosines(a: Float[np.ndarray, "k d"], b: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " k"]:
    """|cos| of the vectors of equal rank, rows of a and b (k, d): (k,). Falls where close eigenvalues swap ranks.

    Source: arXiv 2509.01874, figure 2B.
    """
    return np.abs(np.sum(a * b, axis=1))


def matched_cosines(a: Float[np.ndarray, "k d"], b: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " k"]:
    """|cos| of each row of a (k, d) with its partner among b's, one to one, whose sum is largest: (k,).

    A best matching is high by chance where k is small: compare with the null.
    """
    table = np.abs(a @ b.T)
    rows, columns = linear_sum_assignment(-table)
    return table[rows, columns]


def subspace_overlap(a: Float[np.ndarray, "k d"], b: Float[np.ndarray, "k d"]) -> float:
    """‖a bᵀ‖²_F / k for orthonormal rows a, b (k, d): 1 for one subspace, k/d on average for random ones."""
    return float(np.sum((a @ b.T) ** 2) / len(a))


def principal_angles(a: Float[np.ndarray, "k d"], b: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " k"]:
    """Angles (k,) in radians, the smallest first, between the spans of orthonormal rows a, b (k, d)."""
    return np.arccos(np.clip(np.linalg.svd(a @ b.T, compute_uv=False), 0, 1))


def form_cosine(
    a: Float[np.ndarray, "d d"], b: Float[np.ndarray, "d d"], second_moment: Float[np.ndarray, "d d"] | None = None
) -> float:
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


def similarities(
    a: Reading, b: Reading, second_moment: np.ndarray, partners: list[tuple[int, int]] | None = None
) -> dict[str, np.ndarray]:
    """Every measure of two networks, (k,) each, or () for whole forms: the mean over outputs.

    `overlap` at place i is that of the spans of the first i + 1 vectors; `angle` the i-th principal angle of all k.
    `partners` are the outputs of a and b that are compared, by default each with itself. Forms are compared by their
    factors: a matrix is never formed.
    """
    return _similarities(_factors(a, second_moment), _factors(b, second_moment), partners)


class _Factors(NamedTuple):
    """A reading, with products that all its comparisons use."""

    reading: Reading
    weighted: tuple[np.ndarray, np.ndarray]
    """Σ W and Σ V."""
    traces: np.ndarray
    """tr(A_o Σ), (outputs,)."""
    sizes: tuple[np.ndarray, np.ndarray]
    """⟨A_o, A_o⟩ (outputs,), plain and in the metric of the data."""


def _factors(reading: Reading, second_moment: np.ndarray) -> _Factors:
    weighted = second_moment @ reading.w, second_moment @ reading.v
    traces = np.sum(reading.w * weighted[1], axis=0) @ reading.out
    factors = _Factors(reading, weighted, traces, (traces, traces))
    plain, data = (np.diag(table) for table in _form_products(factors, factors))
    return factors._replace(sizes=(plain, data))


def _form_products(x: _Factors, y: _Factors) -> tuple[np.ndarray, np.ndarray]:
    """⟨A_i, B_j⟩ of all outputs of both, (outputs, outputs), plain and in the metric of the data.

    tr(A B) = ½ pᵀ [(WᵀW') ∘ (VᵀV') + (WᵀV') ∘ (VᵀW')] p' for A = Σ_h p_h sym(w_h v_hᵀ), and B the same of W', V', p'.
    """
    a, b = x.reading, y.reading
    plain, data = (
        a.out.T @ ((a.w.T @ w) * (a.v.T @ v) + (a.w.T @ v) * (a.v.T @ w)) @ b.out for w, v in ((b.w, b.v), y.weighted)
    )
    return plain / 2, data + np.outer(x.traces, y.traces)


def _similarities(x: _Factors, y: _Factors, partners=None) -> dict[str, np.ndarray]:
    a, b = x.reading, y.reading
    measures: dict[str, list[Any]] = {name: [] for name in MEASURES}
    with np.errstate(invalid="ignore", divide="ignore"):  # a form that is 0 has no direction
        cosines = [
            table / np.sqrt(np.outer(left, right))
            for table, left, right in zip(_form_products(x, y), x.sizes, y.sizes, strict=True)
        ]
    for i, j in partners or [(o, o) for o in range(len(a.vectors))]:
        u, v = a.vectors[i], b.vectors[j]
        measures["rank_cosine"].append(rank_cosines(u, v))
        measures["matched_cosine"].append(matched_cosines(u, v))
        measures["overlap"].append([subspace_overlap(u[:k], v[:k]) for k in range(1, len(u) + 1)])
        measures["angle"].append(principal_angles(u, v))
        for name, table in zip(("form_cosine", "data_form_cosine"), cosines, strict=True):
            measures[name].append(table[i, j])
    return {name: np.mean(values, axis=0) for name, values in measures.items()}


def compare(
    a: list[Reading],
    b: list[Reading],
    untrained: list[Reading],
    second_moment: Float[np.ndarray, "d d"],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares two groups of networks, a network a seed, with 95 % intervals by bootstrap over the seeds.

    Args:
      a: readings of the one group, 1 or more; b: of the group that it is measured against, 2 or more.
      untrained: readings of the initial weights of `a`'s networks, in its order.
      second_moment: Σ = E[x xᵀ] (d, d) of the data, for the data's metric.
      seed: of the bootstrap and of the random subspaces.

    Returns {measure: {arm: {"mean", "low", "high"}}}, lists (k,) or numbers, None where there is none. Arms:

        "shared"     networks of a and b of one seed, so of one initialisation; absent if no seed is in both. Has also
                     "values", those of each pair, which are independent, in the order of a
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
    left, right, initial = ([_factors(reading, second_moment) for reading in group] for group in (a, b, untrained))
    arms = _arms(left, right, initial, rng)
    return {measure: _intervals(arms, measure) for measure in MEASURES}


class _Arm(NamedTuple):
    """Pairs of networks that are compared, and how often each is in each draw of the bootstrap."""

    pairs: dict[tuple[int, int], dict[str, np.ndarray]]
    """The measures of a pair, by its places in the two groups."""
    draws: np.ndarray
    """(draws, left, right), whole numbers."""
    is_symmetric: bool = False
    """Whether a pair stands for the same two networks as its mirror image."""

    def values(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """A measure of every pair (left, right, …), and which pairs there are (left, right)."""
        sides = self.draws.shape[1:]
        shape = np.shape(next(iter(self.pairs.values()))[measure])
        values, exists = np.zeros((*sides, *shape)), np.zeros(sides, bool)
        for pair, measures in self.pairs.items():
            values[pair], exists[pair] = measures[measure], True
        return values, exists

    def samples(self, measure: str) -> np.ndarray | None:
        """The mean of a measure in each draw; None for a single pair, of which nothing can be drawn anew."""
        if len({frozenset(pair) if self.is_symmetric else pair for pair in self.pairs}) < 2:
            return None
        values, exists = self.values(measure)
        return _drawn_means(values, self.draws * exists)


def _arms(left: list[_Factors], right: list[_Factors], initial: list[_Factors], rng) -> dict[str, _Arm]:
    """The arms of a comparison that have a pair."""

    def table(rows, partners=None):
        pairs = itertools.product(range(len(rows)), range(len(right)))
        return {(i, j): _similarities(rows[i], right[j], partners) for i, j in pairs}

    outputs = len(left[0].reading.vectors)
    others = [(o, (o + shift) % outputs) for o in range(outputs) for shift in range(1, min(outputs, _SHIFTS))]
    across = table(left)
    shared = {(i, j) for i, j in across if left[i].reading.seed == right[j].reading.seed}
    within = {}
    for i, j in itertools.combinations(range(len(right)), 2):
        within[i, j] = within[j, i] = _similarities(right[i], right[j])
    chance = [x._replace(reading=x.reading._replace(vectors=_random_like(x.reading.vectors, rng))) for x in left]
    pairs = {
        "shared": {pair: across[pair] for pair in shared},
        "disjoint": _without(across, shared),
        "ceiling": within,
        "classes": _without(table(left, others), shared) if others else {},
        "untrained": _without(table(initial), shared),
        "random": {(i, i): _similarities(left[i], chance[i]) for i in range(len(left))},
    }
    draws = _draws(rng, len(left), len(right), sorted(shared))
    return {name: _Arm(measures, draws[name], name == "ceiling") for name, measures in pairs.items() if measures}


def _without(pairs, shared):
    return {pair: value for pair, value in pairs.items() if pair not in shared}


def _draws(rng, size_a, size_b, shared) -> dict[str, np.ndarray]:
    """How often each pair is in each of `_BOOTSTRAP` draws of seeds, by arm. Those of one seed are drawn as pairs."""
    left, right, pairs = [], [], []
    for _ in range(_BOOTSTRAP):
        left.append(np.bincount(rng.integers(size_a, size=size_a), minlength=size_a))
        right.append(np.bincount(rng.integers(size_b, size=size_b), minlength=size_b))
        if shared:
            pairs.append(np.bincount(rng.integers(len(shared), size=len(shared)), minlength=len(shared)))
    i, j = np.array(left), np.array(right)
    across = i[:, :, None] * j[:, None, :]
    draws = {"ceiling": j[:, :, None] * j[:, None, :], "random": i[:, :, None] * np.eye(size_a, dtype=int)}
    if shared:
        draws["shared"] = np.zeros_like(across)
        draws["shared"][:, *np.transpose(shared)] = pairs
    return {"disjoint": across, "classes": across, "untrained": across} | draws


def _check_groups(a, b):
    for name, group, least in (("a", a, 1), ("b", b, 2)):
        if len(group) < least:
            needed = f"{least} or more are needed, {LEAST_SEEDS} to tell much"
            raise ValueError(f"`{name}` has {len(group)} networks: {needed}")
        seeds = [reading.seed for reading in group]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"`{name}` has the seeds {seeds}: each network needs one of its own")
    shapes = {reading.vectors.shape for reading in (*a, *b)}
    if len(shapes) > 1:
        raise ValueError(f"`a` and `b` have eigenvectors of shapes {sorted(shapes)}: one shape is needed")


def _intervals(arms: dict[str, _Arm], measure: str) -> dict[str, Any]:
    """Mean and interval of a measure, by arm."""
    used = {name: arm for name, arm in arms.items() if not (name == "random" and "form" in measure)}
    means, samples = {}, {}
    for name, arm in used.items():
        values, exists = arm.values(measure)
        means[name], samples[name] = values[exists].mean(0), arm.samples(measure)
    if "disjoint" in means and measure != "angle":  # whose ceiling is 0
        with np.errstate(invalid="ignore", divide="ignore"):
            means["fraction"] = means["disjoint"] / means["ceiling"]
            if samples["disjoint"] is not None and samples["ceiling"] is not None:
                samples["fraction"] = samples["disjoint"] / samples["ceiling"]
    intervals = {name: _summary(mean, samples.get(name)) for name, mean in means.items()}
    if "shared" in used:
        values, exists = used["shared"].values(measure)
        intervals["shared"]["values"] = as_json(values[exists])
    return intervals


def _drawn_means(values, counts):
    """The mean over each draw's pairs: NaN where there is none, or one of them is NaN."""
    missing = np.isnan(values)
    sums = np.tensordot(counts, np.where(missing, 0, values), 2)
    totals = counts.sum((1, 2)).reshape(-1, *[1] * (sums.ndim - 1))
    with np.errstate(invalid="ignore"):
        return np.where(np.tensordot(counts, missing, 2) > 0, np.nan, sums / totals)


def _summary(mean, samples) -> dict[str, Any]:
    low = high = np.full(np.shape(mean), np.nan)
    if samples is not None:
        whole = samples[~np.isnan(samples).reshape(len(samples), -1).any(1)]
        low, high = np.percentile(whole, [2.5, 97.5], axis=0) if len(whole) else (low, high)
    return {name: as_json(array) for name, array in (("mean", mean), ("low", low), ("high", high))}


def _random_like(vectors, rng) -> np.ndarray:
    """Random orthonormal rows of the same shape (outputs, k, d)."""
    q, _ = np.linalg.qr(rng.normal(size=(len(vectors), vectors.shape[2], vectors.shape[1])))
    return q.transpose(0, 2, 1)
