"""What the second stage of adoption trains: the parameters of a model by part, its loss, and the compiled step."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sqs_jax.activation import SQS
from sqs_jax.analysis.language import mlp_weights
from sqs_jax.analysis.layer_fit import Layer
from sqs_jax.pretrained import decoder
from sqs_jax.pretrained.architecture import Architecture, BlockKind
from sqs_jax.pretrained.decoder import Weights
from sqs_jax.pretrained.families import ADOPTED, FAMILIES, activation_of
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.train.adoption.distil import before_softplus, raw_numbers
from sqs_jax.train.config import AdoptConfig
from sqs_jax.train.step import TrainState, accumulated, updated

_LOGITS = 2**24  # in memory at a time
GLU = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias", "c", "lam", "offset", "glu_norm")
"""The arrays of a block that adoption replaces."""
# A GLU's parameters by the names that a decoder's weights have.
_NAMES = {
    "w": "up",
    "w_bias": "up_bias",
    "v": "gate",
    "v_bias": "gate_bias",
    "out": "down",
    "bias": "down_bias",
    "offset": "offset",
    "c_raw": "c_raw",
    "lam_raw": "lam_raw",
}

Parts = dict[str, Any]


class Frozen(NamedTuple):
    """What a step reads and does not change."""

    rest: Parts
    """All but the GLUs; where all is trained, nothing."""
    teacher: Parts
    """The original's GLUs, and all else of it where that is trained; nothing where there is no teacher."""


def own_layer(model: LanguageModel, layer: int, config: AdoptConfig) -> Layer:
    """The model's own GLU with the gate of the configuration: its weights as they are, biases and offset 0."""
    weights, block = mlp_weights(model, layer), model.block(layer)
    d, h = weights.w.shape
    numbers = raw_numbers(config)
    if config.gate == "sqs":
        numbers["offset"] = jnp.zeros(h)
    if config.gate == "own" and "c" in block:
        numbers = {f"{name}_raw": before_softplus(float(block[name])) for name in ("c", "lam")}
        numbers["offset"] = block["offset"]
    return Layer(
        w=weights.w,
        w_bias=jnp.zeros(h) if weights.w_bias is None else weights.w_bias,
        v=weights.v,
        v_bias=jnp.zeros(h) if weights.v_bias is None else weights.v_bias,
        out=weights.out,
        skip=None,
        bias=block.get("down_bias", jnp.zeros(d)),
        **numbers,
    )


def stacked_glus(layers: Sequence[Layer]) -> Parts:
    """The parameters of all GLUs, each array with an axis for the layers in front."""
    fields = [{_NAMES[name]: part for name, part in layer._asdict().items() if part is not None} for layer in layers]
    return {name: jnp.stack([each[name] for each in fields]) for name in fields[0]}


def rest_of(model: LanguageModel) -> Parts:
    """All parameters but those of the GLUs: ends, and `blocks`, stacked; norms before GLUs are folded into these."""
    blocks = [model.block(layer) for layer in range(model.layers)]
    names = [name for name in blocks[0] if name not in GLU]
    rest = {"embedding": model.embedding, "norm": model.norm}
    if model.unembedding is not model.embedding:
        rest["unembedding"] = model.unembedding
    return rest | {"blocks": {name: jnp.stack([block[name] for block in blocks]) for name in names}}


def glu_weights(parameters: Parts) -> Weights:
    """A GLU's parameters as a decoder's weights: c and λ from what is trained of them."""
    weights = {name: part for name, part in parameters.items() if not name.endswith("_raw")}
    if "c_raw" in parameters:
        weights |= {name: jax.nn.softplus(parameters[f"{name}_raw"]) for name in ("c", "lam")}
    return weights


def adopted_kinds(arch: Architecture, config: AdoptConfig) -> tuple[BlockKind, ...]:
    """The blocks with the gate of the configuration."""
    if config.gate == "own":
        return arch.blocks
    gate = SQS(config.c, config.lam, config.p) if config.gate == "sqs" else "bilinear"
    return tuple(kind._replace(gate=gate) for kind in arch.blocks)


def adopted_block(model: LanguageModel, layer: int, glu: Parts, rest: Parts | None = None) -> Weights:
    """A block with another GLU: else the model's own, or what was trained of it."""
    own = model.block(layer)
    if rest is None:
        kept = {name: part for name, part in own.items() if name not in GLU}
    else:
        kept = {name: part[layer] for name, part in rest["blocks"].items()}
    norm = {"glu_norm": jnp.ones(model.architecture.width)} if "glu_norm" in own else {}  # folded into the GLU
    return kept | glu_weights(glu) | norm


def adopted_model(model: LanguageModel, params: Parts, config: AdoptConfig) -> LanguageModel:
    """The language model of these parameters: `glu`, and `rest` where that was trained too."""
    glus, rest = params["glu"], params.get("rest")
    embedding = model.embedding if rest is None else rest["embedding"]
    tied = model.unembedding is model.embedding
    unembedding = model.unembedding if rest is None else rest.get("unembedding")
    return dataclasses.replace(
        model,
        architecture=dataclasses.replace(model.architecture, blocks=adopted_kinds(model.architecture, config)),
        embedding=embedding,
        norm=model.norm if rest is None else rest["norm"],
        unembedding=embedding if tied else unembedding,
        block=lambda layer: adopted_block(model, layer, {name: part[layer] for name, part in glus.items()}, rest),
        name=f"{model.name}-{config.gate}",
        config=None if model.config is None else adopted_config(dict(model.config), config),
    )


def adopted_config(own: dict[str, Any], config: AdoptConfig) -> dict[str, Any]:
    """The config.json of the adopted model: one that other programs run where they can, and else refuse."""
    before = own.get(ADOPTED) or {"gate": activation_of(own), "p": config.p}
    gate, p = (before["gate"], before.get("p", 1.0)) if config.gate == "own" else (config.gate, config.p)
    with_biases = "mlp_bias" in FAMILIES[own["model_type"]].fields  # then other programs run a bilinear model
    if gate != "sqs" and with_biases:
        activation = "linear" if gate == "bilinear" else gate
    else:
        activation = gate if gate in ("sqs", "bilinear") else ADOPTED
    names = [name for name in ("hidden_act", "hidden_activation") if name in own] or ["hidden_act"]
    given = {"gate": gate, "p": p}
    return own | dict.fromkeys(names, activation) | ({"mlp_bias": True} if with_biases else {}) | {ADOPTED: given}


def stream(arch: Architecture, kinds, glus: Parts, rest: Parts, tokens, *, blended, dtype, remat: bool):
    """The stream (batch, length, d) behind the last block.

    Args:
      arch, kinds: of the model, and its blocks with their gates.
      glus, rest: the parameters.
      tokens: (batch, length).
      blended: None, or the share of the new gate; the model's own has the rest.
      dtype: of what is computed; remat: whether blocks are computed again in the backward pass.
    """
    x = decoder.embed(arch, rest["embedding"], tokens).astype(dtype)

    def block(kind: tuple[BlockKind, BlockKind], x, weights):
        own, new = kind
        weights = jax.tree.map(lambda part: part.astype(dtype) if part.ndim else part, weights)
        x, _ = decoder.attend(arch, new, weights, x)
        z = decoder.glu_input(arch, x)
        y = decoder.glu(new, weights, z)
        if blended is not None:
            plain = {name: part for name, part in weights.items() if name not in ("c", "lam", "offset")}
            y = (blended * y + (1 - blended) * decoder.glu(own, plain, z)).astype(dtype)
        return decoder.add(arch, weights, "glu", x, y).astype(dtype)

    blocks = rest["blocks"] | glu_weights(glus)
    pairs = list(zip(arch.blocks, kinds, strict=True))
    run = jax.checkpoint(block, static_argnums=0) if remat else block
    if len(set(pairs)) == 1:  # one program for all
        return jax.lax.scan(lambda x, weights: (run(pairs[0], x, weights), None), x, blocks)[0]
    for layer, pair in enumerate(pairs):
        x = run(pair, x, {name: part[layer] for name, part in blocks.items()})
    return x


def loss_sums(arch: Architecture, x, rest: Parts, targets, teacher: tuple[Any, Parts] | None):
    """Sums over places of the cross-entropy, and of the divergence KL(teacher ‖ model), in nats.

    Args:
      x: the model's last stream (n, d); targets (n,), those below 0 count for nothing.
      rest: its last norm and unembedding.
      teacher: the same of the teacher, or None.

    Logits are computed in parts of at most 64 MiB, and again in the backward pass.
    """
    part = min(len(x), max(1, _LOGITS // arch.vocab))
    fill = -len(x) % part
    arrays = {"x": x, "targets": targets} | ({} if teacher is None else {"taught": teacher[0]})
    constants = {"targets": -1}

    def padded(name, array):
        pads = ((0, fill),) + ((0, 0),) * (array.ndim - 1)
        return jnp.pad(array, pads, constant_values=constants.get(name, 0)).reshape(-1, part, *array.shape[1:])

    def log_probabilities(rest, x):
        unembedding = rest.get("unembedding", rest["embedding"]).astype(x.dtype)
        return jax.nn.log_softmax(decoder.logits(arch, rest["norm"].astype(x.dtype), unembedding, x))

    @jax.checkpoint
    def add(sums, parts):
        own, counted = log_probabilities(rest, parts["x"]), parts["targets"] >= 0
        chosen = jnp.take_along_axis(own, jnp.maximum(parts["targets"], 0)[:, None], axis=1)[:, 0]
        new = [sums[0] - jnp.sum(chosen, where=counted), sums[1]]
        if teacher is not None:
            taught = log_probabilities(teacher[1], parts["taught"])
            new[1] += jnp.sum(jnp.sum(jnp.exp(taught) * (taught - own), axis=1), where=counted)
        return tuple(new), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), {name: padded(name, array) for name, array in arrays.items()})[0]


def make_step(model: LanguageModel, config: AdoptConfig, optimizer: optax.GradientTransformation) -> Callable:
    """The compiled step: (state, frozen, windows (batch_size, length)) → (state, loss).

    The loss is (1 - τ)·cross-entropy + τ·KL(original ‖ model), the mean over all places but the last of a window, in
    nats; τ is `teacher`. The step consumes the state that it is given.
    """
    arch = model.architecture
    kinds, dtype = adopted_kinds(arch, config), jnp.dtype(config.dtype)

    def loss_of(params: Parts, frozen: Frozen, windows, number):
        rest = params.get("rest", frozen.rest)
        blended = jnp.minimum(1, (number + 1) / config.blend) if config.blend else None
        x = stream(
            arch,
            kinds,
            _trained(params["glu"], config),
            rest,
            windows,
            blended=blended,
            dtype=dtype,
            remat=config.remat,
        )
        taught = None
        if config.teacher:
            whole = frozen.rest | {name: part for name, part in frozen.teacher.items() if name != "glu"}
            taught = stream(
                arch, arch.blocks, frozen.teacher["glu"], whole, windows, blended=None, dtype=dtype, remat=False
            )
            taught = jax.lax.stop_gradient(_places(taught)), whole
        entropy, divergence = loss_sums(arch, _places(x), rest, windows[:, 1:].reshape(-1), taught)
        return (1 - config.teacher) * entropy + config.teacher * divergence

    def gradient_of(params, frozen, windows, number):
        if config.accumulate == 1:
            return jax.value_and_grad(loss_of)(params, frozen, windows, number)
        parts = windows.reshape(config.accumulate, -1, windows.shape[1])
        return accumulated(lambda params, part: loss_of(params, frozen, part, number), params, (parts,))

    @jax.jit(donate_argnums=0)
    def step(state: TrainState, frozen: Frozen, windows):
        nats, gradient = gradient_of(state.params, frozen, windows, state.step)
        count = windows.shape[0] * (windows.shape[1] - 1)
        gradient = jax.tree.map(lambda array: array / count, gradient)
        return updated(state, gradient, optimizer), nats / count

    return step


def _places(x):
    """A stream as rows, without the last place of each window, which has no target."""
    return x[:, :-1].reshape(-1, x.shape[-1])


def _trained(glus: Parts, config: AdoptConfig) -> Parts:
    """The GLUs with what is not trained held."""
    if config.learnable:
        return glus
    return {name: jax.lax.stop_gradient(part) if name.endswith("_raw") else part for name, part in glus.items()}
