"""Tokenizers of any model: how tokens are written, and the text that each stands for."""

import json
from pathlib import Path
from typing import Any

from sqs_jax.messages import InputError, first_line
from sqs_jax.pretrained.architecture import Architecture


def _spelled_bytes() -> dict[str, int]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # printable in Latin-1: they spell themselves
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _spelled_bytes()
"""The byte that each letter stands for, where a tokenizer spells bytes (byte-level BPE)."""
_BLANK = "▁"  # how SentencePiece writes a space


def read_any_tokenizer(path: Path) -> Any:
    """The tokenizer in a `tokenizer.json`. Raises InputError where it cannot be read."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"the tokenizer {path} is damaged: {first_line(error)}") from None


def check_tokenizer(tokenizer: Any, architecture: Architecture, where: Path) -> Any:
    """The tokenizer, whose tokens all have to be rows of the embedding; that may have more rows, which are padding."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= architecture.vocab:
        raise InputError(
            f"the tokenizer {where} has the token {largest}, and the model {architecture.vocab} tokens: it is another's"
        )
    return tokenizer


def spells_bytes(tokenizer: Any) -> bool:
    """Whether its tokens are written by one letter for each byte."""
    return "ByteLevel" in json.dumps(json.loads(tokenizer.to_str()).get("decoder"))


def token_bytes_of(tokenizer: Any) -> list[bytes]:
    """The bytes of every token, by id; none for an id that is no token."""
    by_letter = spells_bytes(tokenizer)
    vocab = tokenizer.get_vocab()
    spelled = [b""] * (max(vocab.values(), default=-1) + 1)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for piece, token in vocab.items():
        spelled[token] = piece.encode() if token in special else _piece_bytes(piece, by_letter)
    return spelled


def _piece_bytes(piece: str, by_letter: bool) -> bytes:
    if by_letter:
        return bytes(BYTES[letter] for letter in piece) if BYTES.keys() >= set(piece) else piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_BLANK, " ").encode()


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Text as tokens, without those that a tokenizer puts around it."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def first_tokens(tokenizer: Any) -> list[int]:
    """The tokens that every text begins with for this model: one that marks the beginning, or none."""
    return tokenizer.encode("").ids


def one_token(tokenizer: Any, word: str) -> int:
    """The token that a word is. Raises InputError, with its pieces, for a word of several."""
    for spelling in (word.replace(" ", _BLANK), word):  # as SentencePiece writes it, and as a special token
        token = tokenizer.token_to_id(spelling)
        if token is not None:
            return token
    ids = encode_text(tokenizer, word)
    if word.startswith(" ") and ids and tokenizer.id_to_token(ids[0]) == _BLANK:  # it puts a blank before every text
        ids = encode_text(tokenizer, word[1:])
    if len(ids) != 1:
        pieces = " ".join(repr(tokenizer.id_to_token(token)) for token in ids)
        raise InputError(f"{word!r} is {len(ids)} tokens ({pieces}): a word that is one token is needed")
    return ids[0]
