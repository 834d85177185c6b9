"""A whole adoption: the model with its new gate, a control beside it, and what each step cost."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from sqs_jax.files import write
from sqs_jax.pretrained.loading import load_pretrained
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.pretrained.saving import save_pretrained
from sqs_jax.pretrained.tensor_files import read_json
from sqs_jax.train.adoption.distil import layer_file, load_layer
from sqs_jax.train.adoption.network import adopted_model, stacked_glus
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.config import AdoptConfig
from sqs_jax.train.config_check import checked
from sqs_jax.train.loop import Report, train_checked
from sqs_jax.train.run_folder import RunFolder, alone


def adopt(
    config: AdoptConfig, run_dir: str | os.PathLike[str], *, resume: bool = False, report: Report | None = None
) -> dict[str, Any]:
    """Gives a pretrained language model another gate, and writes it into `run_dir`.

    First each GLU is fitted to what the model's own reads and gives (`distilled/`), then all are trained end to end
    as `train` trains, to the same files. `model/` is the adopted model as a Hugging Face folder, which
    `load_pretrained` reads; with `control`, `control/` is a run that keeps the model's own gate and has the same steps.

    Args:
      config: of the adoption; run_dir: the folder; there must be nothing there, or with `resume` a run of the same
        configuration.
      resume: goes on where the run stopped, to the same numbers as one that was never stopped.
      report: as in `train`.

    Returns:
      The content of `summary.json`; its `loss` has, in nats a token of held-out text, the loss of the "original", with
      the bare gates "swapped", "distilled", "tuned", and that of the "control", as far as there are such.

    Raises InputError for a model, a text or a field that does not fit, and else as `train`.

    Source: this project's own; Pearce et al. 2024 (arXiv 2410.08417) tuned TinyLlama to a bilinear gate.
    """
    config, run = checked(config), RunFolder(Path(run_dir))
    summary = train_checked(config, run.path, resume=resume, report=report)
    loss = dict(read_json(run.before)["loss"])
    if config.stage != "distil":
        loss["tuned"] = summary["test"]["loss"]
    if not run.model.exists():
        with alone(run.path):
            save_pretrained(_adopted(config, run), run.model)
    if config.control:
        own = control_config(config)
        control = train_checked(own, run.control, resume=RunFolder(run.control).config.exists(), report=report)
        loss["control"] = control["test"]["loss"]
    if summary.get("loss") != loss:
        summary |= {"loss": loss}
        write(run.summary, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def control_config(config: AdoptConfig) -> AdoptConfig:
    """The configuration of the control: the same biases and steps, and the model's own gate."""
    return dataclasses.replace(config, gate="own", stage="tune", blend=0, control=False)


def _adopted(config: AdoptConfig, run: RunFolder) -> LanguageModel:
    model = load_pretrained(config.model)
    if config.stage != "distil":
        return adopted_model(model, restore_params(run.checkpoints, spread=False), config)
    layers = [load_layer(layer_file(run.distilled, layer)).layer for layer in range(model.layers)]
    return adopted_model(model, {"glu": stacked_glus(layers)}, config)
