"""The report of an adoption: what it cost, and the model's layers and words before and after."""

from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.analysis.as_json import as_json
from sqs_jax.analysis.report import page
from sqs_jax.analysis.runs.adoption_reading import AdoptionReading, read_adoption
from sqs_jax.analysis.runs.model_reading import ModelReading
from sqs_jax.files import npz, write
from sqs_jax.messages import InputError
from sqs_jax.pretrained.loading import load_pretrained
from sqs_jax.pretrained.tensor_files import read_json
from sqs_jax.pretrained.vocabulary import token_bytes_of
from sqs_jax.train.config import AdoptConfig
from sqs_jax.train.records import read_rows
from sqs_jax.train.run_folder import RunFolder, read_config


def write_adoption_report(path: Path) -> Path:
    """Reads both models of a finished adoption, and writes `report.html` and `spectrum.npz` into its folder.

    `summary.json` gets `analysis`: for each layer R² of the fit, of readings before and after, and how far the forms
    agree. `spectrum.npz`: `tokens` (m,), `layers` (n,), and of both sides, `before` and `after`, `values_<side>`
    (n, m, k) and `vectors_<side>` (n, m, k, d). Raises InputError where the run is not finished, or its model or text
    cannot be had.
    """
    run = RunFolder(path)
    config = read_config(run)
    assert isinstance(config, AdoptConfig)
    if not run.summary.is_file() or not run.model.is_dir():
        raise InputError(f"{path} is not finished: go on with it by python -m train adopt --run-dir {path} --resume")
    reading = read_adoption(run, config)
    summary = read_json(run.summary)
    summary["analysis"] = {"layers": _rows(run, config, reading)}
    command = page.command(str(path))
    made = {
        "spectrum.npz": npz(_arrays(reading)),
        "summary.json": page.json_file(summary),
        "report.html": page.render(
            _content(run, config, reading, summary), _texts(config, reading, summary) | {"command": command}
        ).encode(),
    }
    for name, data in made.items():
        write(path / name, data)
    return run.report


def _rows(run: RunFolder, config: AdoptConfig, reading: AdoptionReading) -> list[dict[str, Any]]:
    """What is known of each layer; None where it was not measured."""
    fitted = {row["layer"]: row for row in read_json(run.before)["layers"]}
    model = load_pretrained(run.model) if config.gate == "sqs" else None
    sides = {name: {row["layer"]: row for row in getattr(reading, name).layers} for name in ("before", "after")}
    agreed = {row["layer"]: i for i, row in enumerate(reading.before.layers)}
    rows = []
    for layer in range(reading.original.layers):
        own, at = fitted.get(layer, {}), agreed.get(layer)
        row = {
            "layer": layer,
            "distilled": own.get("r2"),
            "sinks": own.get("sinks"),
            "sink_error": own.get("sink_error"),
        }
        for name, found in sides.items():
            shown = found[layer]["readings"] if layer in found else None
            row[name] = None if shown is None else {kind: as_json(part["r2"]) for kind, part in shown.items()}
        for name, values in (("cosine", reading.cosines), ("overlap", reading.overlaps)):
            row[name] = None if at is None else as_json(np.mean(values[at]))
        if model is not None:
            row |= {name: float(model.block(layer)[name]) for name in ("c", "lam")}
        rows.append(row)
    return rows


def _arrays(reading: AdoptionReading) -> dict[str, Any]:
    arrays: dict[str, Any] = {"tokens": np.array(reading.before.words)}
    arrays["layers"] = np.array([row["layer"] for row in reading.before.layers])
    for side in ("before", "after"):
        for name in ("values", "vectors"):
            arrays[f"{name}_{side}"] = np.stack([getattr(pairs, name) for pairs in getattr(reading, side).pairs])
    return arrays


def _content(run: RunFolder, config: AdoptConfig, reading: AdoptionReading, summary) -> dict[str, Any]:
    spelled = token_bytes_of(reading.original.tokenizer)
    rows = summary["analysis"]["layers"]
    adoption = {
        "loss": summary["loss"],
        "curves": _curves(run),
        "layers": rows,
        "read": [row["layer"] for row in reading.before.layers],
        "tokens": reading.before.words,
        "vocabulary": _vocabulary(spelled, reading),
        "cosines": page.rounded(reading.cosines),
        "overlaps": page.rounded(reading.overlaps),
        "before": _side(reading.before),
        "after": _side(reading.after),
    }
    cards = [[f"{value:.3f}", f"loss, {name}"] for name, value in summary["loss"].items()]
    return {"adoption": adoption, "cards": cards, "provenance": {"config": summary.get("config", {})} | summary}


def _vocabulary(spelled: list[bytes], reading: AdoptionReading) -> dict[int, str]:
    """The text of each token that the page shows."""
    parts = [pairs.likes.ravel() for side in (reading.before, reading.after) for pairs in side.pairs]
    used = np.unique(np.concatenate([np.array(reading.before.words), *parts]))
    return {int(token): spelled[token].decode(errors="backslashreplace") for token in used if token < len(spelled)}


def _side(reading: ModelReading) -> dict[str, Any]:
    values = [page.rounded(pairs.values) for pairs in reading.pairs]
    return {"values": values, "likes": [pairs.likes[..., :8].tolist() for pairs in reading.pairs]}


def _curves(run: RunFolder) -> list[dict[str, Any]]:
    curves = []
    for name, folder in (("adopted", run), ("control", RunFolder(run.control))):
        rows = read_rows(folder.metrics) if folder.metrics.is_file() else []
        points = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
        if points:
            steps, losses = zip(*points, strict=True)
            curves.append({"name": name, "steps": steps, "losses": losses})
    return curves


def _texts(config: AdoptConfig, reading: AdoptionReading, summary: dict[str, Any]) -> dict[str, str]:
    arch, shown = reading.original.architecture, list(reading.after.layers[0]["readings"])[-1]
    values = [row["readings"][shown]["r2"] for row in reading.after.layers]
    share = " to ".join(dict.fromkeys(f"{100 * value:.1f}" for value in (min(values), max(values))))
    verdict = (
        f"{_cost(config, reading.original.name, summary['loss'])} Quadratic forms ({shown}) explain {share} % of what "
        f"the GLUs that were read add; with them in the place of {len(values)} of {arch.layers} GLUs the loss rises by "
        f"{reading.after.all[shown]:.3f}."
    ).replace("-0.000", "0.000")
    subtitle = (
        f"{arch.layers} layers of width {arch.width} with GLUs of {arch.hidden}; on {Path(config.text).name}, "
        f"seed {config.seed}."
    )
    stored = "Every number here lies in the files beside this page: summary.json, metrics.jsonl and spectrum.npz."
    return page.texts(f"{reading.original.name}, gate {config.gate}", subtitle, verdict, stored=stored)


def _cost(config: AdoptConfig, name: str, loss: dict[str, float]) -> str:
    """What the gate cost, in words."""
    gate = {"sqs": "Signed Quadratic Shrink", "bilinear": "a bilinear gate", "own": "its own gate, tuned"}[config.gate]
    last = loss.get("tuned", loss.get("distilled", loss["original"]))
    text = f"Every GLU of {name} has {gate}. Its loss was {loss['original']:.3f} nats a token and is {last:.3f}."
    if "control" not in loss:
        return text
    gap = last - loss["control"]
    side = "above" if gap > 0 else "below"
    return f"{text} That is {abs(gap):.3f} {side} a control that kept its own gate and had the same steps."
