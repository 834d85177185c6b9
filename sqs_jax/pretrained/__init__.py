"""Pretrained language models: their files, what they compute, and their tokens.

`load_pretrained` is the way in; what it returns, a `LanguageModel`, is read by `sqs_jax.analysis` and sampled by
`sqs_jax.generation`.
"""

from sqs_jax.pretrained.loading import load_pretrained
from sqs_jax.pretrained.model import LanguageModel, from_transformer
from sqs_jax.pretrained.sampling import PretrainedDecoder

__all__ = ["LanguageModel", "PretrainedDecoder", "from_transformer", "load_pretrained"]
