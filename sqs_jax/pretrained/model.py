"""A language model as arrays: what is read from a file of any framework, or made of a `Transformer`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.activation import SQS
from sqs_jax.gates import Gate
from sqs_jax.pretrained.architecture import Architecture, BlockKind
from sqs_jax.pretrained.decoder import Weights
from sqs_jax.pretrained.rope import make_rope
from sqs_jax.transformer import EPSILON, Transformer


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A decoder-only language model with a gated linear unit in each block, in float32."""

    architecture: Architecture
    embedding: jax.Array
    """(vocab, d)."""
    norm: jax.Array
    """Scale of the last norm (d,)."""
    unembedding: jax.Array
    """(vocab, d); where the two are tied, the same array as `embedding`."""
    block: Callable[[int], Weights]
    """The weights of one layer, from 0: read when they are asked for, so that one layer at a time is in memory."""
    tokenizer: Any = None
    """A `tokenizers.Tokenizer`."""
    name: str = ""
    end: int | None = None
    """The token that ends a text."""
    config: Mapping[str, Any] | None = None
    """The content of a config.json that describes it; None where none does."""

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.architecture.layers


def from_transformer(model: Transformer, tokenizer: Any = None, name: str = "") -> LanguageModel:
    """A `Transformer` of this package as a `LanguageModel`; its weights are shared, in float32.

    Of one that lies in parts on several devices, the embedding and one layer at a time come to the first of them.
    """
    config = model.config
    n = config.width // config.heads
    rope = make_rope(config.rotary_base, n, {}, config.context, name)
    kinds = tuple(BlockKind(0, rope, _hashable(model.block(layer).glu.sigma)) for layer in range(config.layers))
    architecture = Architecture(
        family="sqs_jax",
        vocab=config.vocab,
        context=config.context,
        width=config.width,
        hidden=config.glu_width,
        heads=config.heads,
        key_heads=config.heads,
        head_width=n,
        epsilon=EPSILON,
        blocks=kinds,
        attention_scale=n**-0.5,
    )

    def block(layer: int) -> Weights:
        part = model.block(layer)
        q, k, v = jnp.split(_whole(part.qkv[...]), 3, axis=1)
        norms = {"attention_norm": part.attention_norm[...], "glu_norm": part.glu_norm[...]}
        glu = {"up": part.glu.w[...], "gate": part.glu.v[...], "down": part.down[...]}
        rest = {"o": part.project[...]} | norms | glu
        return {"q": q, "k": k, "v": v} | {name: _whole(array) for name, array in rest.items()}

    embedding, norm = _whole(model.embedding[...]), _whole(model.norm[...])
    unembedding = embedding if model.unembedding is None else _whole(model.directions()).T
    return LanguageModel(architecture, embedding, norm, unembedding, block, tokenizer, name)


def _whole(array: jax.Array) -> jax.Array:
    return array if len(array.devices()) == 1 else jax.device_put(array, jax.local_devices()[0])


def _hashable(gate: Gate) -> Gate:
    """A gate whose numbers are numbers: outside of jit a learnable one's are."""
    return SQS(float(gate.c), float(gate.lam), float(gate.p)) if isinstance(gate, SQS) else gate
