"""Derivatives of the kernels: `custom_vjp` rules with forward and backward in Pallas.

There is no forward mode; JAX says so. Reverse over reverse works: each kernel call has a derivative of its own, by XLA.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sqs_jax.kernels import LARGEST, Plan, epilogues, load, rows, xla

BRANCH_NAMES = ("glu_linear", "glu_gate")


@dataclasses.dataclass(frozen=True)
class _Call:
    """A kernel with all that is fixed when it is built; called with arrays it runs."""

    epilogue: Callable
    gate: Any
    plan: Plan

    def kernel(self, *arrays):
        return load(self.plan.backend).elementwise(self.epilogue, self.gate, arrays, interpret=self.plan.interpret)

    def reference(self, *arrays):
        return xla.elementwise(self.epilogue, self.gate, arrays)

    def is_shared(self, index: int) -> bool:
        """Whether array `index` has no rows of its own, as weights have none."""
        return False


@dataclasses.dataclass(frozen=True)
class _ProductCall(_Call):
    """The same for the two products; arrays: x, w, v, biases, further inputs of the epilogue."""

    precision: Any = None
    biases: int = 0

    def kernel(self, *arrays):
        x, w, v, *rest = arrays
        backend = load(self.plan.backend)
        settings = {"tile": self.plan.tile, "interpret": self.plan.interpret}
        biases, extra = rest[: self.biases], rest[self.biases :]
        return backend.dual_product(self.epilogue, self.gate, x, w, v, biases, extra, self.precision, **settings)

    def reference(self, *arrays):
        x, w, v, *rest = arrays
        biases, extra = rest[: self.biases], rest[self.biases :]
        return xla.dual_product(self.epilogue, self.gate, x, w, v, biases, extra, self.precision)

    def is_shared(self, index: int) -> bool:
        return 1 <= index < 3 + self.biases


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(call: _Call, *arrays):
    @jax.custom_batching.custom_vmap
    def run(*arrays):
        return tuple(call.kernel(*arrays))

    @run.def_vmap
    def batched(size, is_batched, *arrays):
        weights = [call.is_shared(i) for i in range(len(arrays))]
        m, widest = arrays[0].shape[-2], max(array.shape[-1] for array in arrays)
        own_weights = any(has and is_weight for has, is_weight in zip(is_batched, weights, strict=True))
        if own_weights or not size or size * m * widest > LARGEST:
            everything = [_repeated(a, has, size) for a, has in zip(arrays, is_batched, strict=True)]
            results = jax.lax.map(lambda each: run(*each), tuple(everything))
        else:  # the further axis becomes rows
            folded = [
                array if is_weight else _repeated(array, has, size).reshape(-1, array.shape[-1])
                for array, has, is_weight in zip(arrays, is_batched, weights, strict=True)
            ]
            results = tuple(result.reshape(size, m, result.shape[-1]) for result in run(*folded))
        return results, (True,) * len(results)

    return run(*arrays)


@_run.defjvp
def _run_jvp(call, primals, tangents):
    return _run(call, *primals), jax.jvp(call.reference, primals, tangents)[1]


def activation(x, gate, plan: Plan) -> jax.Array:
    """σ(x) for x (...), as `sqs_jax.sqs` with a kernel."""
    return jnp.reshape(_activation(_rows(x), gate, plan), x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _activation(x, gate, plan):
    return _run(_Call(epilogues.activation, gate, plan), x)[0]


def _activation_forward(x, gate, plan):
    return _activation(x, gate, plan), x


def _activation_backward(gate, plan, x, g):
    return _run(_Call(epilogues.activation_gradient, gate, plan), x, g)


_activation.defvjp(_activation_forward, _activation_backward)


def gated(a, u, gate, plan: Plan) -> jax.Array:
    """h = a ⊙ σ(u) for a and u (...), as `sqs_jax.gated` with a kernel."""
    a, u = _same_axes(a, u)
    return jnp.reshape(_gated(_rows(a), _rows(u), gate, plan), a.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _gated(a, u, gate, plan):
    return _run(_Call(epilogues.output, gate, plan), a, u)[0]


def _gated_forward(a, u, gate, plan):
    return _gated(a, u, gate, plan), (a, u)


def _gated_backward(gate, plan, kept, g):
    return _run(_Call(epilogues.gradients, gate, plan), *kept, g)


_gated.defvjp(_gated_forward, _gated_backward)


def gated_linear(x, w, v, biases, gate, plan: Plan, residuals: str, precision) -> jax.Array:
    """(x W + b_w) ⊙ σ(x V + b_v) for x (..., d), as `sqs_jax.gated_linear` with a kernel; biases () or (b_w, b_v)."""
    x, w, v, *biases = _same_axes(x, w, v, *biases)
    h: Any = _gated_linear(_rows(x), w, v, tuple(biases), gate, plan, residuals, precision)
    return jnp.reshape(h, (*x.shape[:-1], w.shape[1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _gated_linear(x, w, v, biases, gate, plan, residuals, precision):
    return _run(_ProductCall(epilogues.output, gate, plan, precision, len(biases)), x, w, v, *biases)[0]


def _gated_linear_forward(x, w, v, biases, gate, plan, residuals, precision):
    if residuals == "recompute":
        h = _gated_linear(x, w, v, biases, gate, plan, residuals, precision)
        return h, (x, w, v, biases, None)
    call = _ProductCall(epilogues.output_and_branches, gate, plan, precision, len(biases))
    h, *branches = _run(call, x, w, v, *biases)
    kept = tuple(map(checkpoint_name, branches, BRANCH_NAMES))
    return h, (x, w, v, biases, kept)


def _gated_linear_backward(gate, plan, residuals, precision, kept, g):
    x, w, v, biases, branches = kept
    if branches is None:
        call = _ProductCall(epilogues.gradients, gate, plan, precision, len(biases))
        da, du = _run(call, x, w, v, *biases, g)
    else:
        da, du = _run(_Call(epilogues.gradients, gate, plan), *branches, g)
    # Four plain products: the vendor's are the best there are.
    multiply = functools.partial(jnp.matmul, precision=precision)
    dx = multiply(da, w.T) + multiply(du, v.T)
    summed = (xla.sum_rows(da), xla.sum_rows(du)) if biases else ()
    return dx, multiply(x.T, da), multiply(x.T, du), summed


_gated_linear.defvjp(_gated_linear_forward, _gated_linear_backward)


def _repeated(array, is_batched, size):
    """With a first axis of `size`."""
    return array if is_batched else jnp.broadcast_to(array, (size, *array.shape))


def _rows(x):
    return x.reshape(rows(x))


def _same_axes(*arrays):
    """In a `shard_map`, all arrays as varying over the axes that any of them varies over: a cast's transpose sums."""
    axes = [_varying(array) for array in arrays]
    every = frozenset().union(*axes)
    return [
        jax.lax.pcast(array, tuple(every - present), to="varying") if every - present else array
        for array, present in zip(arrays, axes, strict=True)
    ]


def _varying(array) -> frozenset:
    kind = jax.typeof(array)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
