"""The backend that every device has: plain jax.numpy, fused by XLA, differentiable to any order."""

import jax
import jax.numpy as jnp


def arithmetic_dtype(dtype) -> jnp.dtype:
    """The dtype to compute in: float32 below float32, else the dtype itself."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def products(x, w, v, biases, precision) -> tuple[jax.Array, jax.Array]:
    """a = x W + b_w and u = x V + b_v in the dtype of x; biases are () or (b_w, b_v), of the arithmetic's dtype."""

    def branch(weights, bias):
        # Not asked for in float32: the products of the backward pass would then be in float32 too.
        product = jnp.matmul(x, weights, precision=precision)
        if bias is None:
            return product
        bias = jnp.expand_dims(bias, tuple(range(product.ndim - 1)))
        return (product.astype(bias.dtype) + bias).astype(x.dtype)

    w_bias, v_bias = biases or (None, None)
    return branch(w, w_bias), branch(v, v_bias)


def elementwise(epilogue, gate, arrays) -> tuple[jax.Array, ...]:
    """An epilogue on arrays of one shape and dtype, computed in at least float32 and rounded once."""
    dtype = arrays[0].dtype
    wide = [array.astype(arithmetic_dtype(dtype)) for array in arrays]
    return tuple(result.astype(dtype) for result in epilogue(gate, *wide))


def dual_product(epilogue, gate, x, w, v, biases, extra, precision) -> tuple[jax.Array, ...]:
    """An epilogue of the two products, and of further arrays (…, h)."""
    return elementwise(epilogue, gate, (*products(x, w, v, biases, precision), *extra))


def sum_rows(x) -> jax.Array:
    """Sum over the rows of x (m, n), in at least float32."""
    return x.sum(0, dtype=arithmetic_dtype(x.dtype))
