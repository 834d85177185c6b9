"""A pretrained language model as `sqs_jax.generation` samples it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.generation import last_rows
from sqs_jax.messages import InputError
from sqs_jax.pretrained import decoder
from sqs_jax.pretrained.architecture import Architecture
from sqs_jax.pretrained.model import LanguageModel


class PretrainedDecoder:
    """A `LanguageModel` for `generate` and `stream`: all its blocks are in memory.

    Raises InputError where there is not enough memory for them.
    """

    def __init__(self, model: LanguageModel):
        self.config = model.architecture
        check_memory(self.config)
        blocks = tuple(model.block(layer) for layer in range(model.layers))
        self._params = model.embedding, blocks, model.norm, model.unembedding

    def start(self, prompts, lengths, room):
        """As `Decoder`."""
        return _start(self.config, room, self._params, prompts, lengths)

    def parts(self):
        """As `Decoder`."""
        return _Decode(self.config), self._params


def check_memory(arch: Architecture) -> None:
    """Raises InputError where the blocks of a model do not fit into the memory that is free."""
    import psutil

    needed, free = arch.blocks_bytes, psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"the model's blocks need {needed / 2**30:.1f} GiB in float32, and {free / 2**30:.1f} are free"
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(arch: Architecture, room: int, params, prompts, lengths):
    embedding, blocks, norm, unembedding = params
    x, cache = decoder.embed(arch, embedding, prompts), []
    for kind, weights in zip(arch.blocks, blocks, strict=True):
        x, kept = decoder.block(arch, kind, weights, x)
        width = ((0, 0), (0, room - prompts.shape[1]), (0, 0), (0, 0))
        cache.append(tuple(jnp.pad(part, width) for part in kept))
    return tuple(cache), decoder.logits(arch, norm, unembedding, last_rows(x, lengths))


class _Decode(NamedTuple):
    arch: Architecture

    def __call__(self, params, token, position, cache):
        embedding, blocks, norm, unembedding = params
        x, after = decoder.embed(self.arch, embedding, token[:, None]), []
        for kind, weights, kept in zip(self.arch.blocks, blocks, cache, strict=True):
            x, kept = decoder.block_with_cache(self.arch, kind, weights, x, position, kept)
            after.append(kept)
        return decoder.logits(self.arch, norm, unembedding, x[:, 0]), tuple(after)
