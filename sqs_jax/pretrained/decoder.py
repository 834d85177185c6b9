"""What a pretrained language model computes, as functions of arrays: embedding, attention, GLU, logits, one token more.

Weights of a block are a dict of arrays by the names of `sqs_jax.pretrained.families`: matrices stand on the right of
their input. What is computed has the dtype of stream and weights; norms, scores and logits are float32 at least.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.activation import sqs
from sqs_jax.gates import Gate, get_gate
from sqs_jax.pretrained.architecture import Architecture, BlockKind, Rope

Weights = dict[str, jax.Array]
KeysValues = tuple[jax.Array, jax.Array]
_QUERIES, _STRETCHES = 128, 8  # the least of a stretch, and the most stretches: each is a part of the program


def rms(x: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x²) + ε) over the last axis, computed in float32 at least."""
    wide = x.astype(_wide(x))
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=0)
def embed(arch: Architecture, embedding: jax.Array, tokens: jax.Array) -> jax.Array:
    """The embedded tokens (batch, length, d): the stream as the first block gets it."""
    return embedding[tokens] * arch.embedding_scale


def attend(arch: Architecture, kind: BlockKind, weights: Weights, x: jax.Array) -> tuple[jax.Array, KeysValues]:
    """The stream (batch, length, d) after attention, before the GLU; and keys and values (batch, length, heads, n)."""
    positions = jnp.arange(x.shape[1], dtype=jnp.int32)
    q, k, v = _queries_keys_values(arch, kind, weights, x, positions[None])
    read = _causal_attention(arch, kind, q, k, v, positions)
    return add(arch, weights, "attention", x, _projected(weights, read)), (k, v)


def glu_input(arch: Architecture, x: jax.Array) -> jax.Array:
    """What the GLU reads, before the scale of its norm: x / rms(x), or x itself where no norm stands before it."""
    return x if arch.norms == "after" else rms(x, arch.epsilon)


def glu(kind: BlockKind, weights: Weights, z: jax.Array) -> jax.Array:
    """The GLU of `glu_input` z (..., d): ((z W + b_w) ⊙ (σ(z V + b_v) + β)) D + b, before the norm after it.

    Biases and β, `offset`, are there where the weights have them; c and λ of SQS are theirs, too.
    """
    scaled = _scaled(z, weights.get("glu_norm"))
    a = _with_bias(scaled @ weights["up"], weights.get("up_bias"))
    u = _with_bias(scaled @ weights["gate"], weights.get("gate_bias"))
    gated = a * _with_bias(_sigma(kind, weights)(u), weights.get("offset"))
    return _with_bias(gated @ weights["down"], weights.get("down_bias"))


def _sigma(kind: BlockKind, weights: Weights) -> Gate:
    if "c" in weights:
        power = getattr(kind.gate, "p", 1.0)
        return functools.partial(sqs, c=weights["c"], lam=weights["lam"], p=power, implementation="xla")
    return get_gate(kind.gate)


def add(arch: Architecture, weights: Weights, part: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """The stream with what `part`, "attention" or "glu", gives: through the norm after it, where there is one."""
    scale = weights.get(f"{part}_post_norm")
    y = y if scale is None else _scaled(rms(y, arch.epsilon), scale)
    return x + y * arch.residual_scale


def block(arch: Architecture, kind: BlockKind, weights: Weights, x: jax.Array) -> tuple[jax.Array, KeysValues]:
    """The stream after a whole block, and keys and values."""
    x, kept = attend(arch, kind, weights, x)
    return add(arch, weights, "glu", x, glu(kind, weights, glu_input(arch, x))), kept


def logits(arch: Architecture, norm: jax.Array, unembedding: jax.Array, x: jax.Array) -> jax.Array:
    """The logits (..., vocab) of a stream (..., d), for the last norm (d,) and the unembedding (vocab, d)."""
    normed = _scaled(rms(x, arch.epsilon), norm)
    values = jnp.einsum("...d,vd->...v", normed, unembedding, preferred_element_type=_wide(x)) * arch.logit_scale
    return _capped(values, arch.logit_cap)


def block_with_cache(arch, kind: BlockKind, weights: Weights, x, position, kept: KeysValues):
    """One token a row, at `position` (batch,): the stream (batch, 1, d), and the cache (batch, room, heads, n)."""
    q, k, v = _queries_keys_values(arch, kind, weights, x, position[:, None])
    put = jax.vmap(lambda cache, new, at: jax.lax.dynamic_update_slice_in_dim(cache, new, at, axis=0))
    keys, values = put(kept[0], k, position), put(kept[1], v, position)
    behind = position[:, None, None] - jnp.arange(keys.shape[1], dtype=jnp.int32)[None, None]
    read = _attention(arch, q, keys, values, _is_seen(kind, behind))
    x = add(arch, weights, "attention", x, _projected(weights, read))
    return add(arch, weights, "glu", x, glu(kind, weights, glu_input(arch, x))), (keys, values)


def _queries_keys_values(arch: Architecture, kind: BlockKind, weights: Weights, x, positions):
    """(batch, length, heads, n) each, normalised and rotated."""
    z = x if arch.norms == "after" else _scaled(rms(x, arch.epsilon), weights["attention_norm"])
    q, k, v = (_with_bias(z @ weights[name], weights.get(f"{name}_bias")) for name in ("q", "k", "v"))
    if "q_norm" in weights:  # over the full width or over each head, as the size of the scale says
        q, k = (_normalised(arch, part, weights[f"{name}_norm"]) for part, name in ((q, "q"), (k, "k")))
    q, k, v = (part.reshape(*x.shape[:2], -1, arch.head_width) for part in (q, k, v))
    return _rotated(q, positions, kind.rope), _rotated(k, positions, kind.rope), v


def _normalised(arch: Architecture, x, scale):
    groups = x.reshape(*x.shape[:2], -1, scale.shape[0])
    return _scaled(rms(groups, arch.epsilon), scale).reshape(x.shape)


def _rotated(x, positions, rope: Rope | None):
    """The pairs (x_i, x_{i + n/2}) of each head turned, n = 2·len(frequencies); what is beyond n stays."""
    if rope is None:
        return x
    frequencies = jnp.asarray(np.array(rope.frequencies), jnp.float32)
    half = len(rope.frequencies)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    cos, sin = jnp.cos(angle) * rope.gain, jnp.sin(angle) * rope.gain
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def _is_seen(kind: BlockKind, behind):
    """Which positions a query sees, by how far they are behind it; what is beyond it is padding, or nothing yet."""
    return (behind >= 0) & (behind < kind.window) if kind.window else behind >= 0


def _causal_attention(arch: Architecture, kind: BlockKind, q, k, v, positions):
    """What heads read, a stretch of queries at a time: each leaves out the keys that none of its queries sees."""
    length, parts = q.shape[1], []
    stretch = max(_QUERIES, -(-length // _STRETCHES))
    for start in range(0, length, stretch):
        end = min(start + stretch, length)
        keys = slice(max(0, start - kind.window + 1) if kind.window else 0, end)
        behind = positions[start:end, None] - positions[None, keys]
        parts.append(_attention(arch, q[:, start:end], k[:, keys], v[:, keys], _is_seen(kind, behind)[None]))
    return jnp.concatenate(parts, axis=1)


def _attention(arch: Architecture, q, k, v, seen):
    """What heads read (batch, length, heads·n); `seen` (batch or 1, length, keys), some key for each query."""
    batch, length, heads, n = q.shape
    q = (q * arch.attention_scale).reshape(batch, length, arch.key_heads, heads // arch.key_heads, n)
    products = jnp.einsum("bqhgn,bkhn->bhgqk", q, k, preferred_element_type=_wide(q))
    scores = jnp.where(seen[:, None, None], _capped(products, arch.attention_cap), -jnp.inf)
    parts = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    # Divided behind the product: n numbers a query, where a softmax divides one for each key.
    read = jnp.einsum("bhgqk,bkhn->bhgqn", parts.astype(v.dtype), v, preferred_element_type=_wide(v))
    read = (read / jnp.sum(parts, axis=-1, keepdims=True)).astype(v.dtype)
    return read.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads * n)


def _wide(array):
    """The dtype of what must not be rounded to fewer digits than float32 has."""
    return jnp.promote_types(array.dtype, jnp.float32)


def _projected(weights: Weights, read):
    return _with_bias(read @ weights["o"], weights.get("o_bias"))


def _scaled(x, scale):
    return x if scale is None else x * scale.reshape((1,) * (x.ndim - 1) + (-1,))


def _with_bias(x, bias):
    return x if bias is None else x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _capped(x, cap: float):
    return cap * jnp.tanh(x / cap) if cap else x
