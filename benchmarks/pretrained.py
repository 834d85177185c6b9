"""Readings of pretrained language models: every layer, every reading, and how well surrogates agree. For the docs.

    python -m benchmarks.pretrained MODEL --text FILE [--name NAME] [--tokens 0] [--runs runs/pretrained]

MODEL is what `python -m analysis report` takes. For a few layers surrogates are fitted anew, on two disjoint halves of
the text and from another seed. Writes benchmarks/results/pretrained-NAME.json, and from all such files
docs/results/pretrained.md.
A reading that is there already is not repeated.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import PAGES, RESULTS, markdown_table, parsed
from sqs_jax.analysis.calibration import bilinear_layer, calibrate
from sqs_jax.analysis.language import (
    glu_gate,
    mlp_weights,
    stream_directions,
    token_directions,
)
from sqs_jax.analysis.layer_reading import GAIN_SAMPLES, agreement, default_steps, default_tokens
from sqs_jax.analysis.reading_kinds import READINGS
from sqs_jax.analysis.report.model_page import write_model_report
from sqs_jax.analysis.runs.model_reading import frequent_words
from sqs_jax.analysis.streams import is_sink, layer_streams, sink_limit
from sqs_jax.analysis.surrogate import fit_surrogate
from sqs_jax.pretrained import load_pretrained
from sqs_jax.pretrained.windows import read_text, text_windows
from sqs_jax.train.run_folder import described, provenance

PAGE = PAGES / "pretrained.md"
_COMPARED, _WORDS = 4, 40  # layers whose surrogates are fitted anew, and token directions of the comparison


def main(model: str, /, text: Path, name: str = "", tokens: int = 0, runs: Path = Path("runs/pretrained")) -> None:
    """Reads a model, and writes the tables.

    Args:
        model: A Hugging Face folder, or a .gguf file.
        text: The text that it is read on.
        name: Of the result; by default that of the model.
        tokens: That readings are fitted on; 0 for a number that suits the width.
        runs: Folder of the readings.
    """
    loaded = load_pretrained(model)
    name = name or loaded.name
    folder, path = runs / name, RESULTS / f"pretrained-{name}.json"
    before = folder / "losses.json", path
    seconds = json.loads(path.read_text())["seconds"] if all(file.is_file() for file in before) else None
    write_model_report(model, text=text, out_dir=folder, readings=READINGS, tokens=tokens)
    summary = json.loads((folder / "summary.json").read_text())
    kept = ("sizes", "text", "loss", "layers", "all", "tokens", "test_tokens")
    result = {part: summary[part] for part in kept} | {"model": loaded.name}
    result["seconds"] = summary["seconds"]["layers"] if seconds is None else seconds  # of the call that fitted them
    result["agreement"] = _agreements(loaded, read_text(text), tokens)
    result["machine"] = described(provenance())
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    write_page()
    print(PAGE.read_text())


def _agreements(model, text: str, tokens: int) -> list[dict[str, Any]]:
    """Of surrogates on disjoint halves of the text, of two seeds, and with the affine reading: form cosine, overlap."""
    tokens = tokens or default_tokens(model, ("surrogate",))
    windows, test = text_windows(model, text, 2 * tokens, 8192)
    halves, words = (windows[::2], windows[1::2]), frequent_words(model, test, _WORDS)
    chosen = np.unique(np.linspace(0, model.layers - 1, _COMPARED).astype(int))
    rows = []
    for one, other in zip(*(layer_streams(model, half) for half in halves), strict=True):
        if one.layer not in chosen:
            continue
        weights, gate = mlp_weights(model, one.layer), glu_gate(model, one.layer)
        directions = stream_directions(model, one.layer, token_directions(model, words))
        inputs = [stream.x[~is_sink(stream.y, sink_limit(stream.y))] for stream in (one, other)]
        fits = [fit_surrogate(weights, x, gate, steps=default_steps(model)) for x in inputs]
        again = fit_surrogate(weights, inputs[0], gate, steps=default_steps(model), seed=1)
        affine = calibrate(
            weights, inputs[0][:GAIN_SAMPLES], gate, method="joint_affine", precision="float32", r2=False
        )
        mine = fits[0].weights
        pairs = {"halves": fits[1].weights, "seeds": again.weights, "affine": bilinear_layer(weights, affine)}
        row = {}
        for name, other in pairs.items():
            row[name] = {part: float(np.mean(each)) for part, each in agreement(mine, other, directions).items()}
        rows.append({"layer": one.layer} | row)
        print(rows[-1], flush=True)
    return rows


def write_page() -> None:
    """The page of all results that there are."""
    parts = [_HEAD]
    for path in sorted(RESULTS.glob("pretrained-*.json")):
        parts.append(_section(json.loads(path.read_text())))
    PAGE.write_text("\n".join(parts))


_HEAD = """# Pretrained language models

`python -m benchmarks.pretrained MODEL --text FILE`: R² of what each GLU adds, by reading, and in brackets the rise of
the model's loss with the reading in the GLU's place, in nats a token. All is measured on held-out tokens of the same
text, the rise of one layer on half of them. Sinks are left out of fits and R², and kept as they are where a layer is
replaced. The readings are those of {doc}`../how-to/pretrained`. mix.txt, stories and Python's documentation, is what
`python -m benchmarks.mixed_text` writes.
"""


def _section(result: dict[str, Any]) -> str:
    sizes, names = result["sizes"], list(result["all"])
    names = [name for name in READINGS if name in names]
    rows = [
        (
            row["layer"],
            *(f"{row['readings'][name]['r2']:.3f} ({row['readings'][name]['loss_rise'] + 0.0:+.4f})" for name in names),
            row["sinks"],
            f"{row['effective_rank']:.0f}",
        )
        for row in result["layers"]
    ]
    rows.append(("all", *(f"{result['all'][name]:+.3f}" for name in names), "", ""))
    text = (
        f"## {result['model']}\n\n{sizes['layers']} layers of width {sizes['width']}, GLUs of {sizes['hidden']}. Text: "
        f"{result['text']}; fitted on {result['tokens']:,} tokens, measured on {result['test_tokens']:,}. Loss of the "
        f"model {result['loss']:.3f} nats a token. {result['seconds']} s for all "
        "readings of all layers, without the losses.\n\n"
        + markdown_table(("layer", *names, "sinks", "effective rank"), rows)
    )
    heads = ("layer", "halves of the text", "two seeds", "surrogate and affine")
    cells = [
        (
            row["layer"],
            *(f"{row[k]['form_cosine']:.3f}, {row[k]['overlap']:.3f}" for k in ("halves", "seeds", "affine")),
        )
        for row in result["agreement"]
    ]
    about = (
        f"\n\nAgreement of surrogates along {_WORDS} token directions: cosine of the forms, overlap of the spans of "
        "their five leading eigenvectors.\n\n"
    )
    return f"{text}{about}{markdown_table(heads, cells)}\n\nMachine: {result['machine']}.\n"


if __name__ == "__main__":
    parsed(main)
