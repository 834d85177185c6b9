"""Rotary frequencies: the plain ones, and those of models whose context was stretched."""

import math
from typing import Any

import numpy as np

from sqs_jax.messages import InputError, quoted
from sqs_jax.pretrained.architecture import Rope

# The fields of each type that are read; any other would change the numbers.
_FIELDS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}
_COMMON = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}
_NEEDED = {"linear": ("factor",), "llama3": tuple(sorted(_FIELDS["llama3"])), "yarn": ("factor",)}


def make_rope(base: float, width: int, scaling: dict[str, Any], context: int, where: str) -> Rope:
    """The rotary frequencies of a config.json.

        default   base^(-2i/width)
        linear    divided by `factor`
        llama3    low ones divided by `factor`, high ones kept, and between them a mixture of both
        yarn      likewise by the number of turns over the original context; with a gain

    Args:
      base: `rope_theta`; width: of the part of a head that is rotated, even.
      scaling: `rope_scaling` or `rope_parameters`.
      context: `max_position_embeddings`.
      where: the file, for errors.

    Raises InputError for a type that is not one of these, a field that is not known, or one that is missing.

    Source: Su et al. 2021; Peng et al. 2023 (arXiv 2309.00071) for yarn; Llama 3's own for llama3.
    """
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in _FIELDS:
        raise InputError(f"{where}: the rope type {quoted(kind)} is not supported: {', '.join(_FIELDS)} are")
    if unknown := sorted(name for name in scaling if name not in _FIELDS[kind] | _COMMON and scaling[name] is not None):
        raise InputError(f"{where}: the rope of type {kind} has the field {quoted(unknown[0])}, which is not known")
    for name in _NEEDED.get(kind, ()):
        if not isinstance(scaling.get(name), int | float) or not scaling[name] > 0:
            raise InputError(f"{where}: the rope of type {kind} needs {name}, a number > 0")
    frequencies, gain = base ** (-np.arange(0, width, 2) / width), 1.0
    if kind == "linear":
        frequencies = frequencies / scaling["factor"]
    elif kind == "llama3":
        frequencies = _llama3(frequencies, scaling)
    elif kind == "yarn":
        frequencies, gain = _yarn(frequencies, base, width, {"original_max_position_embeddings": context} | scaling)
    return Rope(tuple(map(float, frequencies)), gain)


def _llama3(frequencies: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def _yarn(frequencies: np.ndarray, base: float, width: int, scaling: dict[str, Any]) -> tuple[np.ndarray, float]:
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        """The pair that turns so often over the original context, as a fraction of a pair."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_of(scaling.get("beta_fast") or 32), pair_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    stretched = np.clip((np.arange(width // 2) - first) / (last - first or 0.001), 0, 1)
    gain = scaling.get("attention_factor")
    if gain is None:
        scale, scale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        two = _yarn_gain(factor, scale) / _yarn_gain(factor, scale_all) if scale and scale_all else None
        gain = two or _yarn_gain(factor, 1)
    return frequencies * (1 - stretched + stretched / factor), float(gain)


def _yarn_gain(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1
