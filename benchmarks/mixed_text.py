"""A text of two kinds, stories and Python's documentation, for readings of language models that are trained on both.

    python -m benchmarks.mixed_text STORIES TEXT

STORIES is a text of stories, of which the first 400,000 characters are taken, and as many of the documentation that
comes with Python (`pydoc_data.topics`). They alternate in 40 pieces each, so that a cut anywhere has both.
"""

import itertools
import pydoc_data.topics
from pathlib import Path

from benchmarks.common import parsed

_CHARACTERS, _PIECES = 400_000, 40


def main(stories: Path, text: Path, /) -> None:
    """Writes the text.

    Args:
        stories: A UTF-8 text.
        text: The file that is written.
    """
    topics = "\n".join(pydoc_data.topics.topics.values())
    kinds = (stories.read_text(encoding="utf-8"), "\n"), (topics, "\n\n")
    pieces = [_pieces(kind[:_CHARACTERS], between) for kind, between in kinds]
    text.write_text("\n".join(piece for pair in zip(*pieces, strict=True) for piece in pair), encoding="utf-8")


def _pieces(text: str, between: str) -> list[str]:
    """The text in 40 pieces, cut where `between` stands."""
    parts = text.split(between)
    cuts = [i * len(parts) // _PIECES for i in range(_PIECES + 1)]
    return [between.join(parts[start:end]) for start, end in itertools.pairwise(cuts)]


if __name__ == "__main__":
    parsed(main)
