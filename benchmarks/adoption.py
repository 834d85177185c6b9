"""What another gate costs a pretrained model: both gates, each beside its control, over seeds. For the docs.

    python -m benchmarks.adoption --model MODEL --text FILE [--seeds 3] [--steps 1000] [--runs runs/adoption]

MODEL is what `python -m train adopt` takes. Writes benchmarks/results/adoption-NAME.json, and from all such files
docs/results/adoption.md. What is there of a run is not repeated.
"""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from benchmarks.common import PAGES, RESULTS, markdown_table, parsed
from sqs_jax.analysis.report import write_report
from sqs_jax.pretrained import load_pretrained
from sqs_jax.train import AdoptConfig, adopt
from sqs_jax.train.run_folder import RunFolder, described, provenance

PAGE = PAGES / "adoption.md"
GATES = ("bilinear", "sqs")
_STEPS = ("original", "swapped", "distilled", "tuned", "control")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is adopted, and how."""

    model: str
    """A Hugging Face folder, or a .gguf file."""
    text: Path
    """The text that all is fitted, trained and measured on."""
    name: str = ""
    """Of the result; by default that of the model."""
    seeds: int = 3
    """Runs of each gate."""
    stage: Literal["distil", "both"] = "both"
    """distil alone, or both, with controls."""
    tokens: int = 0
    """That GLUs are fitted on; 0 for a number that suits the width."""
    distil_steps: int = 0
    """Of each GLU's fit; 0 for a number that suits the width."""
    steps: int = 1000
    """Of training."""
    batch_size: int = 1
    """Windows of 512 tokens a step."""
    train: Literal["glu", "all"] = "all"
    """The GLUs alone, or all parameters."""
    lr: float = 3e-4
    """Learning rate of the GLUs."""
    rest_lr: float = 1e-3
    """Of everything else."""
    teacher: float = 0.0
    """Weight of the divergence to the original's logits."""
    test: int = 65536
    """Held-out tokens for the losses in the table,"""
    validation: int = 4096
    """and for the curves."""
    evaluate_every: int = 100
    """Steps between two points of a curve."""
    runs: Path = Path("runs/adoption")
    """Folder of the runs."""


def main(settings: Settings) -> None:
    """Adopts with both gates, and writes the tables."""
    loaded = load_pretrained(settings.model)
    name = settings.name or loaded.name
    arch, rows = loaded.architecture, []
    shared = {field.name for field in dataclasses.fields(AdoptConfig)} & {*vars(settings)}
    given: dict[str, Any] = {field: getattr(settings, field) for field in shared} | {"text": str(settings.text)}
    for seed in range(settings.seeds):
        for gate in GATES:
            # A control keeps its gate: one serves both.
            control = settings.stage == "both" and gate == GATES[0]
            config = AdoptConfig(**given, gate=gate, seed=seed, control=control)
            row = {"gate": gate, "seed": seed} | _run(config, settings.runs / f"{name}-{gate}-seed{seed}")
            if settings.stage == "both" and not control:
                row["loss"]["control"] = rows[-1]["loss"]["control"]
                row["curves"]["control"] = rows[-1]["curves"]["control"]
            rows.append(row)
            print(gate, seed, row["loss"], flush=True)
    about = {"model": loaded.name, "layers": arch.layers, "width": arch.width, "hidden": arch.hidden}
    kept = {field: getattr(settings, field) for field in ("steps", "batch_size", "train", "lr", "rest_lr", "teacher")}
    kept |= {"test": settings.test, "stage": settings.stage, "text": settings.text.name, "tokens": rows[0]["tokens"]}
    result = about | {"settings": kept, "runs": rows, "machine": described(provenance())}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"adoption-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    write_page()
    print(PAGE.read_text())


def _run(config: AdoptConfig, folder: Path) -> dict[str, Any]:
    run = RunFolder(folder)
    summary = adopt(config, folder, resume=run.config.exists())
    if not run.report.exists():
        write_report(folder)
        summary = json.loads(run.summary.read_text())
    before = json.loads(run.before.read_text())
    kept = {"loss": summary["loss"], "layers": summary["analysis"]["layers"], "seconds": round(before["seconds"])}
    curves = {
        name: [(row["step"], row.get("validation_loss")) for row in map(json.loads, path.read_text().splitlines())]
        for name, path in (("tuned", run.metrics), ("control", RunFolder(run.control).metrics))
        if path.is_file()
    }
    return kept | {"tokens": before["tokens"], "curves": curves}


def write_page() -> None:
    """The page of all results that there are."""
    parts = [_HEAD] + [_section(json.loads(path.read_text())) for path in sorted(RESULTS.glob("adoption-*.json"))]
    PAGE.write_text("\n".join(parts))


_HEAD = """# Adopted gates

`python -m benchmarks.adoption --model MODEL --text FILE`: the loss of a pretrained model on held-out text, in nats a
token, as its GLUs are given another gate by `python -m train adopt` ({doc}`../how-to/adopt`). *original*: the model as
it was; *swapped*: the bare gate in its weights; *distilled*: each GLU was fitted by itself; *tuned*: all was then
trained; *control*: the model's own gate with the same steps. A gap has its 95 % interval over seeds (t); tuned and
control of a seed have the same batches.
"""


def interval(values: list[float]) -> str:
    """The mean, and half the width of its 95 % interval where there are several values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.3f} ± {half:.3f}"


def _section(result: dict[str, Any]) -> str:
    settings, runs = result["settings"], result["runs"]
    seeds = len({run["seed"] for run in runs})
    training = (
        f"{settings['steps']} steps of {settings['batch_size']} × 512 tokens, "
        f"{'all parameters' if settings['train'] == 'all' else 'GLUs alone'}, learning rate {settings['lr']:g}"
        + (f" (all but GLUs {settings['rest_lr']:g})" if settings["train"] == "all" else "")
        + f", teacher {settings['teacher']:g}"
    )
    about = (
        f"{result['layers']} layers of width {result['width']}, GLUs of {result['hidden']}. Text: {settings['text']}; "
        f"fitted on {settings['tokens']:,} tokens, measured on {settings['test']:,}; {seeds} seed{'s' * (seeds > 1)}. "
        + (f"Training: {training}." if settings["stage"] == "both" else "No training.")
    )
    names = [name for name in _STEPS if name in runs[0]["loss"]]
    heads = [
        "gate",
        *names,
        "distilled − original",
        *(["tuned − control"] if "control" in names else []),
        "s to distil",
    ]
    rows = []
    for gate in GATES:
        own = [run for run in runs if run["gate"] == gate]
        losses = [run["loss"] for run in own]
        cells = [f"{statistics.fmean(loss[name] for loss in losses):.3f}" for name in names]
        cells.append(interval([loss["distilled"] - loss["original"] for loss in losses]))
        if "control" in names:
            cells.append(interval([loss["tuned"] - loss["control"] for loss in losses]))
        rows.append((gate, *cells, str(round(statistics.fmean(run["seconds"] for run in own)))))
    return "\n\n".join(
        [
            f"## {result['model']}",
            about,
            markdown_table(heads, rows),
            *_curves(runs),
            *_layers(runs),
            f"Machine: {result['machine']}.\n",
        ]
    )


def _curves(runs: list[dict[str, Any]]) -> list[str]:
    """The validation loss of the first seed by step; nothing without training."""
    first = {run["gate"]: run["curves"] for run in runs if run["seed"] == 0}
    if not first[GATES[0]]:
        return []
    columns = [*((gate, "tuned") for gate in GATES), (GATES[0], "control")]
    steps = [step for step, _ in first[GATES[0]]["tuned"]]
    rows = [
        (step, *(f"{dict(map(tuple, first[gate][kind]))[step]:.3f}" for gate, kind in columns))
        for step in steps[:: max(1, len(steps) // 10)]
    ]
    heads = ("step", *GATES, "control")
    return ["Validation loss by step, seed 0:", markdown_table(heads, rows)]


def _layers(runs: list[dict[str, Any]]) -> list[str]:
    """R² of the fit and of readings, and the agreement with the original's surrogate, by layer, first seed."""
    rows = []
    for run in runs:
        if run["seed"]:
            continue
        for row in run["layers"]:
            if row["after"] is None:
                continue
            after = ", ".join(f"{kind} {value:.3f}" for kind, value in row["after"].items())
            cells = [
                f"{row['distilled']:.3f}",
                f"{row['before']['affine']:.3f}",
                f"{row['before']['surrogate']:.3f}",
                after,
            ]
            rows.append((run["gate"], row["layer"], *cells, f"{row['cosine']:.3f}, {row['overlap']:.3f}", row["sinks"]))
    heads = ("gate", "layer", "distilled", "before, affine", "before, surrogate", "after", "cosine, overlap", "sinks")
    text = (
        "R² on held-out text, seed 0: of the fitted GLU for what the original's adds; of readings of the original's "
        "GLU; of readings of the adopted one. Cosine of the forms and overlap of the spans of their five leading "
        "eigenvectors: the adopted layer beside the original's surrogate, mean over 24 words."
    )
    return [text, markdown_table(heads, rows)]


if __name__ == "__main__":
    main(parsed(Settings))
