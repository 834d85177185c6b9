"""Eigenpairs of interaction matrices: all of them by batched eigh, or the largest without forming a matrix."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from sqs_jax.analysis.derivatives import pair_tangents
from sqs_jax.analysis.interaction import (
    Basis,
    GLUWeights,
    at_least_float32,
    branches,
    check_weights,
    exponent,
    homogeneous,
    input_size,
    scaled,
    with_gain,
)
from sqs_jax.analysis.krylov import BLOCK, capacity_for, krylov_eigenpairs
from sqs_jax.analysis.lapack import extreme_eigenpairs

Method = Literal["auto", "dense", "krylov"]

# Bytes that the matrices or the bases of the outputs that are solved together may take.
MEMORY = 2**30
# Below this size a matrix is decomposed whole sooner than Krylov finds its largest pairs.
_LEAST_FOR_KRYLOV = 200
_MODERATE = 8  # powers of two
# On a CPU, below this size LAPACK finds a few pairs of a dense matrix sooner than Krylov, whatever the spectrum.
_MOST_FOR_LAPACK = 640


class NotConvergedError(ArithmeticError):
    """Eigenpairs were asked for to a tolerance that the iteration did not reach."""


class Eigenpairs(NamedTuple):
    """Eigenpairs of each output's matrix, the largest in size first, and how exact they are."""

    values: Float[Array, "outputs k"]
    """λ (outputs, k), sorted by |λ|."""
    vectors: Float[Array, "outputs k d"]
    """Unit eigenvectors (outputs, k, d), a row each, the entry of largest size positive."""
    residuals: Float[Array, "outputs k"]
    """‖A v - λ v‖ (outputs, k), in the units of λ."""


@jax.jit
def eigenpairs(matrices: Float[Array, "outputs d d"]) -> Eigenpairs:
    """All eigenpairs of symmetric matrices (outputs, d, d), which stand for A = Σ_i λ_i v_i v_iᵀ each.

    Sorted by |λ|, the largest first. An eigenvector has no sign of its own: each is turned so that its entry
    of largest size is positive.

    Raises ValueError for an array of another shape, or that is not real floating point; below float32 it is widened.
    """
    if not jnp.issubdtype(matrices.dtype, jnp.floating):
        raise ValueError(f"`matrices` has dtype {matrices.dtype}: a real floating-point dtype is needed")
    matrices = at_least_float32(matrices)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"`matrices` has shape {matrices.shape}: (outputs, d, d) is needed")
    values, columns = jnp.linalg.eigh(matrices)
    order = jnp.argsort(-jnp.abs(values), axis=1)
    values, vectors = jnp.take_along_axis(values, order, axis=1), columns.transpose(0, 2, 1)
    vectors = _turned(jnp.take_along_axis(vectors, order[:, :, None], axis=1))
    with jax.default_matmul_precision("highest"):  # GPUs and TPUs would round the factors
        residuals = jnp.linalg.norm(vectors @ matrices - values[:, :, None] * vectors, axis=2)
    return Eigenpairs(values, vectors, residuals)


def spectrum(
    weights: GLUWeights,
    *,
    basis: Basis = "input",
    count: int | None = None,
    gain: Float[Array, " h"] | None = None,
    memory: int = MEMORY,
) -> Eigenpairs:
    """The `count` eigenpairs of each output's interaction matrix that are largest in size; by default all d of them.

    Equal to the first of `eigenpairs(interaction_matrices(weights, basis=basis, gain=gain))`, but where the rank
    allows it the eigenproblem is solved in the span of the rows of all forms, which is smaller: its dimension is at
    most 2h, and for the input basis at most the width of the embedding. The pairs of the null space come last.
    For the few largest of a big layer, see `top_eigenpairs`. Works under jit, vmap and grad: derivatives are those of
    an eigenpair in closed form, dλ = vᵀ dA v and dv = Σ_j v_j (v_jᵀ dA v) / (λ - λ_j), NaN for the eigenvector of an
    eigenvalue that another one equals to rounding. The residuals have none.

    Args:
      weights, basis, gain: as in `interaction_matrices`.
      count: from 1 to d.
      memory: bytes that matrices may take at a time; outputs are solved in chunks that fit. No result depends on it.

    Returns values (outputs, count), vectors (outputs, count, d) and residuals; for "input", d is the number of inputs.

    Raises ValueError as `interaction_matrices` does, and for a `count` or `memory` out of range.
    """
    weights, gain = _checked(weights, gain)
    d = dimension(weights, basis)
    count = d if count is None else count
    if not 1 <= count <= d:
        raise ValueError(f"`count` is {count}: a number from 1 to {d} is needed")
    _check_memory(memory)
    if is_traced((weights, gain)) or weights.out.shape[1] == 1:
        return _spectrum(basis, count, memory, weights, gain)
    with _one_thread_a_matrix():
        return jax.block_until_ready(_spectrum(basis, count, memory, weights, gain))


def is_traced(tree) -> bool:
    """Whether any array of a pytree is traced, by jit, vmap or grad."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


@contextlib.contextmanager
def _one_thread_a_matrix() -> Iterator[None]:
    """Gives each matrix one BLAS thread on a CPU, where the matrices of a batch are already solved in parallel.

    With more the threads wait for each other: 200 matrices of 576 rows took six times as long on two cores.
    """
    with threadpool_limits(1, user_api="blas") if jax.default_backend() == "cpu" else contextlib.nullcontext():
        yield


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _spectrum(basis: Basis, count: int, memory: int, weights, gain) -> Eigenpairs:
    with jax.default_matmul_precision("highest"):
        weights, exponents = scaled(with_gain(weights, gain))
        q, w, v = _reduced(homogeneous(weights), basis, complete=count > rank_bound(weights, basis))
        rank = len(w)
        kept = min(count, rank)

        def solve(column):
            product = (w * column[None]) @ v.T
            pairs = eigenpairs(((product + product.T) / 2)[None])
            values, vectors, residuals = (array[0, :kept] for array in pairs)
            if q is not None:
                vectors = jnp.concatenate([vectors @ q[:, :rank].T, q[:, rank:count].T])
            values, residuals = (jnp.pad(array, (0, count - kept)) for array in (values, residuals))
            return Eigenpairs(values, _turned(vectors[None])[0], residuals)

        # The matrix, its eigenvectors and the workspace of their solver.
        chunk = max(1, memory // (4 * rank**2 * w.dtype.itemsize))
        columns = weights.out.T
        pairs = jax.vmap(solve)(columns) if chunk >= len(columns) else jax.lax.map(solve, columns, batch_size=chunk)
        return _unscaled(pairs, exponents)


@_spectrum.defjvp
def _spectrum_jvp(basis, count, memory, primals, tangents):
    # All pairs that are not of the null space: what the solver does inside, QR among it, is not differentiated.
    every = _spectrum(basis, max(count, rank_bound(primals[0], basis)), memory, *primals)
    return _with_tangents(basis, count, every, primals, tangents)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _with_tangents(basis, count, every, primals, tangents):
    """The first pairs of `every`, and their tangents."""
    pairs = Eigenpairs(*(array[:, :count] for array in every))

    def images(weights, gain):
        """A_o v (outputs, count, d) for the vectors as they stand."""
        weights = with_gain(weights, gain)
        w, v = branches(weights, basis)
        columns = weights.out.T[:, None]
        return ((pairs.vectors @ w * columns) @ v.T + (pairs.vectors @ v * columns) @ w.T) / 2

    with jax.default_matmul_precision("highest"):
        change = jax.jvp(images, primals, tangents)[1]
        values, vectors = pair_tangents(pairs.values, pairs.vectors, every.values, every.vectors, change)
    return pairs, Eigenpairs(values, vectors, jnp.zeros_like(pairs.residuals))


def top_eigenpairs(
    weights: GLUWeights,
    k: int = 10,
    *,
    method: Method = "auto",
    tol: float = 1e-4,
    basis: Basis = "input",
    gain: Float[Array, " h"] | None = None,
    memory: int = MEMORY,
) -> Eigenpairs:
    """The k eigenpairs of each output's interaction matrix that are largest in size.

    "krylov" never forms a matrix: it needs the weights and 2·(4k + 16)·d numbers an output. "dense" is `spectrum`.
    "auto" takes the faster one; on a CPU, for d ≤ 640 and where Krylov does not converge, k pairs of dense matrices.

    Args:
      weights, basis, gain: as in `interaction_matrices`.
      k: from 1 to the rank that the weights allow, min(d, 2h) or less where an embedding is narrower.
      method: "auto", "dense" or "krylov".
      tol: for Krylov, largest ‖A v - λ v‖ of any pair, over |λ₁| of its output; ≥ 1e-6 is within reach of float32.
      memory: bytes that matrices, or Krylov's bases, may take at a time; outputs are solved in chunks that fit.
        No result depends on it beyond rounding.

    Returns values (outputs, k), vectors (outputs, k, d) and residuals (outputs, k). A pair of eigenvalues that
    are closer than the residual stands for a plane: its vectors are any two orthonormal ones of it.
    Krylov is host code: under jit, vmap or grad "auto" takes "dense". Raises ValueError for arguments out of range,
    TypeError for "krylov" where the weights are traced, and NotConvergedError where "krylov" does not reach `tol`.

    References: Golub and Underwood 1977 (block Lanczos); Wu and Simon 2000 (thick restart).
    """
    weights, gain = _checked(weights, gain)
    rank, d, traced = rank_bound(weights, basis), dimension(weights, basis), is_traced((weights, gain))
    # A restart keeps k + BLOCK rows of the basis and needs room for a block beside them.
    least = 2 * -(-(k + 2 * BLOCK) // BLOCK) * BLOCK
    _check_top(k, method, tol, rank=rank, d=d, least=least, traced=traced)
    _check_memory(memory)
    if traced or method == "dense" or (method == "auto" and rank < max(_LEAST_FOR_KRYLOV, 12 * k, least)):
        return spectrum(weights, basis=basis, count=k, gain=gain, memory=memory)
    if method == "auto" and d <= _MOST_FOR_LAPACK and rank == d and jax.default_backend() == "cpu":
        return _few_dense(weights, gain, k, basis, memory)
    most_products = rank // 2 if method == "auto" else 4 * d  # "auto" then has spent what the dense solution costs
    pairs = _krylov(weights, gain, k, tol, basis, memory, most_products=most_products)
    errors = _relative_residuals(pairs)
    if jnp.all(errors <= tol):
        return pairs
    if method == "auto":
        return _completed(pairs, np.flatnonzero(errors > tol), weights, gain, k, basis, memory)
    raise NotConvergedError(_not_converged(tol, most_products, float(jnp.max(errors))))


def _not_converged(tol: float, products: int, worst: float) -> str:
    spent = f"after {products} products, or as many more for copies, a largest residual is {worst:.2g}"
    return f"`tol` is {tol:g}, and {spent}: a larger `tol`, or `method` 'dense', is needed"


def _completed(pairs: Eigenpairs, left: np.ndarray, weights, gain, k: int, basis: Basis, memory: int) -> Eigenpairs:
    """The pairs with those of the outputs that are `left` solved densely."""
    rest = _few_dense(weights._replace(out=weights.out[:, left], out_bias=None, skip=None), gain, k, basis, memory)
    return Eigenpairs(*(array.at[left].set(part) for array, part in zip(pairs, rest, strict=True)))


@jax.jit
def _relative_residuals(pairs: Eigenpairs) -> Array:
    """The largest residual of each output (outputs,), over its |λ₁|."""
    least = jnp.finfo(pairs.values.dtype).tiny
    return jnp.max(pairs.residuals / jnp.maximum(jnp.abs(pairs.values[:, :1]), least), axis=1)


def _few_dense(weights, gain, k: int, basis: Basis, memory: int) -> Eigenpairs:
    """The k largest pairs of dense matrices: by LAPACK on a CPU, elsewhere of all pairs."""
    if jax.default_backend() != "cpu":
        return spectrum(weights, basis=basis, count=k, gain=gain, memory=memory)
    weights, exponents = scaled(with_gain(weights, gain))
    w, v = (np.asarray(branch) for branch in branches(weights, basis))
    with _one_thread_a_matrix():
        values, vectors, residuals = map(jnp.asarray, extreme_eigenpairs(w, v, np.asarray(weights.out), k))
    return _unscaled(Eigenpairs(values, _turned(vectors), residuals), exponents)


def _check_top(k: int, method: str, tol: float, *, rank: int, d: int, least: int, traced: bool) -> None:
    """Raises as `top_eigenpairs`; `least` is the smallest d that Krylov's method takes."""
    if not 1 <= k <= rank:
        raise ValueError(f"`k` is {k}: a number from 1 to {rank}, the rank that the weights allow, is needed")
    if method not in ("auto", "dense", "krylov"):
        raise ValueError(f"`method` is {method!r}: 'auto', 'dense' or 'krylov' is needed")
    if not 0 < tol < 1:
        raise ValueError(f"`tol` is {tol}: a number between 0 and 1 is needed")
    if method == "krylov" and d < least:
        raise ValueError(f"`method` 'krylov' needs d ≥ {least} for k = {k}, and d is {d}: take 'dense'")
    if traced and method == "krylov":
        raise TypeError("`weights` is traced: `method` 'krylov' runs on the host, outside of jit, vmap and grad")


def _krylov(weights, gain, k, tol, basis, memory, most_products) -> Eigenpairs:
    weights, exponents = with_gain(weights, gain), None
    if not _is_moderate(weights):  # else no copy is made
        weights, exponents = scaled(weights)
    # Not under jit, whose results are copies: w and v may be most of the memory.
    with jax.default_matmul_precision("highest"):
        w, v = branches(weights, basis)
    columns = weights.out.T
    (d, h), outputs = w.shape, len(columns)
    each = (2 * capacity_for(k, d) * d + 4 * BLOCK * h + 3 * k * d) * w.dtype.itemsize
    chunks = -(-outputs // max(1, memory // each))
    chunk = -(-outputs // chunks)
    # All chunks have one size, so that one program serves them; what the last lacks are forms that are 0.
    columns = jnp.pad(columns, ((0, chunks * chunk - outputs), (0, 0)))
    numbers = jnp.arange(chunks * chunk, dtype=jnp.int32)
    solved = [
        krylov_eigenpairs(w, v, columns[i : i + chunk].T, numbers[i : i + chunk], k, tol, most_products)
        for i in range(0, chunks * chunk, chunk)
    ]
    joined = solved[0] if chunks == 1 else tuple(jnp.concatenate(parts) for parts in zip(*solved, strict=True))
    values, vectors, residuals = (array[:outputs] for array in joined)
    pairs = Eigenpairs(values, _turned(vectors), residuals)
    return pairs if exponents is None else _unscaled(pairs, exponents)


@jax.jit
def _is_moderate(weights: GLUWeights) -> jax.Array:
    """Whether the entries are close enough to 1 in size for forms and their squares to stay in the range of float32."""
    w, v, out = exponent(weights.w, weights.w_bias), exponent(weights.v, weights.v_bias), exponent(weights.out, axis=0)
    embed = jnp.zeros_like(w) if weights.embed is None else exponent(weights.embed)
    sizes = jnp.concatenate([jnp.stack([w, v, embed]), out])
    return jnp.all(jnp.abs(sizes) <= _MODERATE)


@jax.jit
def _unscaled(pairs: Eigenpairs, exponents: jax.Array) -> Eigenpairs:
    values, residuals = (jnp.ldexp(array, exponents[:, None]) for array in (pairs.values, pairs.residuals))
    return pairs._replace(values=values, residuals=residuals)


def _reduced(weights: GLUWeights, basis: Basis, complete: bool):
    """Q, W', V' with W = Q W' and V = Q V', Q's columns orthonormal and W' of fewer rows; Q is None where W' is W.

    `complete` adds the columns that make Q square.
    """
    w, v = branches(weights, basis)
    d, h = w.shape
    mode = "complete" if complete else "reduced"
    width = d if basis == "hidden" or weights.embed is None else weights.embed.shape[1]
    if 2 * h < min(d, width):
        factor, rank = jnp.concatenate([w, v], axis=1), 2 * h
    elif width < d and weights.embed is not None:
        factor, rank = weights.embed, width
    else:
        return None, w, v
    # A barrier, for what LAPACK does to Q and to the eigenproblem must not run at once: see `krylov._orthonormal`.
    q, r = jax.lax.optimization_barrier(jnp.linalg.qr(factor, mode=mode))
    r = r[:rank]
    return (
        (q, r[:, :h], r[:, h:]) if rank == 2 * h and factor is not weights.embed else (q, r @ weights.w, r @ weights.v)
    )


def dimension(weights: GLUWeights, basis: Basis) -> int:
    """Size of each matrix in a basis."""
    if basis not in ("input", "hidden"):
        raise ValueError(f"`basis` is {basis!r}: 'input' or 'hidden' is needed")
    inputs = len(weights.w) if basis == "hidden" else input_size(weights)
    return inputs + (weights.w_bias is not None or weights.v_bias is not None)


def rank_bound(weights: GLUWeights, basis: Basis) -> int:
    """The largest rank that a form in this basis can have."""
    return min(dimension(weights, basis), dimension(weights, "hidden"), 2 * weights.w.shape[1])


def _checked(weights: GLUWeights, gain):
    """The weights in float32 or float64, after all checks."""
    check_weights(weights, gain)
    return at_least_float32((weights, gain))


def _check_memory(memory: int):
    if memory < 1:
        raise ValueError(f"`memory` is {memory}: bytes, 1 or more, are needed")


@jax.jit
def _turned(vectors):
    """Rows with their entry of largest size positive."""
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=2)[:, :, None], axis=2)
    return vectors * jnp.where(largest < 0, -1, 1).astype(vectors.dtype)
