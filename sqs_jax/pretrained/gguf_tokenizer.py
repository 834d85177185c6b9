"""The tokenizer that a GGUF file describes, as a `tokenizers.Tokenizer`."""

from pathlib import Path
from typing import Any

from sqs_jax.messages import InputError, quoted

# How a text is parted before byte-level BPE, by tokenizer.ggml.pre: whether digits stand alone, and a pattern.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE = {
    "default": (False, _GPT2),
    "gpt-2": (False, _GPT2),
    "smollm": (True, _GPT2),
    "llama-bpe": (False, _LLAMA3),
}
_CONTROL, _BYTE = 3, 6  # tokenizer.ggml.token_type


def make_tokenizer(fields: dict[str, Any], path: Path) -> Any:
    """The tokenizer of a GGUF file: byte-level BPE ("gpt2") or SentencePiece's BPE ("llama").

    Raises InputError for another kind, or one that is described in part.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise InputError(f"{path}: the tokenizer {quoted(kind)} is not supported in a GGUF file: gpt2, llama are")
    tokens = fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(f"{path} lacks tokenizer.ggml.tokens, the tokens")
    try:
        tokenizer = _byte_level(fields, tokens, path) if kind == "gpt2" else _sentence_piece(fields, tokens)
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{path}: its tokenizer is damaged: {error}") from None
    _add_special(tokenizer, fields, tokens, begins=kind == "llama")
    return tokenizer


def _byte_level(fields: dict[str, Any], tokens: list[str], path: Path) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = fields.get("tokenizer.ggml.pre", "default")
    if pre not in _PRE:
        raise InputError(f"{path}: the pre-tokenizer {quoted(pre)} is not supported: {', '.join(_PRE)} are")
    single_digits, pattern = _PRE[pre]
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges", [])]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))  # pyright: ignore
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    parts += [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    return tokenizer


def _sentence_piece(fields: dict[str, Any], tokens: list[str]) -> Any:
    """BPE whose merges are all splits of a token into two others, the best score first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores, vocab = fields["tokenizer.ggml.scores"], {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        both = [split for split in splits if split[0] in vocab and split[1] in vocab]
        merges += [(score, *split) for split in sorted(both, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    merges.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    types = fields["tokenizer.ggml.token_type"]
    model = models.BPE(
        vocab=vocab,
        merges=[merge[1:] for merge in merges],  # pyright: ignore
        unk_token=tokens[fields.get("tokenizer.ggml.unknown_token_id", 0)],
        fuse_unk=True,
        byte_fallback=_BYTE in types,
    )
    tokenizer = Tokenizer(model)
    first = [normalizers.Prepend("▁")] if fields.get("tokenizer.ggml.add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])  # pyright: ignore
    strip = [decoders.Strip(" ", 1, 0)] if first else []
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _add_special(tokenizer: Any, fields: dict[str, Any], tokens: list[str], *, begins: bool) -> None:
    """Tokens that no text is cut by, and the one that every text begins with, where the file says so."""
    from tokenizers import AddedToken, processors

    types = fields.get("tokenizer.ggml.token_type", [])
    control = [token for token, kind in zip(tokens, types, strict=False) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    first = fields.get("tokenizer.ggml.bos_token_id")
    if fields.get("tokenizer.ggml.add_bos_token", begins) and first is not None:
        name = tokens[first]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name}:0 $A:0", pair=f"{name}:0 $A:0 $B:1", special_tokens=[(name, first)]
        )
