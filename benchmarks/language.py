"""Language models by gate, on real stories: bits per byte, and how well their MLPs read. The tables for the docs.

    python -m benchmarks.language --text FILE [--seeds 3] [--runs runs/language]

FILE is the first 5,000 stories of TinyStories in lower case, one newline between two; the last 250 are the test. Every
gate gets the same budget: 1,500 steps of 8 windows of 128 tokens, four blocks of width 128, a vocabulary of 2,048.
Runs that are finished are read, not repeated. Writes docs/results/language.md.
"""

import dataclasses
from pathlib import Path

import tyro

from sqs_jax.train import PRESETS, train

GATES = ("sqs", "bilinear", "relu", "gelu", "silu")
CONFIG = dataclasses.replace(
    PRESETS["text"],
    separator="newline",
    vocab=2048,
    context=128,
    width=128,
    batch_size=8,
    lr=3e-3,
    steps=1500,
    warmup=50,
)


def main(text: Path, seeds: int = 3, runs: Path = Path("runs/language")) -> None:
    """Trains every gate on every seed, reads the weights, and writes the tables.

    Args:
        text: The stories.
        seeds: Number of seeds, from 0.
        runs: Folder of the runs.
    """
    for seed in range(seeds):
        for gate in GATES:
            config = dataclasses.replace(CONFIG, text=str(text.absolute()), gate=gate, seed=seed)
            run_dir = runs / f"{gate}-{seed}"
            print(run_dir, flush=True)
            train(config, run_dir, resume=(run_dir / "config.json").exists())


if __name__ == "__main__":
    tyro.cli(main)
