"""Sampling from a language model with a cache of keys and values, many prompts of different lengths at once."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sqs_jax.transformer import Transformer, check_tokens

# What temperature and top p may be: float32, in which tokens are drawn, tells smaller numbers from 0 no more.
_LEAST, _MOST = 1e-37, 1e37


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits. Raises ValueError for a field out of range."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the largest token."""
    top_k: int = 0
    """Only the k most likely tokens are drawn; 0 for all."""
    top_p: float = 1.0
    """Of these, only the most likely whose probabilities first add up to p; at least one."""

    def __post_init__(self):
        if self.temperature != 0 and not _LEAST <= self.temperature <= _MOST:
            raise ValueError(
                f"`temperature` is {self.temperature}: 0, or a number from {_LEAST} to {_MOST:g}, is needed"
            )
        if not isinstance(self.top_k, int | np.integer) or not 0 <= self.top_k < 2**31:
            raise ValueError(f"`top_k` is {self.top_k}: a whole number from 0 to {2**31 - 1} is needed")
        if not _LEAST <= self.top_p <= 1:
            raise ValueError(f"`top_p` is {self.top_p}: a number from {_LEAST} to 1 is needed")


class Decoder(Protocol):
    """What sampling needs of a language model."""

    @property
    def config(self) -> Any:
        """With `vocab`, the number of tokens, and `context`, the longest sequence."""

    def start(self, prompts: np.ndarray, lengths: np.ndarray, room: int) -> tuple[Any, jax.Array]:
        """A cache for `room` tokens with the prompts (batch, length) in it, and the logits (batch, vocab) after."""
        ...

    def parts(self) -> tuple[Callable, Any]:
        """A function (parameters, token, position, cache) → (logits, cache), and its parameters.

        Equal for equal models, so that jit compiles it once.
        """
        ...


class TransformerDecoder:
    """A `Transformer` as a `Decoder`."""

    def __init__(self, model: Transformer):
        self.model, self.config = model, model.config

    def start(self, prompts, lengths, room):
        """As `Decoder`; the cache is as long as the context, so that one program serves all."""
        return _prefill(*nnx.split(self.model), prompts, lengths)

    def parts(self):
        """As `Decoder`."""
        graph, params = nnx.split(self.model)
        rest = nnx.merge(graph, params)
        blocks = nnx.split([rest.block(layer) for layer in range(self.config.layers)])
        rest.blocks = None  # pyright: ignore - not passed on: the layers are now by themselves
        graphs, params = zip(nnx.split(rest), blocks, strict=True)
        return _Decode(graphs), params


class _Decode(NamedTuple):
    graphs: Any

    def __call__(self, params, token, position, cache):
        model, blocks = (nnx.merge(graph, part) for graph, part in zip(self.graphs, params, strict=True))
        return model.decode(token, position, cache, blocks)


class _State(NamedTuple):
    cache: Any
    logits: jax.Array  # of the next token (batch, vocab)
    position: jax.Array  # of the next token (batch,)
    done: jax.Array  # (batch,)


def generate(
    model: Transformer | Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    tokens: int | None = None,
    sampling: Sampling = Sampling(),
    stop: int | None = None,
) -> list[list[int]]:
    """Continues each prompt, and returns the new tokens alone.

    Args:
      model: the language model: a `Transformer`, or a pretrained one by `sqs_jax.pretrained.PretrainedDecoder`.
      prompts: lists of one or more token ids, of any lengths below the context.
      seed: of the draws. Row i draws from the seed, i and the position alone, so that the rows beside it and how many
        tokens are asked for make no difference.
      tokens: at most so many new ones a row; by default, and at most, what the context has room for.
      sampling: temperature, top-k and top-p.
      stop: a token that ends its row, and is not returned.

    Returns a list of tokens for each prompt. Raises ValueError for prompts that are empty, as long as the context or
    longer, or hold anything but tokens in range, for a `stop` that is no token, and for `tokens` below 1.
    """
    parts = list(stream(model, prompts, seed=seed, tokens=tokens, sampling=sampling, stop=stop))
    return [[token for part in parts for token in part[row]] for row in range(len(prompts))]


def stream(
    model: Transformer | Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    tokens: int | None = None,
    sampling: Sampling = Sampling(),
    stop: int | None = None,
    chunk: int = 16,
) -> Iterator[list[list[int]]]:
    """As `generate`, but yields up to `chunk` new tokens of each row at a time, an empty list once it has ended."""
    decoder: Decoder = TransformerDecoder(model) if isinstance(model, Transformer) else model
    padded, lengths = _padded(prompts, decoder.config)
    context = decoder.config.context
    if not 0 <= seed < 2**31:
        raise ValueError(f"`seed` is {seed}: a whole number from 0 to {2**31 - 1} is needed")
    if stop is not None and not 0 <= stop < decoder.config.vocab:
        raise ValueError(f"`stop` is {stop}: a token from 0 to {decoder.config.vocab - 1} is needed")
    if tokens is not None and tokens < 1:
        raise ValueError(f"`tokens` is {tokens}: a whole number ≥ 1 is needed")
    left = np.minimum(context - lengths, context if tokens is None else tokens)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(lengths), dtype=jnp.int32))
    settings = (jnp.float32(sampling.temperature), jnp.int32(sampling.top_k), jnp.float32(sampling.top_p))
    draw = functools.partial(_continue, keys=keys, settings=settings, end=jnp.int32(-1 if stop is None else stop))
    return _chunks(decoder, padded, lengths, left, draw, stop, chunk)


def _padded(prompts: Sequence[Sequence[int]], config: Any) -> tuple[np.ndarray, np.ndarray]:
    """The prompts as one array (batch, length), and their lengths (batch,). Raises ValueError as `generate`.

    Rows are padded to a power of two, so that few programs serve all prompts. Padding is never read.
    """
    lengths, context = np.array([len(prompt) for prompt in prompts], np.int32), config.context
    if not len(prompts) or min(lengths) < 1:
        raise ValueError("`prompts` has an empty one: one token or more is needed in each of one or more")
    if max(lengths) >= context:
        raise ValueError(f"`prompts` has one of {max(lengths)} tokens: fewer than the context, {context}, are needed")
    padded = np.zeros((len(prompts), min(context, 1 << int(max(lengths) - 1).bit_length())), np.int32)
    for row, prompt in enumerate(prompts):
        check_tokens(np.asarray(prompt)[None], config)
        padded[row, : len(prompt)] = prompt
    return padded, lengths


def _chunks(decoder: Decoder, padded, lengths, left, draw, stop, chunk: int) -> Iterator[list[list[int]]]:
    """Chunks of new tokens, until no row has any `left` (batch,). `draw` is `_continue` for these rows."""
    context = decoder.config.context
    # Room in powers of two, so that few programs serve all lengths.
    room = min(context, max(padded.shape[1], 1 << int(np.max(lengths + left) - 1).bit_length()))
    cache, logits = decoder.start(padded, lengths, room)
    state = _State(cache, logits, jnp.asarray(lengths), jnp.zeros(len(lengths), bool))
    decode, params = decoder.parts()
    last = jnp.int32(room - 1)
    while left.max() > 0:
        state, new = draw(decode, params, state, last, count=chunk)
        rows = [row[: max(0, count)].tolist() for row, count in zip(np.asarray(new), left, strict=True)]
        left = left - chunk
        for i, row in enumerate(rows):
            if stop is not None and stop in row:
                rows[i], left[i] = row[: row.index(stop)], 0
        yield rows


@functools.partial(jax.jit, static_argnums=0)
def _prefill(graph, params, padded, lengths):
    model = nnx.merge(graph, params)
    x, cache = model.prefill(padded)
    return cache, model.logits(last_rows(x, lengths))


def last_rows(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """The rows (batch, d) of x (batch, length, d) at the ends of sequences of these lengths (batch,)."""
    return jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnums=0, static_argnames="count", donate_argnums=2)
def _continue(decode, params, state, last, *, keys, settings, end, count: int) -> tuple[_State, jax.Array]:
    """`count` more tokens a row (batch, count); a row that has ended repeats `end`. The cache ends at `last`."""

    def step(state: _State, _):
        chosen = jax.vmap(_draw, (0, 0, 0, None))(keys, state.position, state.logits, settings)
        token = jnp.where(state.done, end, chosen)
        # A row at the end of the cache goes on in place: what it says is cut off by the caller.
        position = jnp.minimum(state.position, last)
        logits, cache = decode(params, jnp.maximum(token, 0), position, state.cache)
        return _State(cache, logits, state.position + 1, state.done | (token == end)), token

    state, drawn = jax.lax.scan(step, state, length=count)
    return state, drawn.T


def _draw(key, position, logits, settings) -> jax.Array:
    """The next token of one row."""
    temperature, _, _ = settings
    # Excluded after the division: whatever the temperature, they stay at -inf.
    sharp = jnp.where(_allowed(logits, settings), _sharpened(logits, temperature), -jnp.inf)
    drawn = jax.random.categorical(jax.random.fold_in(key, position), sharp)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits)).astype(jnp.int32)


def _sharpened(logits, temperature):
    """Logits over the temperature, the largest as 0: a small temperature takes the others to -inf, not to NaN."""
    return (logits - jnp.max(logits)) / jnp.where(temperature > 0, temperature, 1)


def _allowed(logits, settings) -> jax.Array:
    """Which tokens (vocab,) may be drawn. A token is in the top k, or top p, if it is as likely as the last in it."""
    temperature, top_k, top_p = settings

    def chosen(logits):
        order = jnp.sort(logits)[::-1]
        kth = order[jnp.where(top_k > 0, jnp.minimum(top_k, len(order)), len(order)) - 1]
        share = jax.nn.softmax(jnp.where(order >= kth, _sharpened(order, temperature), -jnp.inf))
        before = jnp.concatenate([jnp.zeros(1, share.dtype), jnp.cumsum(share)[:-1]])
        return logits >= jnp.min(jnp.where((before < top_p) & (order >= kth), order, jnp.inf))

    # Sorting costs more than a block: only where something is left out.
    everything = jnp.ones(logits.shape, bool)
    return jax.lax.cond((top_k > 0) | (top_p < 1), chosen, lambda _: everything, logits)
