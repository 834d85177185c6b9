"""Makes the fixtures `adopted_*`: tiny models with another gate, saved by this project, and their logits by PyTorch.

    .venv/bin/python -m tests.pretrained.make_adopted                        saves the models
    ENV/bin/python tests/pretrained/make_adopted.py                          computes their logits, by the module that
                                                                             docs/how-to/adopt.md shows

The two steps need two environments; that of the second is as for make_fixtures.py.
"""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "adopted"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "adopt.md"
# The fixture of each model, and its gate.
MODELS = {
    "sqs_llama": ("llama3", "sqs"),
    "bilinear_llama": ("llama2", "bilinear"),
    "bilinear_granite": ("granite", "bilinear"),
    "sqs_gemma3": ("gemma3", "sqs"),
    "bilinear_phi3": ("phi3", "bilinear"),
}
RUN_AS_THEY_ARE = ("bilinear_llama", "bilinear_granite")


def save_models() -> None:
    """Saves each with GLUs that nothing is 0 in."""
    from sqs_jax.pretrained.saving import save_pretrained
    from tests.test_adoption import random_adopted

    FOLDER.mkdir(exist_ok=True)
    for name, (fixture, gate) in MODELS.items():
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        save_pretrained(random_adopted(fixture, gate), FOLDER / name)


def compute_logits() -> None:
    """The logits of each by the module on the page, and where transformers runs the model itself, by that too."""
    import torch
    from transformers import AutoModelForCausalLM

    names: dict = {}
    exec(re.search(r"```\{code-block\} python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1], names)
    tokens = np.random.default_rng(0).integers(3, 40, (2, 24))
    for name in MODELS:
        with torch.no_grad():
            logits = names["load"](str(FOLDER / name)).double()(torch.tensor(tokens)).logits.numpy()
            if name in RUN_AS_THEY_ARE:
                own = AutoModelForCausalLM.from_pretrained(FOLDER / name).double()(torch.tensor(tokens)).logits.numpy()
                np.testing.assert_allclose(own, logits, atol=1e-9)
        np.savez(FOLDER / name / "logits.npz", tokens=tokens, logits=logits.astype(np.float32))
        print(name, float(np.abs(logits).max()))


if __name__ == "__main__":
    if importlib.util.find_spec("torch") and "sqs_jax" not in sys.modules and not importlib.util.find_spec("jax"):
        compute_logits()
    else:
        save_models()
