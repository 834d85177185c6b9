"""The command line `python -m train sample PATH`: text from a language model, as it is made."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqs_jax import display
from sqs_jax.command_line import program, read
from sqs_jax.messages import InputError, shown
from sqs_jax.options import COUNT, ONE_OR_MORE, check_options, option

_DESCRIPTION = """Continue a prompt with a language model: trained by python -m train, or pretrained.

  python -m train sample runs/stories-sqs-seed0 --prompt "Once upon a time" --n 4 --seed 1
  python -m train sample SmolLM2-135M --prompt "The capital of France is" --temperature 0 --tokens 20"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to sample, and how."""

    model: str = option(
        help="Folder of a run on text or an adoption; or a pretrained model: a Hugging Face folder, a .gguf file, or "
        "hf:owner/name.",
        positional=True,
    )
    prompt: str = option("", "What each sample begins with; by default nothing but the beginning of a text.")
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
        display.end()
        sys.stdout.write(shown(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()


class Source(NamedTuple):
    """A model that is sampled, and how its tokens are text."""

    decoder: Any
    prompt: list[int]
    stop: int | None
    text: Callable[[list[int]], str]


def _pieces(options: Options) -> Iterator[str]:
    # Imported after the flags are known to be good: it takes seconds.
    from sqs_jax.generation import Sampling, stream
    from sqs_jax.pretrained.tensor_files import is_pretrained

    adopted = Path(options.model) / "model"  # of a run of python -m train adopt
    if is_pretrained(adopted):
        options = dataclasses.replace(options, model=str(adopted))
    with display.stage(f"loading {options.model}"):
        source = _pretrained(options) if is_pretrained(options.model) else _trained(options)
    context = source.decoder.config.context
    if len(source.prompt) >= context:
        raise InputError(f"`prompt` has {len(source.prompt)} tokens: fewer than the context, {context}, are needed")
    try:
        sampling = Sampling(options.temperature, options.top_k, options.top_p)
    except ValueError as error:
        raise InputError(str(error)) from None
    chunks = stream(
        source.decoder,
        [source.prompt] * options.n,
        seed=options.seed,
        tokens=options.tokens or None,
        sampling=sampling,
        stop=source.stop,
    )
    yield from in_order(source.text, source.prompt, options.n, chunks)


def _trained(options: Options) -> Source:
    from sqs_jax.train.text.language_model import load_language
    from sqs_jax.train.text.tokenizer import decode, encode, end_of

    model, tokenizer, _ = load_language(Path(options.model))
    return Source(model, encode(tokenizer, options.prompt), end_of(tokenizer), lambda tokens: decode(tokenizer, tokens))


def _pretrained(options: Options) -> Source:
    from sqs_jax.pretrained import PretrainedDecoder, load_pretrained

    model = load_pretrained(options.model)
    prompt = model.tokenizer.encode(options.prompt).ids
    if not prompt:
        raise InputError("`prompt` is empty, and this model has no token that begins a text: a word or more is needed")
    before = len(model.tokenizer.encode("").ids)  # tokens that begin every text are not shown
    decoder = PretrainedDecoder(model)
    return Source(decoder, prompt, model.end, lambda tokens: model.tokenizer.decode(tokens[before:]))


def in_order(
    text_of: Callable[[list[int]], str], prompt: list[int], count: int, chunks: Iterator[list[list[int]]]
) -> Iterator[str]:
    """The text of `count` rows of tokens that grow together, one row after the other, each piece once it is certain."""
    rows: list[list[int]] = [list(prompt) for _ in range(count)]
    row, shown, ended = 0, 0, [False] * count
    while row < count:
        part = next(chunks, None)
        for i, new in enumerate(part or [[]] * count):
            rows[i] += new
            ended[i] = ended[i] or not new
        while row < count:
            text = text_of(rows[row])
            # The last bytes of a letter may be in a token that is still to come.
            text = text if ended[row] else text.rstrip("\ufffd")
            yield text[shown:]
            if not ended[row]:
                shown = len(text)
                break
            row, shown = row + 1, 0
            yield "\n\n---\n\n" if row < count else "\n"
