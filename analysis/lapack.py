"""A few extreme eigenpairs of interaction matrices on the host, by LAPACK: cheaper than all of them."""

import ctypes
import functools
import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal

_BLOCK = 64  # rows of LAPACK's workspace


def extreme_eigenpairs(
    w: Float[np.ndarray, "d h"], v: Float[np.ndarray, "d h"], out: Float[np.ndarray, "h outputs"], k: int
) -> tuple[Float[np.ndarray, "outputs k"], Float[np.ndarray, "outputs k d"], Float[np.ndarray, "outputs k"]]:
    """The k eigenpairs of each A_o = Σ_h P[h, o]·sym(w_h v_hᵀ) that are largest in size: values, vectors, residuals.

    Each matrix is formed, made tridiagonal once, and let go; its k largest and its k smallest eigenvalues are found
    there, and only their vectors are carried back. 1 ≤ k ≤ d. The dtype is that of the weights, float32 or float64.
    """

    def solve(column: np.ndarray):
        product = (w * column) @ v.T
        matrix = (product + product.T) / 2
        values, vectors = _one(matrix, k)
        residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
        return values, vectors, residuals

    # Each thread has its own matrices: neither the products nor `_tridiagonal` hold Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        solved = list(pool.map(solve, out.T))
    values, vectors, residuals = (np.stack(part).astype(w.dtype) for part in zip(*solved, strict=True))
    return values, vectors, residuals


def _one(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    d = len(matrix)
    if d < 3:
        values, columns = np.linalg.eigh(matrix)
        order = np.argsort(-np.abs(values), kind="stable")[:k]
        return values[order], columns[:, order].T
    reflectors, diagonal, beside, scales = _tridiagonal(matrix)
    diagonal, beside = diagonal.astype(np.float64), beside.astype(np.float64)
    low = min(k, d - k)  # the two ends do not overlap
    ends = [eigh_tridiagonal(diagonal, beside, select="i", select_range=(d - k, d - 1))]
    if low:
        ends.append(eigh_tridiagonal(diagonal, beside, select="i", select_range=(0, low - 1)))
    values, columns = (np.concatenate(part, axis=-1) for part in zip(*ends, strict=True))
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    # The reflectors act on all rows but the first; they lie below the diagonal beside the diagonal.
    columns = np.asfortranarray(columns[:, order], dtype=matrix.dtype)
    apply = getattr(importlib.import_module("scipy.linalg.lapack"), f"{_letter(matrix)}ormqr")
    turned, _, _ = apply("L", "N", np.asfortranarray(reflectors[1:, :-1]), scales, columns[1:], lwork=_BLOCK * d)
    return values[order], np.concatenate([columns[:1], turned]).T


def _tridiagonal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A = Q T Qᵀ: the reflectors of Q below the diagonal, T's diagonal, what is beside it, and the reflectors' scales.

    By LAPACK's sytrd, called so that other threads go on: SciPy's own function holds Python's lock for all of it.
    """
    d, dtype = len(matrix), matrix.dtype
    reflectors = np.asfortranarray(matrix)
    reflectors = reflectors.copy(order="F") if reflectors is matrix else reflectors
    diagonal, beside, scales, work = (np.empty(size, dtype) for size in (d, d - 1, d - 1, _BLOCK * d))
    size, length, info = (ctypes.byref(ctypes.c_int(number)) for number in (d, _BLOCK * d, 0))
    arrays = [array.ctypes.data_as(ctypes.c_void_p) for array in (reflectors, diagonal, beside, scales, work)]
    function = _lapack_function(f"{_letter(matrix)}sytrd")
    function(ctypes.c_char_p(b"L"), size, arrays[0], size, *arrays[1:], length, info)
    return reflectors, diagonal, beside, scales


def _letter(matrix: np.ndarray) -> str:
    """How LAPACK's names of a dtype begin."""
    return "s" if matrix.dtype == np.float32 else "d"


@functools.cache
def _lapack_function(name: str) -> Callable[..., None]:
    """One of LAPACK's sytrd functions, by its address in SciPy."""
    capsule = importlib.import_module("scipy.linalg.cython_lapack").__pyx_capi__[name]
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = address_of(capsule, name_of(capsule))
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p, *[ctypes.c_void_p] * 9)(address)
