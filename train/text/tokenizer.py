"""The tokenizer: byte-level BPE, trained on the training stories, so that any text goes there and back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqs_jax.messages import InputError, quoted
from sqs_jax.pretrained.vocabulary import BYTES, read_any_tokenizer
from sqs_jax.train.text.corpus import END_OF_TEXT

END = 0  # the token of END_OF_TEXT
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
    assert tokenizer.token_to_id(END_OF_TEXT) == END
    return _literal(tokenizer)


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes of a token. Byte-level BPE spells each byte by a letter of its own."""
    return bytes(BYTES[letter] for letter in tokenizer.id_to_token(token))


def decode(tokenizer: Any, tokens) -> str:
    """Tokens as text; an END is not shown."""
    return tokenizer.decode([int(token) for token in tokens if token != END], skip_special_tokens=False)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Text as tokens, after the END that every story begins with. "<|endoftext|>" in it is text like any other."""
    return [END, *tokenizer.encode(text).ids]


def read_tokenizer(path: Path) -> Any:
    """The tokenizer in a `tokenizer.json`. Raises InputError unless it is byte-level, and END its first token."""
    tokenizer = read_any_tokenizer(path)
    names = tokenizer.get_vocab()
    if names.get(END_OF_TEXT) != END or sorted(names.values()) != list(range(len(names))):
        raise InputError(f"the tokenizer {path} is damaged: {END_OF_TEXT} is not its first token, or one is missing")
    for name in names:
        if name != END_OF_TEXT and not BYTES.keys() >= set(name):
            raise InputError(f"the tokenizer {path} is damaged: {quoted(name)} spells no bytes")
    return _literal(tokenizer)


def _literal(tokenizer: Any) -> Any:
    """The tokenizer, set to read "<|endoftext|>" in a text or a prompt as plain text. The token itself ends a story."""
    tokenizer.encode_special_tokens = True
    return tokenizer
