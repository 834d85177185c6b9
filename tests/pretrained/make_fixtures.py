"""Makes the fixtures of this folder: tiny random models of every family, and their logits by `transformers`.

    python -m venv ENV && ENV/bin/pip install -r tests/pretrained/requirements.txt
    ENV/bin/python tests/pretrained/make_fixtures.py

Matrices are 15 times as large as at the start of training, and norms and biases are far from 1 and 0, so that a fault
in any detail moves the logits. Weights are kept in float16, logits are computed of the kept ones in float64.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "fixtures"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def rope(kind, theta=10_000.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


STRETCHED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
# The configuration class of each fixture, and its fields beyond SIZES.
MODELS = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 12, **rope("llama3", 500.0, **STRETCHED)},
    ),
    "llama_linear": ("Llama", {"tie_word_embeddings": True, **rope("linear", factor=4.0)}),
    "llama_yarn": ("Llama", rope("yarn", 200.0, factor=4.0, original_max_position_embeddings=16)),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("Gemma", {"head_dim": 12}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 12,
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 8.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 12,
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "layer_types": [LOCAL, LOCAL, GLOBAL],
            "rope_parameters": {
                GLOBAL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
                LOCAL: {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "phi3": (
        "Phi3",
        {"sliding_window": 7, "original_max_position_embeddings": 64, **rope("default", partial_rotary_factor=0.5)},
    ),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.5,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
}


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for number, (name, (kind, fields)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        config = getattr(transformers, f"{kind}Config")(**SIZES | fields)
        config._attn_implementation = "eager"
        model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                value = parameter * 15 if parameter.ndim == 2 else parameter + 0.3 * noise
                parameter.copy_(value.half())
        tokens = torch.randint(0, SIZES["vocab_size"], (2, 24))
        with torch.no_grad():
            logits = model.double()(tokens).logits
        folder = FOLDER / name
        folder.mkdir(parents=True)
        saved = json.loads(config.to_json_string(use_diff=False))
        (folder / "config.json").write_text(json.dumps(saved, indent=1, sort_keys=True) + "\n")
        tied = config.tie_word_embeddings
        arrays = {
            key: value.half().numpy()
            for key, value in model.state_dict().items()
            if not (tied and key == "lm_head.weight")
        }
        save_file(arrays, folder / "model.safetensors")
        np.savez_compressed(folder / "logits.npz", tokens=tokens.numpy(), logits=logits.float().numpy())
        print(name, float(logits.std()), sum(value.numel() for value in model.parameters()))


if __name__ == "__main__":
    main()
