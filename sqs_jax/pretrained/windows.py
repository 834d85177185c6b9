"""Texts as windows of a model's tokens: some to fit or train on, others to measure on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sqs_jax.messages import InputError
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.pretrained.vocabulary import encode_text, first_tokens

LENGTH = 512
"""Tokens of a window, or the model's context where that is shorter."""
_TEXT_BYTES = 2**26  # of a text that are read
_LETTERS = 16  # of the text for each token that is needed


def read_text(path: Path) -> str:
    """The first 64 MiB of a text. Raises InputError for a file that cannot be read, or is not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(_TEXT_BYTES)
        return content.decode("utf-8", errors="strict" if len(content) < _TEXT_BYTES else "ignore")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8") from None


def text_windows(model: LanguageModel, text: str, train_tokens: int, test_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of a text's tokens, (n, length) each, for fitting and for measuring: drawn at random, none in both.

    Each begins with the token that begins every text of the model, where it has one. Raises InputError for a text that
    has too few tokens.
    """
    # Of a long text, more than enough: to tokenize all of it would take minutes.
    windows, found = _all_windows(model, text[: _LETTERS * (train_tokens + test_tokens)], LENGTH)
    needed = [-(-count // windows.shape[1]) for count in (train_tokens, test_tokens)]
    if len(windows) < sum(needed):
        own = windows.shape[1] - len(first_tokens(model.tokenizer))
        raise InputError(
            f"the text has {found} tokens: {sum(needed) * own} are needed for {train_tokens} that readings are "
            f"fitted on and {test_tokens} that they are measured on"
        )
    order = np.random.default_rng(0).permutation(len(windows))
    return windows[np.sort(order[: needed[0]])], windows[np.sort(order[needed[0] : sum(needed)])]


def split_windows(model: LanguageModel, text: str, held_out: Sequence[int], length: int = LENGTH) -> list[np.ndarray]:
    """All windows of a text, (n, length) each: first those to train on, then held-out ones of so many tokens each.

    Drawn and begun as in `text_windows`. Raises InputError where nothing is left to train on.
    """
    windows, found = _all_windows(model, text, length)
    counts = [-(-count // windows.shape[1]) for count in held_out]
    if len(windows) <= sum(counts):
        raise InputError(f"the text has {found} tokens: more than the {sum(held_out)} that are held out are needed")
    order, parts = np.random.default_rng(0).permutation(len(windows)), []
    for count in counts:
        parts.append(windows[np.sort(order[:count])])
        order = order[count:]
    return [windows[np.sort(order)], *parts]


def next_tokens(windows: np.ndarray) -> np.ndarray:
    """The target of each place: the next token of its window, -1 for the last."""
    return np.pad(windows[:, 1:], ((0, 0), (0, 1)), constant_values=-1)


def _all_windows(model: LanguageModel, text: str, length: int) -> tuple[np.ndarray, int]:
    """A text's windows in their order, and how many tokens it has; what does not fill a window is left out."""
    first = first_tokens(model.tokenizer)
    length = min(length, model.architecture.context)
    own = length - len(first)
    tokens = encode_text(model.tokenizer, text)
    count = len(tokens) // own
    rows = np.array(tokens[: count * own], np.int32).reshape(count, own)
    return np.concatenate([np.tile(np.array(first, np.int32), (count, 1)), rows], axis=1), len(tokens)
