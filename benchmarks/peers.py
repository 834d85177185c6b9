"""Ours and its peers, side by side in one run: training of many networks, and the eigenpairs of one.

    python -m benchmarks.peers [--seeds 5] [--gates sqs bilinear relu gelu silu] [--epochs 20]

Every gate and seed of the paper's setting on MNIST: as a command each, as one sweep, by a plain PyTorch loop, and by
one with torch.compile and the fused AdamW; same data, model, batch, noise and float32. Seconds are those of whole
processes, from start to end: data and compilers are part of what is waited for. Each is also run for one epoch alone,
which tells what a network waits for before its first loss. Then all eigenpairs of the first network, ours, by torch
and by numpy. Without torch (`pip install .[bench]`) its rows are left out. `--short` is for a device that is lent by
the minute. Writes benchmarks/results/peers-<platform>.json, docs/results/peers-<platform>.md and
docs/images/peers-<platform>.png.
"""

import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from benchmarks import spectra
from benchmarks.common import GATES, ROOT, Gate, markdown_table, parsed
from benchmarks.train import STEPS

SWEEP, COMMANDS, TORCH, COMPILED = "ours, one sweep", "ours, a command each", "PyTorch", "PyTorch, compiled"
FLOOR = "matrix products alone"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    gates: tuple[Gate, ...] = GATES
    """Gates of the networks."""
    seeds: int = 5
    """Networks of each gate."""
    data: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """Data set; digits to try it."""
    epochs: int = 20
    """Epochs of each network."""
    short: bool = False
    """Whole trainings alone, without torch.compile; one command of each gate stands for all its seeds."""
    out: Path = ROOT
    """Where benchmarks/results, docs/results and docs/images are."""


def main() -> None:
    """Runs every contender, prints the table and writes the results."""
    options = parsed(Options)
    for name in ("gates", "seeds", "epochs"):
        if not (value := getattr(options, name)) or (name != "gates" and value < 1):
            print(f"error: `{name}` is {value}: one or more are needed", file=sys.stderr)
            sys.exit(2)
    with tempfile.TemporaryDirectory() as folder:
        rows, pairs = measure(options, Path(folder))
    for name, row in rows.items():
        print(f"{name:<24}" + "  ".join(f"{head} {value:.4g}" for head, value in row.items() if value is not None))
    write(options, rows, pairs)


def measure(options: Options, folder: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Figures of training, and of eigenpairs, by contender."""
    contenders = _contenders(options, folder)
    if options.short:
        return _figures(options, contenders, {}), {}
    starts = _contenders(dataclasses.replace(options, epochs=1), folder / "one-epoch")
    rows = _figures(options, contenders, {name: row["seconds"] for name, row in starts.items()})
    if options.data == "mnist":
        seconds = _done(["-m", "benchmarks.train", "--only", "products", "--epochs", "5"], folder)["output"]
        epochs = options.epochs * _steps(options) / STEPS  # those of `benchmarks.train` hold no images out
        rows[FLOOR] = {"seconds_a_network": statistics.median(json.loads(seconds)) * epochs}
    run = folder / "commands" / f"{options.gates[0]}-0"
    rounds = 3 if options.data == "mnist" else 1
    pairs = {name: spectra.measured("all", name, run, rounds) for name in ("ours", "torch", "numpy")}
    return rows, {name: row for name, row in pairs.items() if row}


def _contenders(options: Options, folder: Path) -> dict[str, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    results = {COMMANDS: _commands(options, folder), SWEEP: _sweep(options, folder)}
    peers = {TORCH: []} if options.short else {TORCH: [], COMPILED: ["--compile"]}
    for name, flags in peers.items():
        if (row := _torch(options, folder, flags)) is not None:
            results[name] = row
    return results


# This process imports JAX only when all contenders are done: a child's peak memory is at least its parent's.
def _one(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Runs one Python process: its seconds from start to end, its peak memory in MB, exit status, output and errors."""
    log, errors = folder / "output.txt", folder / "errors.txt"
    with log.open("w") as file, errors.open("w") as other:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=other, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": seconds,
        "peak_mb": usage.ru_maxrss / 1024,
        "status": process.returncode,
        "output": log.read_text(),
        "errors": errors.read_text(),
    }


def _done(arguments: list[str], folder: Path) -> dict[str, Any]:
    done = _one(arguments, folder)
    if done["status"]:
        sys.exit(f"error: python {' '.join(arguments)} failed:\n{done['output']}{done['errors']}")
    return done


def _common(options: Options) -> list[str]:
    return [options.data, "--epochs", str(options.epochs)]


def _commands(options: Options, folder: Path) -> dict[str, Any]:
    parts, curves = [], {}
    for gate in options.gates:
        for seed in range(1 if options.short else options.seeds):
            run = folder / "commands" / f"{gate}-{seed}"
            flags = ["--gate", gate, "--seed", str(seed), "--no-report", "--run-dir", str(run)]
            parts.append(_done(["-m", "sqs_jax.train", *_common(options), *flags], folder))
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            curves[f"{gate}-{seed}"] = [row["validation_loss"] for row in rows]
    totals = {"seconds": sum(part["seconds"] for part in parts), "peak_mb": max(part["peak_mb"] for part in parts)}
    return totals | {"curves": curves}


def _sweep(options: Options, folder: Path) -> dict[str, Any]:
    path = folder / "sweep"
    seeds = ",".join(map(str, range(options.seeds)))
    flags = ["--gate", ",".join(options.gates), "--seed", seeds, "--no-report", "--sweep-dir", str(path)]
    done = _done(["-m", "sqs_jax.train", "sweep", *_common(options), *flags], folder)
    curves: dict[str, list[float]] = {}
    for row in csv.DictReader((path / "results.csv").read_text().splitlines()):
        curves.setdefault(f"{row['gate']}-{row['seed']}", []).append(float(row["validation_loss"]))
    return done | {"curves": curves}


def _torch(options: Options, folder: Path, flags: list[str]) -> dict[str, Any] | None:
    data, settings, out = folder / "data.npz", folder / "config.json", folder / "curves.json"
    if not data.exists():
        _done(["-c", _SAVE, options.data, str(data), str(settings)], folder)
    config = json.loads(settings.read_text()) | {"gates": options.gates, "seeds": list(range(options.seeds))}
    settings.write_text(json.dumps(config | {"epochs": options.epochs}))
    done = _one(["-m", "benchmarks.peer_torch", str(data), str(settings), str(out), *flags], folder)
    if done["status"]:
        missing = "No module named 'torch'" in done["errors"]
        last = (done["errors"].strip() or f"exit status {done['status']}").splitlines()[-1]
        reason = "torch is not installed" if missing else last
        print(f"without PyTorch{' compiled' if flags else ''}: {reason}")
        return None
    return done | {"curves": json.loads(out.read_text())}


_SAVE = """
import dataclasses, json, pathlib, sys
import numpy as np
from sqs_jax.train import PRESETS
from sqs_jax.train.images.dataset import load, split_validation
name, data_path, config_path = sys.argv[1:]
config, data = PRESETS[name], load(name)
parts = dict(zip(("train", "validation"), split_validation(len(data.train_labels), config.validation)))
arrays = {f"{part}_images": np.asarray(data.train_images)[places] for part, places in parts.items()}
arrays |= {f"{part}_labels": np.asarray(data.train_labels)[places] for part, places in parts.items()}
np.savez(data_path, **arrays)
pathlib.Path(config_path).write_text(json.dumps(dataclasses.asdict(config)))
"""


def _steps(options: Options) -> int:
    from sqs_jax.train import PRESETS
    from sqs_jax.train.images.dataset import load
    from sqs_jax.train.images.image_task import steps_per_epoch

    return steps_per_epoch(PRESETS[options.data], load(options.data))


def _figures(
    options: Options, contenders: dict[str, dict[str, Any]], starts: dict[str, float]
) -> dict[str, dict[str, float | None]]:
    """Of each contender: seconds a network, images a second, peak memory, and seconds to a loss that all reach.

    `starts` are its seconds where every network has one epoch; without them, what needs them is None.
    """
    from sqs_jax.train import PRESETS

    images = options.epochs * _steps(options) * PRESETS[options.data].batch_size
    # What every network of a gate reached, whoever trained it.
    targets = {
        gate: max(
            min(curve)
            for row in contenders.values()
            for key, curve in row["curves"].items()
            if key.startswith(f"{gate}-")
        )
        for gate in options.gates
    }
    rows: dict[str, dict[str, float | None]] = {}
    for name, row in contenders.items():
        count = len(row["curves"])
        each = row["seconds"] / count
        epochs = [_epochs_to(curve, targets[key.split("-")[0]]) for key, curve in row["curves"].items()]
        first = to_loss = None
        if starts:
            first = starts[name] / count
            later = (each - first) / max(options.epochs - 1, 1)
            to_loss = first + (statistics.mean(epochs) - 1) * later
        rows[name] = {
            "networks": count,
            "seconds": row["seconds"],
            "seconds_a_network": each,
            "seconds_to_the_first_epoch": first,
            "seconds_to_the_same_loss": to_loss,
            "images_a_second": images / each,
            "peak_mb": row["peak_mb"],
            "last_validation_loss": statistics.mean(curve[-1] for curve in row["curves"].values()),
        }
    return rows


def _epochs_to(curve: list[float], target: float) -> int:
    return next(epoch for epoch, loss in enumerate(curve, 1) if loss <= target)


_HEADS = {
    "networks": "networks",
    "seconds": "seconds, all",
    "seconds_a_network": "seconds a network",
    "seconds_to_the_first_epoch": "to its first epoch's end",
    "seconds_to_the_same_loss": "to the same loss",
    "images_a_second": "images a second",
    "peak_mb": "peak memory, MB",
    "last_validation_loss": "last validation loss, mean",
}


def write(options: Options, rows: dict[str, dict], pairs: dict[str, dict]) -> None:
    """Writes the figures, a page with their tables, and their plot."""
    from sqs_jax.train.run_folder import provenance

    flags = f"--gates {' '.join(options.gates)} --seeds {options.seeds} --data {options.data} --epochs {options.epochs}"
    flags += " --short" if options.short else ""
    about: dict[str, Any] = {"command": f"python -m benchmarks.peers {flags}"} | provenance()
    stem = f"peers-{about['device']['platform']}"
    names = f"benchmarks/results/{stem}.json", f"docs/results/{stem}.md", f"docs/images/{stem}.png"
    data, page, picture = (options.out / name for name in names)
    for path in (data, page, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps({"training": rows, "eigenpairs": pairs} | about, indent=2) + "\n")
    page.write_text(_page(options, rows, pairs, about, picture.name))
    _plot(rows, pairs, picture)
    print(f"{data}\n{page}\n{picture}")


def _page(options: Options, rows: dict[str, dict], pairs: dict[str, dict], about: dict[str, Any], picture: str) -> str:
    from sqs_jax.train import PRESETS

    versions = ", ".join(f"{name} {version}" for name, version in (about["versions"] | _torch_version()).items())
    config = PRESETS[options.data]
    return _PAGE.format(
        command=about["command"],
        count=len(options.gates) * options.seeds,
        data=options.data,
        hidden=config.hidden,
        width=config.width,
        batch=config.batch_size,
        noise=config.noise_std,
        training=_training_table(rows),
        method=_SHORT if options.short else _WHOLE,
        picture=picture,
        pairs=f"{_PAIRS}{_pairs_table(pairs)}\n\n" if pairs else "",
        machine=f"{about['machine']['processor']}, {about['machine']['cores']} cores"
        + ("" if about["device"]["platform"] == "cpu" else f", {about['device']['kind']}"),
        versions=versions,
    )


def _training_table(rows: dict[str, dict]) -> str:
    heads = {part: head for part, head in _HEADS.items() if any(row.get(part) is not None for row in rows.values())}
    body = [(name, *(_number(row.get(part)) for part in heads), _ratio(rows, name)) for name, row in rows.items()]
    return markdown_table(("", *heads.values(), f"time over that of {SWEEP!r}"), body)


def _pairs_table(pairs: dict[str, dict]) -> str:
    body = [
        (name, f"{row['seconds']:.3f}", f"{row['seconds'] / pairs['ours']['seconds']:.2f}", f"{row['peak_mb']:.0f}")
        for name, row in pairs.items()
    ]
    return markdown_table(("", "seconds", "over ours", "peak memory, MB"), body)


_PAGE = """# Beside its peers

`{command}`

{count} networks on {data}: one GLU layer of {hidden} on an embedding of {width}, batch {batch}, noise {noise}, float32.
Every contender is a process, or a process a network, one after another on the same machine; its seconds are from start
to end, with data and compilers, and its peak memory that of the processes, not of a device. {method}
Each contender ran once, so a ratio has no interval: a machine that slows down meanwhile moves it.

## Training

{training}

![Seconds and memory by contender](../images/{picture})

{pairs}Machine: {machine}. Versions: {versions}.
"""

_WHOLE = """A network's seconds are its
share of the time; those to the end of its first epoch are of the same runs with one epoch, so they hold the start, the
data and the compilers. *The same loss* is the lowest that every network of a gate reaches, whoever trains it, on
held-out images: the first epoch, and as many more as it takes. PyTorch compiled has torch.compile and the fused AdamW.
The matrix products alone are those of every step by XLA and nothing else: with that library of products, no network of
this size can be trained faster in float32 on this machine."""
_SHORT = """A network's seconds are its
share of the time; of the commands, one of each gate was run, and stands for all its seeds."""

_PAIRS = """## All eigenpairs of one network

Ten outputs, a matrix over the pixels each, formed from the weights; more by `python -m benchmarks.spectra`.

"""


def _torch_version() -> dict[str, str]:
    from importlib import metadata

    try:
        return {"torch": metadata.version("torch")}
    except metadata.PackageNotFoundError:
        return {}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _ratio(rows: dict[str, dict], name: str) -> str:
    return f"{rows[name]['seconds_a_network'] / rows[SWEEP]['seconds_a_network']:.2f}"


def _plot(rows: dict[str, dict], pairs: dict[str, dict], path: Path) -> None:
    from matplotlib.figure import Figure

    panels = {
        "seconds a network": {name: row["seconds_a_network"] for name, row in rows.items()},
        "peak memory, MB": {name: row["peak_mb"] for name, row in rows.items() if "peak_mb" in row},
    } | ({"all eigenpairs, seconds": {name: row["seconds"] for name, row in pairs.items()}} if pairs else {})
    figure = Figure(figsize=(4.4 * len(panels), 2.8), layout="constrained")
    for axis, (title, bars) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        colors = ["#b2182b" if "ours" in name else "#9a9a9a" for name in bars]
        drawn = axis.barh(list(bars), list(bars.values()), color=colors, height=0.6)
        axis.bar_label(drawn, fmt=_number, padding=3, fontsize=9)
        axis.set(title=title, xlim=(0, 1.25 * max(bars.values())))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
