"""Language models by gate, on real stories: bits per byte, and how well their MLPs read. The tables for the docs.

    python -m benchmarks.language --text FILE [--seeds 3] [--runs runs/language]

FILE is the first 5,000 stories of TinyStories in lower case, one newline between two; the last 250 are the test. Every
gate gets the same budget: 1,500 steps of 8 windows of 128 tokens, four blocks of width 128, a vocabulary of 2,048.
Runs that are finished are read, not repeated. Writes docs/results/language.md, and bits per byte by gate and seed to
benchmarks/results/language.json, which the experiments read.
"""

import dataclasses
import json
import statistics
from pathlib import Path

from benchmarks.common import GATES, PAGES, RESULTS, markdown_table, parsed, spread
from sqs_jax.analysis.language import METHODS
from sqs_jax.analysis.report.language_page import write_language_report
from sqs_jax.train import PRESETS, train
from sqs_jax.train.run_folder import described, provenance

TABLE = PAGES / "language.md"
BITS = RESULTS / "language.json"
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
            if "analysis" not in _summary(run_dir):
                write_language_report(run_dir)
    summaries = {gate: [_summary(runs / f"{gate}-{seed}") for seed in range(seeds)] for gate in GATES}
    bits = {
        gate: {seed: round(row["test"]["bits_per_byte"], 4) for seed, row in enumerate(rows)}
        for gate, rows in summaries.items()
    }
    results = {"machine": described(provenance()), "bits_per_byte": bits}
    BITS.write_text(json.dumps(results, indent=1) + "\n")
    tail = f"Machine: {described(provenance())}.\n"
    parts = [
        _HEAD.format(seeds=seeds, last=seeds - 1),
        _losses(summaries),
        _readings(summaries),
        _spectra(summaries),
        tail,
    ]
    TABLE.write_text("\n".join(parts))
    print(TABLE.read_text())


def _summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


_HEAD = """# Language models by gate

`python -m benchmarks.language --text FILE --seeds {seeds}`, FILE the first 5,000 stories of TinyStories in lower case
(4.2 MB, of which the last 250 stories are the test): four blocks of width 128, four heads, GLUs of 320, a byte-level
BPE of 2,048 tokens, 1,500 steps of 8 windows of 128 tokens (1.5 epochs), AdamW with a peak learning rate of 0.003,
float32. Nothing was tuned for a gate. Mean over seeds 0 to {last}, ± their standard deviation.
"""


def _losses(groups) -> str:
    heads, rows = ("gate", "bits per byte", "loss (nats a token)", "bits per byte, seed by seed"), []
    for gate, summaries in groups.items():
        bits, loss = ([summary["test"][name] for summary in summaries] for name in ("bits_per_byte", "loss"))
        seeds = ", ".join(f"{value:.4f}" for value in bits)
        rows.append((gate, spread(bits, 4), spread(loss, 4), seeds))
    return f"## Test loss\n\n{markdown_table(heads, rows)}\n"


_READ = """R² of what each block's GLU adds to the stream, and in brackets the rise of the model's loss, nats a token,
when its quadratic form stands in its place; the last column replaces all four at once. Gains are found on 20,000
training tokens, figures are of 8,192 test tokens."""


def _readings(groups) -> str:
    layers = len(groups["sqs"][0]["analysis"]["layers"])
    heads, rows = ("gate", "gains", *_layer_names(layers), "all"), []
    for gate, summaries in groups.items():
        for name in METHODS:
            cells = []
            for layer in range(layers):
                read = [summary["analysis"]["layers"][layer]["gains"][name] for summary in summaries]
                cells.append(f"{_mean(read, 'r2'):.3f} ({_mean(read, 'loss_rise') + 0.0:.4f})")
            together = spread([summary["analysis"]["together"][name] for summary in summaries], 4)
            rows.append((gate, name, *cells, together))
    return f"## How well the GLUs read\n\n{_READ}\n\n{markdown_table(heads, rows)}\n"


_SPECTRA = """Participation rank (Σ|λ|)² / Σλ² of the interaction matrices of the 32 most frequent tokens, read with
joint gains, and in brackets |λ₁₀| / |λ₁|. The matrices have 128 eigenvalues."""


def _spectra(groups) -> str:
    layers = len(groups["sqs"][0]["analysis"]["layers"])
    rows = []
    for gate, summaries in groups.items():
        cells = []
        for layer in range(layers):
            parts = [summary["analysis"]["layers"][layer] for summary in summaries]
            tenth = statistics.mean(part["decay"][9] for part in parts)
            cells.append(f"{spread([part['participation_rank'] for part in parts], 1)} ({tenth:.2f})")
        rows.append((gate, *cells))
    return f"## Spectra\n\n{_SPECTRA}\n\n{markdown_table(('gate', *_layer_names(layers)), rows)}\n"


def _layer_names(layers: int) -> list[str]:
    return [f"layer {layer + 1}" for layer in range(layers)]


def _mean(parts, name) -> float:
    return statistics.mean(part[name] for part in parts)


if __name__ == "__main__":
    parsed(main)
