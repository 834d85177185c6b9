"""The command line `python -m train sample RUN`: stories from a trained language model, as they are made."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqs_jax.command_line import program, read
from sqs_jax.messages import InputError, shown
from sqs_jax.options import COUNT, ONE_OR_MORE, check_options, option

_DESCRIPTION = """Continue a prompt with a language model that was trained by python -m train.

  python -m train sample runs/stories-sqs-seed0 --prompt "Once upon a time" --n 4 --seed 1"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to sample, and how."""

    run: Path = option(help="Folder of a run on text.", positional=True)
    prompt: str = option("", "What each sample begins with; by default nothing but the beginning of a story.")
    n: int = option(1, "Number of samples.", ONE_OR_MORE)
    seed: int = option(0, "Seed of the draws.", COUNT)
    tokens: int = option(0, "Tokens that are added, at most; 0 for as many as the context has room for.", COUNT)
    temperature: float = option(0.8, "Below 1 sharper, above 1 flatter; 0 takes the likeliest token each time.")
    top_k: int = option(0, "Draw among the k likeliest tokens; 0 for all.")
    top_p: float = option(0.95, "Draw among the likeliest tokens that add up to this probability.")


def main(args: Sequence[str]) -> None:
    """Prints samples. All are drawn together; each is shown once those before it are complete."""
    options = read(Options, args, prog=f"{program('train', 'sqs')} sample", description=_DESCRIPTION)
    check_options(options)
    try:
        options.prompt.encode()
    except UnicodeEncodeError:
        raise InputError(f"`prompt` is {options.prompt!r}: it is not UTF-8") from None
    for piece in _pieces(options):
        sys.stdout.write(shown(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()


def _pieces(options: Options) -> Iterator[str]:
    # Imported after the flags are known to be good: it takes seconds.
    from sqs_jax.generation import Sampling, stream
    from sqs_jax.train.text.language_model import load_language
    from sqs_jax.train.text.tokenizer import END, encode

    model, tokenizer, config = load_language(options.run)
    prompt = encode(tokenizer, options.prompt)
    if len(prompt) >= config.context:
        raise InputError(f"`prompt` has {len(prompt)} tokens: fewer than the context, {config.context}, are needed")
    try:
        sampling = Sampling(options.temperature, options.top_k, options.top_p)
    except ValueError as error:
        raise InputError(str(error)) from None
    chunks = stream(
        model,
        [prompt] * options.n,
        seed=options.seed,
        tokens=options.tokens or None,
        sampling=sampling,
        stop=END,
    )
    yield from in_order(tokenizer, prompt, options.n, chunks)


def in_order(tokenizer: Any, prompt: list[int], count: int, chunks: Iterator[list[list[int]]]) -> Iterator[str]:
    """The text of `count` rows of tokens that grow together, one row after the other, each piece once it is certain."""
    rows: list[list[int]] = [list(prompt) for _ in range(count)]
    row, shown, ended = 0, 0, [False] * count
    while row < count:
        part = next(chunks, None)
        for i, new in enumerate(part or [[]] * count):
            rows[i] += new
            ended[i] = ended[i] or not new
        while row < count:
            text = _text(tokenizer, rows[row], ended[row])
            yield text[shown:]
            if not ended[row]:
                shown = len(text)
                break
            row, shown = row + 1, 0
            yield "\n\n---\n\n" if row < count else "\n"


def _text(tokenizer, tokens: list[int], complete: bool) -> str:
    """The text as far as it is certain: the last bytes of a letter may be in a token that is still to come."""
    from sqs_jax.train.text.tokenizer import decode

    text = decode(tokenizer, tokens)
    return text if complete else text.rstrip("\ufffd")
