"""How well weights read, by gate and gain, and how alike the spectra of two gates are: the tables for the docs.

    python -m benchmarks.fidelity [--seeds 5] [--runs runs/fidelity]

MNIST, all 60,000 training images (no validation), noise 0.5, otherwise the preset: batch 2048, 20 epochs, one GLU layer
of 512 on an embedding of 512. Gains are found on 20,000 training images, every figure is of the 10,000 test images.
Runs that are finished are read, not repeated. Writes docs/results/fidelity.md.
"""

import dataclasses
from pathlib import Path

from benchmarks.common import GATES, PAGES, markdown_table, parsed, spread
from sqs_jax.analysis.calibration import METHODS, calibrate
from sqs_jax.analysis.fidelity import fidelity
from sqs_jax.analysis.report.two_groups import cell
from sqs_jax.analysis.runs.compare import compare_runs
from sqs_jax.analysis.runs.load import CALIBRATION_SAMPLES, drawn, layer_samples, layer_weights, load_run
from sqs_jax.train import PRESETS, train
from sqs_jax.train.run_folder import described, provenance

TABLE = PAGES / "fidelity.md"


def main(seeds: int = 5, runs: Path = Path("runs/fidelity")) -> None:
    """Trains every gate on every seed, then reads and compares them.

    Args:
        seeds: Number of seeds, from 0.
        runs: Folder of the runs.
    """
    for gate in GATES:
        for seed in range(seeds):
            config = dataclasses.replace(PRESETS["mnist"], gate=gate, seed=seed, validation=0, noise_std=0.5)
            run_dir = runs / f"{gate}-{seed}"
            print(run_dir, flush=True)
            train(config, run_dir, resume=(run_dir / "config.json").exists())
    folders = {gate: [runs / f"{gate}-{seed}" for seed in range(seeds)] for gate in GATES}
    parts = [_fidelity_table(folders), *_comparison_tables(folders)]
    head = _HEAD.format(seeds=seeds, last=seeds - 1)
    tail = f"Machine: {described(provenance())}.\n"
    TABLE.write_text("\n".join([head, *parts, tail]))
    print(TABLE.read_text())


_HEAD = """# How well weights read

`python -m benchmarks.fidelity --seeds {seeds}`: MNIST, noise 0.5, 20 epochs, one GLU layer of 512 on an
embedding of 512, trained on all 60,000 images. Gains are found on 20,000 training images; every figure is of the
10,000 test images, mean over seeds 0 to {last}, ± their standard deviation. R² is of the logits, up to a constant that
the training images give.
"""


def _fidelity_table(folders) -> str:
    heads, rows = ("gate", "network", "gains", "R²", "agreement", "accuracy", "KL (nats)", "range of γ"), []
    for gate, paths in folders.items():
        measured_by = {method: [] for method in METHODS}
        for path in paths:
            run = load_run(path)
            weights, sigma, samples = layer_weights(run.model), run.model.layers[-1].sigma, layer_samples(run)
            x = samples.train[drawn(len(samples.train), CALIBRATION_SAMPLES)]
            for method in METHODS:
                calibration = calibrate(weights, x, sigma, method=method)
                labels = samples.test_labels
                measured = fidelity(weights, samples.test, sigma, calibration=calibration, labels=labels)
                measured_by[method].append((measured, calibration.gain))
        for method, results in measured_by.items():
            columns = [spread([float(getattr(row, name)) for row, _ in results], digits) for name, digits in _COLUMNS]
            network = spread([float(row.network_accuracy) for row, _ in results], 4)
            low, high = min(float(gain.min()) for _, gain in results), max(float(gain.max()) for _, gain in results)
            rows.append((gate, network, method, *columns, f"{low:.2f} to {high:.2f}"))
    return f"## Fidelity\n\n{markdown_table(heads, rows)}\n"


_SHOWN = (("rank_cosine", 0), ("rank_cosine", 2), ("overlap", 9), ("form_cosine", None), ("data_form_cosine", None))
_COLUMNS = (("r2", 3), ("agreement", 4), ("accuracy", 4), ("kl", 4))
_ARMS = ("shared", "disjoint", "ceiling", "fraction", "classes", "untrained", "random")


def _comparison_tables(folders) -> list[str]:
    texts = []
    for method in ("identity", "joint"):
        rows = []
        for gate in GATES:
            if gate == "bilinear":
                continue
            measures = compare_runs(folders[gate], folders["bilinear"], method=method)["measures"]
            for name, rank in _SHOWN:
                label = name if rank is None else f"{name}, {rank + 1}"
                rows.append((gate, label, *(cell(measures[name].get(arm), rank) for arm in _ARMS)))
        heading = f"## Beside bilinear networks, read with {method} gains"
        texts += [heading, "", _COMPARED, "", markdown_table(("gate", "measure", *_ARMS), rows), ""]
    return texts


_COMPARED = """Means over outputs and pairs of networks, 95 % intervals by bootstrap over seeds. `shared`: one
initialisation; `disjoint`: different seeds; `ceiling`: bilinear networks with each other; `fraction`: disjoint over
ceiling. Nulls: `classes`, different outputs; `untrained`, the initial weights; `random`, random vectors.
`rank_cosine, i` is |cos| of the i-th eigenvectors by |λ|, `overlap, k` of the spans of the first k, `data_form_cosine`
of the forms in the metric of the data."""


if __name__ == "__main__":
    parsed(main)
