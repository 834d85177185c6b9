"""The tokenizer: byte-level BPE, trained on the training stories, so that any text goes there and back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqs_jax.messages import InputError, quoted
from sqs_jax.pretrained.vocabulary import BYTES, encode_text, read_any_tokenizer, spells_bytes
from sqs_jax.train.text.corpus import END_OF_TEXT

_TRAINING_BYTES = 64 * 2**20  # text that a tokenizer is trained on, at most
_WORD = 128  # letters of a word, at most


def train_tokenizer(training: Iterator[str], vocab: int) -> Any:
    """A tokenizer of at most `vocab` tokens, trained on the first 64 MiB of the stories."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    def part():
        size = 0
        for story in training:
            size += len(story.encode())
            yield story
            if size > _TRAINING_BYTES:
                return

    tokenizer = Tokenizer(models.BPE())
    # Training and encoding are quadratic in the length of a word: longer ones are cut, blanks as well as letters.
    cut = pre_tokenizers.Split(Regex(rf"\S{{{_WORD}}}|\s{{{_WORD}}}"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,  # pyright: ignore
        special_tokens=[END_OF_TEXT],  # pyright: ignore
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # pyright: ignore
        show_progress=False,  # pyright: ignore
    )
    tokenizer.train_from_iterator(part(), trainer=trainer)
    return _literal(tokenizer)


def end_of(tokenizer: Any) -> int:
    """The token that ends a story: that of END_OF_TEXT."""
    return tokenizer.token_to_id(END_OF_TEXT)


def decode(tokenizer: Any, tokens) -> str:
    """Tokens as text; an end is not shown."""
    end = end_of(tokenizer)
    return tokenizer.decode([int(token) for token in tokens if token != end], skip_special_tokens=False)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Text as tokens, after the end that stands before every story. "<|endoftext|>" in it is text like any other."""
    return [end_of(tokenizer), *encode_text(tokenizer, text)]


def read_tokenizer(path: Path) -> Any:
    """The tokenizer in a `tokenizer.json`. Raises InputError unless it spells bytes, and has a token END_OF_TEXT."""
    tokenizer = read_any_tokenizer(path)
    names, added = tokenizer.get_vocab(), tokenizer.get_added_tokens_decoder()
    if END_OF_TEXT not in names:
        raise InputError(f"the tokenizer {path} has no token {END_OF_TEXT}, which ends a text")
    if sorted(names.values()) != list(range(len(names))):
        raise InputError(f"the tokenizer {path} is damaged: of its {len(names)} tokens one is missing")
    if not spells_bytes(tokenizer):
        raise InputError(f"the tokenizer {path} is not byte-level")
    for name, token in names.items():
        if token not in added and not BYTES.keys() >= set(name):
            raise InputError(f"the tokenizer {path} is not byte-level: {quoted(name)} spells no bytes")
    if missing := BYTES.keys() - names.keys():
        raise InputError(f"the tokenizer {path} has no token for the byte {BYTES[min(missing)]:#04x}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _literal(tokenizer)


def _literal(tokenizer: Any) -> Any:
    """The tokenizer, set to read "<|endoftext|>" in a text or a prompt as plain text. The token itself ends a story."""
    tokenizer.encode_special_tokens = True
    return tokenizer
