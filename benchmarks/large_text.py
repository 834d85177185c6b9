"""What it takes to tokenize a text of some GiB, and to open it again.

    python -m benchmarks.large_text [--gib 2] [--folder runs/large-text]

Makes a text of stories, tokenizes it in a process of its own, as `python -m train --text` does, and opens it in
another. Memory is that of all processes together, each page shared out among those that have it (PSS), looked at every
tenth of a second.
Writes benchmarks/results/large-text.json.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.common import RESULTS, parsed
from sqs_jax.train.config import TextConfig
from sqs_jax.train.run_folder import described, provenance
from sqs_jax.train.text.embedded_stories import stories
from sqs_jax.train.text.token_stream import load_text


@dataclasses.dataclass(frozen=True)
class Settings:
    """The text, and where it lies."""

    gib: float = 2.0
    """Size of the text."""
    folder: Path = Path("runs/large-text")
    """For the text and the cache; what is there is used again."""
    load: bool = False
    """Load the text, and print what that took: what the processes of their own do."""


def main(settings: Settings) -> None:
    """Measures both starts, and writes the result."""
    text = settings.folder / "text.txt"
    if settings.load:
        config = TextConfig(data="text", text=str(text), vocab=4096)
        start = time.perf_counter()
        loaded = load_text(config, cache_dir=settings.folder / "cache")
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "tokens": len(loaded.train.tokens), "stories": loaded.train.stories}))
        return
    settings.folder.mkdir(parents=True, exist_ok=True)
    if not text.is_file():
        _write(text, int(settings.gib * 2**30))
    first, second = _watched(settings), _watched(settings)
    rate = text.stat().st_size / 1e6 / first["seconds"]
    result = {"bytes": text.stat().st_size, "first": first, "second": second, "megabytes_per_second": rate}
    result["machine"] = described(provenance())
    (RESULTS / "large-text.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _write(path: Path, size: int) -> None:
    """A text of so many bytes: stories of a grammar, each with a number of its own."""
    known, number = stories(5000, seed=1), 0
    with path.open("w", encoding="utf-8") as file:
        while size > 0:
            size -= file.write(f"{known[number % len(known)]} This was story {number}.\n<|endoftext|>\n")
            number += 1


def _watched(settings: Settings) -> dict[str, float]:
    """What `--load` prints in a process of its own, and the most memory that it and its children had at a time."""
    command = [sys.executable, "-m", "benchmarks.large_text", "--load", "--folder", str(settings.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            everyone = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(each.memory_full_info().pss for each in everyone))
        except psutil.Error:  # one has just ended
            pass
        time.sleep(0.1)
    assert process.stdout is not None
    return json.loads(process.stdout.read().splitlines()[-1]) | {"peak_gib": peak / 2**30}


if __name__ == "__main__":
    main(parsed(Settings))
