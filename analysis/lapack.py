"""A few extreme eigenpairs of interaction matrices on the host, by LAPACK: cheaper than all of them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal, lapack


def extreme_eigenpairs(
    w: Float[np.ndarray, "d h"], v: Float[np.ndarray, "d h"], out: Float[np.ndarray, "h outputs"], k: int
) -> tuple[Float[np.ndarray, "outputs k"], Float[np.ndarray, "outputs k d"], Float[np.ndarray, "outputs k"]]:
    """The k eigenpairs of each A_o = Σ_h P[h, o]·sym(w_h v_hᵀ) that are largest in size: values, vectors, residuals.

    Each matrix is formed, made tridiagonal once, and let go; its k largest and its k smallest eigenvalues are found there,
    and only their vectors are carried back. 1 ≤ k ≤ d. The dtype is that of the weights, float32 or float64.
    """

    def solve(column: np.ndarray):
        product = (w * column) @ v.T
        matrix = (product + product.T) / 2
        values, vectors = _one(matrix, k)
        residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
        return values, vectors, residuals

    # One output's products run while another's LAPACK does, which holds Python's lock.
    with ThreadPoolExecutor(2) as pool:
        solved = list(pool.map(solve, out.T))
    values, vectors, residuals = (np.stack(part).astype(w.dtype) for part in zip(*solved, strict=True))
    return values, vectors, residuals


def _one(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    d = len(matrix)
    if d < 3:
        values, columns = np.linalg.eigh(matrix)
        order = np.argsort(-np.abs(values), kind="stable")[:k]
        return values[order], columns[:, order].T
    tridiagonal, apply = (
        (lapack.ssytrd, lapack.sormqr) if matrix.dtype == np.float32 else (lapack.dsytrd, lapack.dormqr)
    )
    reflectors, diagonal, beside, scales, _ = tridiagonal(matrix, lower=1, lwork=64 * d)
    diagonal, beside = diagonal.astype(np.float64), beside.astype(np.float64)
    low = min(k, d - k)  # the two ends do not overlap
    ends = [eigh_tridiagonal(diagonal, beside, select="i", select_range=(d - k, d - 1))]
    if low:
        ends.append(eigh_tridiagonal(diagonal, beside, select="i", select_range=(0, low - 1)))
    values, columns = (np.concatenate(part, axis=-1) for part in zip(*ends, strict=True))
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    # The reflectors act on all rows but the first; they lie below the diagonal beside the diagonal.
    columns = np.asfortranarray(columns[:, order], dtype=matrix.dtype)
    turned, _, _ = apply("L", "N", np.asfortranarray(reflectors[1:, :-1]), scales, columns[1:], lwork=64 * d)
    return values[order], np.concatenate([columns[:1], turned]).T
