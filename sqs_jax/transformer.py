"""A decoder-only Transformer with a gated linear unit in each block, in Flax (nnx)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from sqs_jax.attention import Attention, causal_attention
from sqs_jax.gates import Gate, get_gate
from sqs_jax.modules import GLU, cast, check_positive
from sqs_jax.sharding import along_batch

Remat = Literal["none", "dots", "block"]
EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a `Transformer`. Raises ValueError for a field out of range."""

    vocab: int = 4096
    """Number of tokens."""
    context: int = 256
    """Longest sequence."""
    layers: int = 4
    """Number of blocks."""
    width: int = 256
    """Width d of the residual stream."""
    heads: int = 4
    """Attention heads, of width/heads each, which must be even."""
    hidden: int | None = None
    """Width h of each GLU; by default ⅔·4·width, rounded to a multiple of 64 (Shazeer 2020)."""
    gate: str | Gate = "sqs"
    """Gate σ of each GLU, as in `sqs_jax.gated_linear`."""
    learnable: bool = False
    """Makes c and λ of an SQS gate parameters, one pair a block."""
    tied: bool = True
    """Whether the embedding also reads the logits out."""
    rotary_base: float = 10_000.0
    """Base of the rotary frequencies."""
    attention: Attention = "auto"
    """"auto": on TPUs and NVIDIA GPUs a kernel where one does it, as `sqs_jax.attention` says; "xla": never."""
    dtype: Any = jnp.float32
    """Dtype of the computation; parameters, norms, softmax and logits are float32."""
    remat: Remat = "none"
    """What the backward pass computes again: "none" only the scores of attention, "dots" all that is not a product with
    weights, "block" all but the block's input."""
    scan_layers: bool = True
    """One compiled block for all layers, by `jax.lax.scan`; otherwise a copy a layer. The parameters are the same."""

    def __post_init__(self):
        check_positive(vocab=self.vocab, context=self.context, layers=self.layers, width=self.width, heads=self.heads)
        if self.hidden is not None:
            check_positive(hidden=self.hidden)
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"`heads` is {self.heads}: `width` {self.width} must be an even multiple of it, for rotary positions"
            )
        if not self.rotary_base > 1:
            raise ValueError(f"`rotary_base` is {self.rotary_base}: a number > 1 is needed")
        for name, kind in (("remat", Remat), ("attention", Attention)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise ValueError(f"`{name}` is {value!r}: one of {', '.join(get_args(kind))} is needed")
        get_gate(self.gate)

    @property
    def glu_width(self) -> int:
        """Width of each GLU."""
        return self.hidden or max(64, round(8 * self.width / 3 / 64) * 64)


class Cache(NamedTuple):
    """Keys and values of every token so far: for each layer arrays (batch, context, heads, width/heads)."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


class Block(nnx.Module):
    """x + Attention(norm(x)), and of that sum y, y + GLU(norm(y)) D: one layer, without biases."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        d, h = config.width, config.glu_width
        init = nnx.initializers.lecun_normal()
        # What is added to the stream by all layers together has the variance of one (Radford et al. 2019).
        last = nnx.initializers.variance_scaling(0.5 / config.layers, "fan_in", "truncated_normal")
        self.attention_norm = nnx.Param(jnp.ones(d, jnp.float32))
        self.qkv = nnx.Param(init(rngs.params(), (d, 3 * d), jnp.float32))
        self.project = nnx.Param(last(rngs.params(), (d, d), jnp.float32))
        self.glu_norm = nnx.Param(jnp.ones(d, jnp.float32))
        self.glu = GLU(d, h, gate=config.gate, learnable=config.learnable, dtype=config.dtype, rngs=rngs)
        self.down = nnx.Param(last(rngs.params(), (h, d), jnp.float32))
        self.heads, self.base, self.dtype = config.heads, config.rotary_base, config.dtype
        self.attention: Attention = config.attention

    def __call__(self, x: jax.Array) -> jax.Array:
        """The residual stream (batch, length, d) after this block, each position seeing itself and those before."""
        return self.with_keys(x)[0]

    def with_keys(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The same, with the keys and values (batch, length, heads, width/heads)."""
        x, keys, values = self.attend(x)
        return along_batch(x + self.mlp(x)), (keys, values)

    def attend(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The stream after attention, before the GLU; and the keys and values."""
        q, k, v = self._queries_keys_values(x, jnp.arange(x.shape[1], dtype=jnp.int32)[None])
        read = causal_attention(q, k, v, self.attention)
        return along_batch(x + self._projected(read)), k, v

    def decode(self, x, position, keys, values) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One token a row, at `position` (batch,): the stream (batch, 1, d), and the cache with the token in it."""
        q, k, v = self._queries_keys_values(x, position[:, None])
        put = jax.vmap(lambda cache, new, at: jax.lax.dynamic_update_slice_in_dim(cache, new, at, axis=0))
        keys, values = put(keys, k, position), put(values, v, position)
        # What lies beyond the position is padding of the prompt, or nothing yet.
        seen = jnp.arange(keys.shape[1], dtype=jnp.int32)[None] <= position[:, None]
        read = jax.nn.dot_product_attention(q, keys, values, mask=seen[:, None, None, :])
        x = x + self._projected(read)
        return x + self.mlp(x), keys, values

    def mlp(self, x: jax.Array) -> jax.Array:
        """What the GLU adds to the stream: GLU(norm(x)) D."""
        return self.glu(rms_norm(x, self.glu_norm[...])) @ cast(self.down, self.dtype)

    def _queries_keys_values(self, x, positions):
        qkv = rms_norm(x, self.attention_norm[...]) @ cast(self.qkv, self.dtype)
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * self.heads, -1), 3, axis=2)
        return rotate(q, positions, self.base), rotate(k, positions, self.base), v

    def _projected(self, read):
        return read.reshape(*read.shape[:2], -1) @ cast(self.project, self.dtype)


class Transformer(nnx.Module):
    """Decoder-only language model: token embedding, blocks, RMSNorm, unembedding. Positions are rotary.

    Args:
      config: sizes and options.
      rngs: of the initial weights.

    Parameters: `embedding` (vocab, d); `blocks`, a `Block` each of whose arrays has a first axis more, (layers, …);
    `norm` (d,); and, where not tied, `unembedding` (d, vocab).

    Called with tokens (batch, length), integers, it returns float32 logits (batch, length, vocab) of each next token.
    Raises ValueError for a sequence that is empty or longer than the context, and, outside of jit, for tokens out of
    range.

    Source: arXiv 2509.01874, section 4 (GLU blocks, TinyStories); Su et al. 2021 for rotary positions.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        d = config.width
        self.embedding = nnx.Param(_normal(rngs, config.vocab, d))
        keys = jax.random.split(rngs.params(), config.layers)
        self.blocks = nnx.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        self.norm = nnx.Param(jnp.ones(d, jnp.float32))
        self.unembedding = None if config.tied else nnx.Param(_normal(rngs, d, config.vocab))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.logits(self.stream(self.embed(tokens)))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """The embedded tokens (batch, length, d): the stream as the first block gets it."""
        check_tokens(tokens, self.config)
        return along_batch(cast(self.embedding, self.config.dtype)[tokens])

    def stream(self, x: jax.Array) -> jax.Array:
        """The residual stream (batch, length, d) after all blocks."""
        graph, params = nnx.split(self.blocks)

        def block(x, params):
            return nnx.merge(graph, params)(x)

        block = _remat(block, self.config)
        if self.config.scan_layers:
            return jax.lax.scan(lambda x, params: (block(x, params), None), x, params)[0]
        for layer in range(self.config.layers):
            x = block(x, jax.tree.map(lambda array, layer=layer: array[layer], params))
        return x

    def block(self, layer: int) -> Block:
        """The block of one layer, from 0, by itself."""
        graph, params = nnx.split(self.blocks)
        return nnx.merge(graph, jax.tree.map(lambda array: array[layer], params))

    def logits(self, x: jax.Array) -> jax.Array:
        """The logits (..., vocab) of a stream (..., d), float32."""
        x = rms_norm(x, self.norm[...])
        return along_batch(
            jnp.matmul(x, cast(self.directions(), self.config.dtype), preferred_element_type=jnp.float32)
        )

    def directions(self) -> jax.Array:
        """The unembedding (d, vocab): a column a token, the direction of the normalised stream that speaks for it."""
        return self.embedding[...].T if self.unembedding is None else self.unembedding[...]

    def prefill(self, tokens: jax.Array) -> tuple[jax.Array, Cache]:
        """The stream (batch, length, d) of whole prompts, and the cache with their keys and values in it."""
        graph, params = nnx.split(self.blocks)
        x = self.embed(tokens)
        x, (keys, values) = jax.lax.scan(lambda x, params: nnx.merge(graph, params).with_keys(x), x, params)
        room = ((0, 0), (0, 0), (0, self.config.context - tokens.shape[1]), (0, 0), (0, 0))
        return x, Cache(tuple(jnp.pad(keys, room)), tuple(jnp.pad(values, room)))

    def decode(
        self, token: jax.Array, position: jax.Array, cache: Cache, blocks: Sequence[Block] | None = None
    ) -> tuple[jax.Array, Cache]:
        """Logits (batch, vocab) after one more token (batch,) at its position (batch,), from 0; and the new cache.

        `blocks` are the layers by themselves, for callers that take them apart once for many tokens. They are not
        scanned over: a scan would copy the cache of every layer for each token.
        """
        blocks = blocks or [self.block(layer) for layer in range(self.config.layers)]
        x, keys, values = cast(self.embedding, self.config.dtype)[token][:, None], [], []
        for block, old_keys, old_values in zip(blocks, *cache, strict=True):
            x, new_keys, new_values = block.decode(x, position, old_keys, old_values)
            keys.append(new_keys)
            values.append(new_values)
        return self.logits(x[:, 0]), Cache(tuple(keys), tuple(values))


def _normal(rngs: nnx.Rngs, *shape: int) -> jax.Array:
    # With the barrier the numbers are the same, to the bit, where this is part of a compiled program.
    return 0.02 * jax.lax.optimization_barrier(jax.random.normal(rngs.params(), shape, jnp.float32))


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / sqrt(mean(x²) + 1e-6)·scale over the last axis, computed in float32; the dtype of x."""
    wide = x.astype(jnp.float32)
    size = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + EPSILON)
    return (wide * size * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def rotate(x: jax.Array, positions: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding: the pair (x_i, x_{i + n/2}) turned by the angle position·base^(-2i/n).

    Args:
      x: (batch, length, heads, n), n even.
      positions: (batch or 1, length), integers.
      base: of the frequencies.

    The product of a rotated query and a rotated key depends on the difference of their positions alone.
    Source: Su et al. 2021 (arXiv 2104.09864).
    """
    half = x.shape[-1] // 2
    frequency = base ** (-np.arange(half) / half)
    angle = positions[:, :, None, None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32).reshape(1, 1, 1, -1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def check_tokens(tokens: Any, config: Any) -> None:
    """Raises ValueError unless tokens are integers (batch, length) that fit; under jit their range is not seen.

    `config` has `vocab` and `context`, as a TransformerConfig.
    """
    if jnp.ndim(tokens) != 2 or not 1 <= jnp.shape(tokens)[1] <= config.context:
        raise ValueError(f"`tokens` has shape {jnp.shape(tokens)}: (batch, 1 to {config.context}) is needed")
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise ValueError(f"`tokens` has dtype {jnp.result_type(tokens)}: integers are needed")
    if not isinstance(tokens, Tracer) and np.size(tokens):
        values = np.asarray(tokens)
        low, high = values.min(), values.max()
        if low < 0 or high >= config.vocab:
            raise ValueError(f"`tokens` has values from {low} to {high}: 0 to {config.vocab - 1} are needed")


def _remat(block, config: TransformerConfig):
    if config.remat == "none":
        return block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    return jax.checkpoint(block, policy=policy, prevent_cse=not config.scan_layers)
