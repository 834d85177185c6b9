"""What a decoder-only language model with a gated linear unit in each block computes, in numbers."""

import dataclasses
from typing import Literal, NamedTuple

from sqs_jax.gates import Gate

Norms = Literal["before", "both", "after"]


class Rope(NamedTuple):
    """Rotary positions: pair i of a head turns by position·frequency_i, and is multiplied by `gain`."""

    frequencies: tuple[float, ...]
    """Radians a position, one for each pair of the rotated part of a head."""
    gain: float = 1.0
    """Of queries and keys; only yarn has another than 1."""


class BlockKind(NamedTuple):
    """What differs between the blocks of one model, beside weights."""

    window: int
    """A position sees itself and the window - 1 before it; 0 for all before it."""
    rope: Rope | None
    """None for a block without positions."""
    gate: str | Gate
    """σ of its GLU."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes and options of a language model. Hashable, so that it may be a static argument of jit."""

    family: str
    """The `model_type` of its config.json."""
    vocab: int
    """Number of tokens."""
    context: int
    """Longest sequence."""
    width: int
    """Width d of the residual stream."""
    hidden: int
    """Width h of each GLU."""
    heads: int
    """Heads of the queries."""
    key_heads: int
    """Heads of keys and values; each serves heads / key_heads queries."""
    head_width: int
    """Width of each head."""
    epsilon: float
    """Added to the mean square in each norm."""
    blocks: tuple[BlockKind, ...]
    """One for each layer."""
    attention_scale: float
    """Scores are q·k times it."""
    norms: Norms = "before"
    """Where a norm stands: before attention and GLU, after each, or both."""
    attention_cap: float = 0.0
    """Scores s become cap·tanh(s / cap); 0 for none."""
    logit_cap: float = 0.0
    """The same for logits."""
    embedding_scale: float = 1.0
    """Embedded tokens are multiplied by it,"""
    residual_scale: float = 1.0
    """what a block adds to the stream by this,"""
    logit_scale: float = 1.0
    """and logits by this."""

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def blocks_bytes(self) -> int:
        """Bytes of the matrices of all blocks in float32."""
        attention = 2 * (self.heads + self.key_heads) * self.head_width * self.width
        return 4 * self.layers * (attention + 3 * self.width * self.hidden)
