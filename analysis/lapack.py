"""A few extreme eigenpairs of dense symmetric matrices on the host, by LAPACK: cheaper than all of them."""

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal, lapack


def extreme_eigenpairs(
    matrices: Float[np.ndarray, "m d d"], k: int
) -> tuple[Float[np.ndarray, "m k"], Float[np.ndarray, "m k d"], Float[np.ndarray, "m k"]]:
    """The k eigenpairs of each symmetric matrix (m, d, d) that are largest in size: values, vectors, residuals.

    Each matrix is made tridiagonal once; its k largest and its k smallest eigenvalues are found there, and only their
    vectors are carried back. 1 ≤ k ≤ d. The dtype is that of the matrices, float32 or float64.
    """
    pairs = [_one(matrix, k) for matrix in matrices]
    values, vectors = (np.stack(part).astype(matrices.dtype) for part in zip(*pairs, strict=True))
    images = np.einsum("mkd,mde->mke", vectors, matrices, optimize=True)
    residuals = np.linalg.norm(images - values[:, :, None] * vectors, axis=2)
    return values, vectors, residuals.astype(matrices.dtype)


def _one(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    d = len(matrix)
    if d < 3:
        values, columns = np.linalg.eigh(matrix)
        order = np.argsort(-np.abs(values), kind="stable")[:k]
        return values[order], columns[:, order].T
    tridiagonal, apply = (lapack.ssytrd, lapack.sormqr) if matrix.dtype == np.float32 else (lapack.dsytrd, lapack.dormqr)
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
