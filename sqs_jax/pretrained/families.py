"""The families of language models that are known, a row each: what config.json means, and how weights are named."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from sqs_jax.activation import SQS
from sqs_jax.gates import Gate, nearest
from sqs_jax.messages import InputError, quoted
from sqs_jax.pretrained.architecture import Architecture, BlockKind, Norms, Rope
from sqs_jax.pretrained.rope import make_rope

Config = dict[str, Any]
gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)
"""GELU by tanh, which Gemma uses."""
ACTIVATIONS: dict[str, str | Gate] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": gelu_tanh,
    "linear": "bilinear",
}

_ATTENTION = {name: f"self_attn.{name}_proj.weight" for name in "qkvo"}
_GLU = {name: f"mlp.{name}_proj.weight" for name in ("up", "gate", "down")}
_SQS = {"c": "mlp.sqs_c", "lam": "mlp.sqs_lam", "offset": "mlp.sqs_offset"}
ADOPTED = "sqs_jax"
"""The field of config.json that says which gate a model was given: {"gate": "sqs", "p": 1.0}.

The gate is sqs, bilinear, or an activation of the family. The GLUs have biases, no fused matrices, and of SQS a c, a λ
and an offset for each unit.
"""
_BEFORE = {"attention_norm": "input_layernorm.weight", "glu_norm": "post_attention_layernorm.weight"}
_AFTER = {
    "attention_post_norm": "post_attention_layernorm.weight",
    "glu_post_norm": "post_feedforward_layernorm.weight",
}
_BOTH = {**_AFTER, "attention_norm": "input_layernorm.weight", "glu_norm": "pre_feedforward_layernorm.weight"}
_QK_NORMS = {f"{name}_norm": f"self_attn.{name}_norm.weight" for name in "qk"}
_FUSED = {"qkv": "self_attn.qkv_proj.weight", "gate_up": "mlp.gate_up_proj.weight"}
_PLAIN = {**_ATTENTION, **_GLU, **_BEFORE}


@dataclasses.dataclass(frozen=True)
class Family:
    """What a `model_type` needs beyond LLaMA."""

    names: dict[str, str]
    """Names of a block's weights by role, below `model.layers.<i>.`."""
    norms: Norms = "before"
    unit_offset: bool = False
    """Whether norms scale by 1 + w."""
    biases: tuple[str, ...] = ()
    """Roles that always have a bias; `attention_bias` and `mlp_bias` add others."""
    activations: dict[str, str | Gate] = dataclasses.field(default_factory=lambda: ACTIVATIONS)
    """σ by its name in `hidden_activation` or `hidden_act`."""
    defaults: Config = dataclasses.field(default_factory=dict)
    """Fields that config.json may leave out, beyond `_DEFAULTS`."""
    fields: tuple[str, ...] = ()
    """Fields that only some families have."""
    is_local: Callable[[Config, int], bool] = lambda config, layer: True
    """Whether a layer sees a sliding window only, where the model has one and does not list `layer_types`."""


_SWITCHED_WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers")
_GEMMA = {"head_dim": 256, "hidden_act": "gelu_pytorch_tanh"}
_GEMMA_ATTENTION = {"query_pre_attn_scalar": 256, "sliding_window": 4096}
_GEMMA_ACTIVATIONS = ACTIVATIONS | {"gelu": gelu_tanh}  # what older files say is not what is computed
_GEMMA_FIELDS = ("sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")


def _from_window_layer(config: Config, layer: int) -> bool:
    return layer >= config["max_window_layers"]


FAMILIES: dict[str, Family] = {
    "llama": Family(_PLAIN, fields=("mlp_bias",)),
    "mistral": Family(_PLAIN, defaults={"sliding_window": 4096}, fields=("sliding_window",)),
    "qwen2": Family(
        _PLAIN,
        biases=("q", "k", "v"),
        defaults={"sliding_window": 4096, "max_window_layers": 28},
        fields=_SWITCHED_WINDOW,
        is_local=_from_window_layer,
    ),
    "qwen3": Family(
        {**_PLAIN, **_QK_NORMS},
        defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
        fields=_SWITCHED_WINDOW,
        is_local=_from_window_layer,
    ),
    "gemma": Family(_PLAIN, unit_offset=True, activations=_GEMMA_ACTIVATIONS, defaults=_GEMMA),
    "gemma2": Family(
        {**_ATTENTION, **_GLU, **_BOTH},
        norms="both",
        unit_offset=True,
        activations=_GEMMA_ACTIVATIONS,
        defaults=_GEMMA
        | _GEMMA_ATTENTION
        | {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        fields=_GEMMA_FIELDS,
        is_local=lambda config, layer: layer % 2 == 0,
    ),
    "gemma3_text": Family(
        {**_ATTENTION, **_GLU, **_BOTH, **_QK_NORMS},
        norms="both",
        unit_offset=True,
        activations=_GEMMA_ACTIVATIONS,
        defaults=_GEMMA
        | _GEMMA_ATTENTION
        | {
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
        fields=(*_GEMMA_FIELDS, "sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"),
        is_local=lambda config, layer: (layer + 1) % config["sliding_window_pattern"] != 0,
    ),
    "phi3": Family(
        {"o": _ATTENTION["o"], "down": _GLU["down"], **_FUSED, **_BEFORE},
        defaults={"rms_norm_eps": 1e-5},
        fields=("sliding_window", "partial_rotary_factor"),
    ),
    "granite": Family(
        _PLAIN,
        fields=("mlp_bias", "embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    ),
    "olmo2": Family({**_ATTENTION, **_GLU, **_AFTER, **_QK_NORMS}, norms="after", defaults={"rms_norm_eps": 1e-5}),
    "smollm3": Family(
        _PLAIN,
        defaults={"rope_theta": 2e6, "no_rope_layer_interval": 4},
        fields=("mlp_bias", "no_rope_layers", "no_rope_layer_interval", "sliding_window", "use_sliding_window"),
    ),
}

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_DEFAULTS: Config = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "max_position_embeddings": 2048,
}
# Where null stands for none, not for the default.
_NULL = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
_KNOWN = (
    *_SIZES,
    *_DEFAULTS,
    "hidden_activation",
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "tie_word_embeddings",
    "rope_scaling",
    "rope_parameters",
    "layer_types",
    "model_type",
    ADOPTED,
)
# What is of training, of files, of other programs or of text, and changes no number that a model computes.
_HARMLESS = (
    "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache", "initializer_range",
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "pretraining_tp", "cache_implementation",
    "original_max_position_embeddings", "is_decoder", "add_cross_attention", "output_attentions",
    "output_hidden_states", "return_dict", "tokenizer_class", "prefix", "problem_type", "id2label", "label2id",
    "chunk_size_feed_forward", "torchscript", "finetuning_task", "is_encoder_decoder", "name_or_path", "_name_or_path",
    "_attn_implementation_autoset", "is_llama_config", "unsloth_fixed", "unsloth_version", "transformers.js_config",
)  # fmt: skip


def make_architecture(config: Config, where: str) -> tuple[Architecture, Family]:
    """The architecture that a config.json describes, and its family.

    Args:
      config: its content; where: the file, for errors.

    Raises InputError for a family, an activation, a rope or a field that is not known, a size that is missing, and
    weights that are quantised.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(f"{where}: the model_type {quoted(name)} is not supported: {nearest(name, FAMILIES)}")
    family = FAMILIES[name]
    _check_fields(config, family, where)
    config = (
        _DEFAULTS | family.defaults | {key: value for key, value in config.items() if value is not None or key in _NULL}
    )
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_width = config.get("head_dim", width // heads)
    scale = config.get("query_pre_attn_scalar", head_width) ** -0.5
    architecture = Architecture(
        family=name,
        vocab=config["vocab_size"],
        context=config["max_position_embeddings"],
        width=width,
        hidden=config["intermediate_size"],
        heads=heads,
        key_heads=config.get("num_key_value_heads", heads),
        head_width=head_width,
        epsilon=config["rms_norm_eps"],
        blocks=_blocks(config, family, head_width, _gate(config, family, where), where),
        attention_scale=config.get("attention_multiplier", 1.0 if name == "granite" else scale),
        norms=family.norms,
        attention_cap=config.get("attn_logit_softcapping") or 0.0,
        logit_cap=config.get("final_logit_softcapping") or 0.0,
        embedding_scale=width**0.5 if name.startswith("gemma") else config.get("embedding_multiplier", 1.0),
        residual_scale=config.get("residual_multiplier", 1.0),
        logit_scale=1 / config.get("logits_scaling", 1.0),
    )
    if heads % architecture.key_heads:
        raise InputError(f"{where}: num_attention_heads is {heads}: a multiple of num_key_value_heads is needed")
    return architecture, family


def _gate(config: Config, family: Family, where: str) -> str | Gate:
    """σ of every GLU: the model's own, or the one that it was given."""
    if ADOPTED in config:
        return _adopted_gate(config[ADOPTED], family, where)
    activation = activation_of(config)
    if activation not in family.activations:
        raise InputError(f"{where}: the activation {quoted(activation)} is not supported: {', '.join(ACTIVATIONS)} are")
    return family.activations[activation]


def activation_of(config: Config) -> str:
    """The name of σ in a config.json."""
    return config.get("hidden_activation") or config.get("hidden_act") or _DEFAULTS["hidden_act"]


def _adopted_gate(given: Any, family: Family, where: str) -> str | Gate:
    fields = {"gate": "", "p": 1.0} | (given if isinstance(given, dict) else {})
    gates = {"sqs": "sqs", "bilinear": "bilinear"} | family.activations
    valid = fields.keys() == {"gate", "p"} and str(fields["gate"]) in gates
    if not (valid and isinstance(fields["p"], int | float) and fields["p"] >= 1):
        raise InputError(f'{where}: {ADOPTED} is {quoted(given)}: {{"gate": "sqs", "p": 1.0}} is needed')
    return SQS(p=float(fields["p"])) if fields["gate"] == "sqs" else gates[fields["gate"]]


def _check_fields(config: Config, family: Family, where: str) -> None:
    for name in _SIZES:
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise InputError(f"{where}: {name} is {quoted(config.get(name))}: a whole number ≥ 1 is needed")
    if config.get("quantization_config"):
        method = quoted(config["quantization_config"].get("quant_method", "unknown"))
        raise InputError(f"{where}: its weights are quantised ({method}): plain ones, or a GGUF file, are needed")
    if config.get("use_bidirectional_attention"):
        raise InputError(f"{where}: use_bidirectional_attention is set: only causal attention is supported")
    known = {*_KNOWN, *_HARMLESS, *family.fields, "quantization_config", "use_bidirectional_attention"}
    for name, value in config.items():
        harmless = name in known or name.endswith(("token_id", "token_index", "_dropout")) or value in (None, False)
        if not harmless:
            model = config["model_type"]
            raise InputError(
                f"{where}: the field {quoted(name)} of a {model} model is not known: it may change numbers"
            )


def _blocks(config: Config, family: Family, head_width: int, gate: str | Gate, where: str) -> tuple[BlockKind, ...]:
    count, context = config["num_hidden_layers"], config["max_position_embeddings"]
    types = config.get("layer_types")
    if types is not None and (len(types) != count or set(types) - {"full_attention", "sliding_attention"}):
        raise InputError(f"{where}: layer_types has to say full_attention or sliding_attention for {count} layers")
    window = config.get("sliding_window") or 0
    if "use_sliding_window" in family.fields and not config.get("use_sliding_window"):
        window = 0
    if types and "sliding_attention" in types and not window:
        raise InputError(f"{where}: layer_types has sliding_attention, and there is no sliding_window")
    ropes = _ropes(config, head_width, context, where)
    blocks = []
    for layer in range(count):
        local = types[layer] == "sliding_attention" if types else bool(window) and family.is_local(config, layer)
        rope = ropes["sliding_attention" if local else "full_attention"]
        blocks.append(BlockKind(window if local else 0, rope if _has_rope(config, layer) else None, gate))
    return tuple(blocks)


def _has_rope(config: Config, layer: int) -> bool:
    """Whether a layer has positions: all have, but for some of SmolLM3."""
    if "no_rope_layer_interval" not in config:
        return True
    listed = config.get("no_rope_layers")
    return bool(listed[layer]) if listed else (layer + 1) % config["no_rope_layer_interval"] != 0


def _ropes(config: Config, head_width: int, context: int, where: str) -> dict[str, Rope]:
    """The rotary frequencies of layers that see everything, and of those that see a window."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_type = given if set(given) & {"full_attention", "sliding_attention"} else {"full_attention": given}
    local = {"rope_theta": config["rope_local_base_freq"]} if "rope_local_base_freq" in config else None
    ropes = {}
    for kind in ("full_attention", "sliding_attention"):
        parameters = by_type.get(kind) or (local if kind == "sliding_attention" else None) or by_type["full_attention"]
        part = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        base = parameters.get("rope_theta", config["rope_theta"])
        ropes[kind] = make_rope(float(base), int(head_width * part), parameters, context, where)
    return ropes


def block_names(config: Config, family: Family) -> dict[str, str]:
    """Names of a block's arrays by role, below `model.layers.<i>.`: matrices, norms, biases, and what SQS learns."""
    attention = "qkvo" if config.get("attention_bias") else ""
    names, biases = family.names, {*family.biases, *attention}
    adopted = config.get(ADOPTED)
    if adopted:
        names = {role: name for role, name in names.items() if role != "gate_up"} | _GLU
    if adopted or config.get("mlp_bias"):
        biases |= {"up", "gate", "down"}
    names = names | {f"{role}_bias": names[role].replace("weight", "bias") for role in sorted(biases)}
    return names | _SQS if adopted and adopted["gate"] == "sqs" else names
