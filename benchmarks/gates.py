"""The paper's image runs: loss and accuracy on the test set by gate, over seeds, with the table for the docs.

    python -m benchmarks.gates [--seeds 3] [--runs runs/gates]

All 60,000 training images (no validation), noise 1.0, weight decay 0.1, batch 2048, 20 epochs, learning rate 1e-3,
one GLU layer of 512 on an embedding of 512. Runs that are finished are read, not repeated; one that was interrupted
goes on. Writes docs/results/gates.md.
"""

import dataclasses
from pathlib import Path

from benchmarks.common import PAGES, markdown_table, parsed, spread
from sqs_jax.train import PRESETS, train

GATES = {"mnist": ("sqs", "bilinear", "relu"), "fashion_mnist": ("sqs", "bilinear")}
TABLE = PAGES / "gates.md"


def main(seeds: int = 3, runs: Path = Path("runs/gates")) -> None:
    """Trains every gate on every seed.

    Args:
        seeds: Number of seeds, from 0.
        runs: Folder of the runs.
    """
    summaries = {}
    for data, gates in GATES.items():
        for gate in gates:
            for seed in range(seeds):
                config = dataclasses.replace(PRESETS[data], gate=gate, seed=seed, validation=0)
                run_dir = runs / f"{data}-{gate}-{seed}"
                print(run_dir, flush=True)
                summary = train(config, run_dir, resume=(run_dir / "config.json").exists())
                summaries.setdefault((data, gate), []).append(summary)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(_page(summaries, seeds))
    print(TABLE.read_text())


def _page(summaries, seeds: int) -> str:
    heads, rows = ("data", "gate", "test loss (nats)", "test accuracy", "each seed's loss, accuracy"), []
    for (data, gate), group in summaries.items():
        losses, accuracies = ([summary["test"][part] for summary in group] for part in ("loss", "accuracy"))
        each = "; ".join(f"{loss:.4f}, {accuracy:.4f}" for loss, accuracy in zip(losses, accuracies, strict=True))
        rows.append((data, gate, spread(losses, 4), spread(accuracies, 4), each))
    last = summaries["mnist", "sqs"][-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    return f"""# Gates in the paper's setting

`python -m benchmarks.gates --seeds {seeds}`: noise 1.0, weight decay 0.1, batch 2048, 20 epochs, learning rate 1e-3,
embedding 512, one GLU layer of 512, trained on all 60,000 images; the test set is read once, after the last epoch.
Mean over seeds 0 to {seeds - 1}, ± their standard deviation.

{markdown_table(heads, rows)}

Machine: {last["machine"]["processor"]}, {last["device"]["count"]} {last["device"]["platform"]} device.
Versions: {versions}. Commit: {last["git"]}.
"""


if __name__ == "__main__":
    parsed(main)
