"""The largest eigenpairs of many interaction matrices at once, by block Lanczos, without forming a matrix."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Columns that each output adds in one step. Small blocks need fewer products for the same accuracy; the blocks of
# all outputs are stacked, so that w and v are read once for all of them and the products stay large.
BLOCK = 4
# Steps between two looks at the Ritz pairs: a look costs a small eigenproblem for each output.
_STRIDE = 3


class _State(NamedTuple):
    basis: jax.Array  # Q (outputs, capacity, d): orthonormal rows, zero beyond `size`
    images: jax.Array  # A Q, the same shape: residuals then cost no product
    projected: jax.Array  # Q A Qᵀ (outputs, capacity, capacity)
    block: jax.Array  # the next rows of Q (outputs, BLOCK, d)
    size: jax.Array  # rows of Q in use
    products: jax.Array  # columns that each output has been multiplied with
    values: jax.Array  # (outputs, k), vectors (outputs, k, d) and residuals (outputs, k): the Ritz pairs at the last
    vectors: jax.Array  # look at each output; those of an output that has converged stay as they are
    residuals: jax.Array


def capacity_for(k: int, d: int) -> int:
    """Rows of the basis: enough for k pairs and the room to find them, in whole blocks, and at most half of d."""
    return min(-(-(4 * k + 4 * BLOCK) // BLOCK), d // 2 // BLOCK) * BLOCK


def krylov_eigenpairs(w, v, out, numbers, k: int, tol: float, most_products: int):
    """Ritz pairs of A_o = ½ Σ_h P[h, o]·(w_h v_hᵀ + v_h w_hᵀ) that are largest in size.

    Block Lanczos with full re-orthogonalisation, Rayleigh-Ritz and thick restarts (Wu and Simon 2000), until
    ‖A y - θ y‖ ≤ tol·|θ₁| for the first k pairs of each output. The start is random, drawn from the number of
    the output, so that it does not matter which outputs are solved together.

    A block sees no more copies of an eigenvalue than it has vectors. So what was found is taken out of A, and the
    largest of the rest is looked for from a new start, until that is smaller than what was found.

    Args:
      w, v: (d, h); out: P (h, outputs); numbers: (outputs,) int32.
      k, tol: as above; d must be at least k + 2·BLOCK.
      most_products: columns for each output after which the search ends, converged or not; as many again are spent
        on looking through the rest.

    Returns:
      values (outputs, k), vectors (outputs, k, d) and residuals ‖A y - θ y‖ (outputs, k); residuals are inf for an
      output whose rest was not looked through to the end. Host code.
    """
    taken = jnp.zeros((len(numbers), k, len(w)), w.dtype)
    zero = jnp.zeros(len(numbers), w.dtype)
    pairs, _, _ = _lanczos(w, v, out, numbers, taken, zero, zero, 0, most_products, k=k, tol=tol, again=False)
    left, start = most_products, 0
    while True:
        values, vectors, residuals = pairs
        least, start = jnp.min(jnp.abs(values), axis=1), start + 1
        about = (vectors, least, jnp.abs(values[:, 0]), start, left)
        rest, done, used = _lanczos(w, v, out, numbers, *about, k=min(k, BLOCK), tol=tol, again=True)
        # A pair of the same size as the last that was found is one of a cluster: either may stand for it.
        missed = done[:, None] & (jnp.abs(rest[0]) > least[:, None] + 2 * tol * jnp.abs(values[:, :1]))
        left -= int(used)
        if not jnp.any(missed) or left <= 0:
            complete = done & ~jnp.any(missed, axis=1)
            return values, vectors, jnp.where(complete[:, None], residuals, jnp.inf)
        pairs = _largest(pairs, tuple(jnp.where(_rows(missed, part), part, 0) for part in rest), k)


def _rows(mask, like):
    return mask.reshape(*mask.shape, *[1] * (like.ndim - 2))


@functools.partial(jax.jit, static_argnames="k")
def _largest(pairs, more, k: int):
    """The k largest of two sets of pairs, orthogonal to each other."""
    values, vectors, residuals = (jnp.concatenate(parts, axis=1) for parts in zip(pairs, more, strict=True))
    order = jnp.argsort(-jnp.abs(values), axis=1)[:, :k]
    values, residuals = (jnp.take_along_axis(array, order, axis=1) for array in (values, residuals))
    return values, jnp.take_along_axis(vectors, order[:, :, None], axis=1), residuals


@functools.partial(jax.jit, static_argnames=("k", "tol", "again"))
def _lanczos(w, v, out, numbers, taken, least, size, start, most_products, *, k: int, tol: float, again: bool):
    """One run of `krylov_eigenpairs`, from the random start of this number: pairs, which outputs are done, products.

    Where it runs `again`, `taken`, orthonormal rows (outputs, m, d), are taken out of A. A pair that is certain to be
    smaller than `least` (outputs,) need not converge; `tol` is relative to `size` (outputs,) where that is above |θ₁|.
    """
    d, capacity = len(w), capacity_for(k, len(w))
    outputs, dtype = len(numbers), w.dtype
    product = functools.partial(_multiply, w, v, out.T[:, None, :])

    def without(x):
        return x - jnp.einsum("obm,omd->obd", jnp.einsum("obd,omd->obm", x, taken), taken)

    def multiply(x):
        return without(product(x)) if again else product(x)

    def key(number):
        return jax.random.fold_in(jax.random.key(start), number)

    first = jax.vmap(lambda number: jax.random.normal(key(number), (BLOCK, d), dtype))(numbers)
    state = _State(
        basis=jnp.zeros((outputs, capacity, d), dtype),
        images=jnp.zeros((outputs, capacity, d), dtype),
        projected=jnp.zeros((outputs, capacity, capacity), dtype),
        block=_orthonormal(without(_orthonormal(without(first))) if again else first),
        size=jnp.zeros((), jnp.int32),
        products=jnp.zeros((), jnp.int32),
        values=jnp.zeros((outputs, k), dtype),
        vectors=jnp.zeros((outputs, k, d), dtype),
        residuals=jnp.full((outputs, k), jnp.inf, dtype),
    )

    def done(state):
        converged = state.residuals <= tol * jnp.maximum(jnp.abs(state.values[:, :1]), size[:, None])
        small = jnp.abs(state.values) + state.residuals < least[:, None]
        return small[:, 0] | jnp.all(converged | small, axis=1)

    def unfinished(state):
        return (state.products < most_products) & ~jnp.all(done(state))

    def cycle(state):
        state = jax.lax.fori_loop(0, _STRIDE, lambda _, state: _step(multiply, state), state)
        return _look(state, k, done(state))

    with jax.default_matmul_precision("highest"):
        state = jax.lax.while_loop(unfinished, cycle, state)
    return (state.values, state.vectors, state.residuals), done(state), state.products


def _multiply(w, v, rows, x):
    """A X for the blocks X (outputs, b, d), a row a vector: the rows of all outputs share each product."""
    outputs, b, d = x.shape
    flat = x.reshape(outputs * b, d)
    a, u = ((flat @ branch).reshape(outputs, b, -1) * rows for branch in (w, v))
    # The weights on the left: on CPUs that order is a third faster here, and elsewhere it makes no difference.
    a, u = (part.reshape(outputs * b, -1) for part in (a, u))
    half = jnp.einsum("dh,mh->dm", v, a) + jnp.einsum("dh,mh->dm", w, u)
    return half.T.reshape(x.shape) / 2


def _step(multiply, state: _State) -> _State:
    """Takes the next block into the basis, after a restart where there is no room for it."""
    capacity = state.basis.shape[1]
    state = jax.lax.cond(state.size + BLOCK > capacity, _restart, lambda state: state, state)
    image = multiply(state.block)
    at = state.size
    basis = jax.lax.dynamic_update_slice_in_dim(state.basis, state.block, at, axis=1)
    images = jax.lax.dynamic_update_slice_in_dim(state.images, image, at, axis=1)
    columns = jnp.einsum("ocd,obd->ocb", basis, image)
    projected = jax.lax.dynamic_update_slice_in_dim(state.projected, columns, at, axis=2)
    projected = jax.lax.dynamic_update_slice_in_dim(projected, columns.transpose(0, 2, 1), at, axis=1)
    block = _next_block(image, basis, state.products)
    return state._replace(
        basis=basis,
        images=images,
        projected=projected,
        block=block,
        size=at + BLOCK,
        products=state.products + BLOCK,
    )


def _restart(state: _State) -> _State:
    """Keeps the better half of the Ritz vectors; the next block is orthogonal to all of them already."""
    capacity = state.basis.shape[1]
    kept = max(state.values.shape[1] + BLOCK, capacity // 2 // BLOCK * BLOCK)
    values, rotation = _ritz(state.projected)
    rotation = jnp.where(jnp.arange(capacity)[:, None] < kept, rotation.transpose(0, 2, 1), 0)
    values = jnp.where(jnp.arange(capacity) < kept, values, 0)
    return state._replace(
        basis=rotation @ state.basis,
        images=rotation @ state.images,
        projected=jax.vmap(jnp.diag)(values),
        size=jnp.asarray(kept, jnp.int32),
    )


def _look(state: _State, k: int, done) -> _State:
    """The Ritz pairs and their residuals, for the outputs that were not `done` (outputs,) before."""
    values, rotation = _ritz(state.projected)
    values, rotation = values[:, :k], rotation[:, :, :k].transpose(0, 2, 1)
    vectors = rotation @ state.basis
    residuals = jnp.linalg.norm(rotation @ state.images - values[:, :, None] * vectors, axis=2)
    residuals = jnp.where(jnp.arange(k, dtype=jnp.int32)[None] < state.size, residuals, jnp.inf)
    done = done[:, None]
    return state._replace(
        values=jnp.where(done, state.values, values),
        vectors=jnp.where(done[:, :, None], state.vectors, vectors),
        residuals=jnp.where(done, state.residuals, residuals),
    )


def _ritz(projected):
    """Eigenvalues of the projected matrices, largest in size first, and eigenvectors as columns."""
    values, columns = jnp.linalg.eigh((projected + projected.transpose(0, 2, 1)) / 2)
    order = jnp.argsort(-jnp.abs(values), axis=1)
    return jnp.take_along_axis(values, order, axis=1), jnp.take_along_axis(columns, order[:, None, :], axis=2)


def _next_block(image, basis, products):
    """Orthonormal rows (outputs, b, d) that span what is new in A X: orthogonal to the basis."""

    def refilled(block):
        other = jax.random.normal(jax.random.key(products), block.shape, block.dtype) / block.shape[2] ** 0.5
        return jnp.where(jnp.any(block != 0, axis=2, keepdims=True), block, other)

    block = image
    for _ in range(2):  # once is not enough: what is left may be as small as the rounding of what was taken away
        block = _orthonormal(block - jnp.einsum("obc,ocd->obd", jnp.einsum("obd,ocd->obc", block, basis), basis))
        # Nothing is new where the basis spans an invariant subspace: then it goes on from somewhere else.
        block = jax.lax.cond(jnp.all(jnp.any(block != 0, axis=2)), lambda block: block, refilled, block)
    return _orthonormal(block)


def _orthonormal(rows):
    """Orthonormal rows with the same span, (outputs, b, d), by Gram-Schmidt; 0 for a row that depends on those before.

    Not by QR: where two batched LAPACK calls of one program do not depend on each other, they may run at the same
    time, and in jaxlib each then waits for a thread that the other holds. On 2 cores that is for ever.
    """
    done = []
    for row in jnp.unstack(rows, axis=1):
        length = jnp.linalg.norm(row, axis=1, keepdims=True)
        for other in done:
            row = row - jnp.sum(row * other, axis=1, keepdims=True) * other
        left = jnp.linalg.norm(row, axis=1, keepdims=True)
        new = left > 10 * jnp.finfo(row.dtype).eps * length
        done.append(jnp.where(new, row / jnp.where(new, left, 1), 0))
    return jnp.stack(done, axis=1)
