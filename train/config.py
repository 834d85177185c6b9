"""The configuration of a run: one frozen dataclass for images, one for text, every field with its range and help."""

import dataclasses
import functools
from typing import Any, Literal

from sqs_jax.activation import SQS, sqs
from sqs_jax.gates import Gate
from sqs_jax.options import COUNT, FINITE, ONE_OR_MORE, POSITIVE, Range, option

_LAYERS = Range(1, 256)
_WIDTH = Range(1, 2**18)
_BATCH = Range(1, 2**24)


def known(value: Any) -> bool:
    """Whether a field is a number already; inside a compiled program it may be traced."""
    return isinstance(value, int | float)


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """What every run has: the gate, the precision, the optimizer and the seed."""

    gate: str = option("sqs", "Gate σ of the GLU (x W) ⊙ σ(x V): sqs, bilinear, relu, gelu or silu.")
    c: float = option(0.01, "SQS: shift c ≥ 0.", FINITE)
    lam: float = option(0.5, "SQS: shrink rate λ ≥ 0.", FINITE)
    p: float = option(1.0, "SQS: exponent p ≥ 1.", Range(1, 100))
    learnable: bool = option(False, "SQS: train c and λ too, one pair a layer.")
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "Dtype of the computation; parameters are always float32."
    )
    lr: float = option(3e-3, "Peak learning rate of AdamW; a cosine takes it to 0.", POSITIVE)
    weight_decay: float = option(0.1, "Decoupled weight decay, on matrices only.", FINITE)
    restarts: tuple[int, ...] = option(
        (),
        "Where the cosine begins again from its peak: after so many epochs, or steps, whichever the run is given in.",
    )
    seed: int = option(0, "Seed of the initial weights, the order of the examples and the noise.", COUNT)

    @property
    def sigma(self) -> str | Gate:
        """The gate, as modules take it; c and λ may be traced."""
        if self.gate != "sqs":
            return self.gate
        if known(self.c) and known(self.lam):
            return SQS(self.c, self.lam, self.p)
        return functools.partial(sqs, c=self.c, lam=self.lam, p=self.p)


@dataclasses.dataclass(frozen=True)
class ImageConfig(GateConfig):
    """A run on images: a classifier of GLU layers. The defaults are those of the data set `digits`."""

    data: str = option(
        "digits",
        "Data set: digits, mnist, fashion_mnist, cifar10, cifar100, cifar10_jpeg, tfds:<name>, or your own, images:<a "
        "folder or an .npz file>; or a text.",
        positional=True,
    )
    size: int = option(
        0,
        "Images of your own in a folder: height and width that they get; 0 for their own, where all have one of 64 at "
        "most, else 32.",
        Range(0, 4096),
    )
    init_from: str = option("", "Folder of a run whose last weights training begins with.")
    width: int = option(64, "Width of the embedding; 0 for none.", Range(0, _WIDTH.most))
    hidden: int = option(64, "Width of each GLU layer.", _WIDTH)
    layers: int = option(1, "Number of GLU layers.", _LAYERS)
    residual: bool = option(False, "Add each GLU layer's input to its output (needs width = hidden).")
    bias: bool = option(False, "Biases in the GLU layers and the head.")
    epochs: int = option(100, "Passes over the training images.", ONE_OR_MORE)
    batch_size: int = option(
        128, "Images a step, over all devices; the last, smaller batch of an epoch is left out.", _BATCH
    )
    warmup: int = option(0, "Steps of linear warm-up from 0.", COUNT)
    clip: float = option(0.0, "Largest global norm of the gradient; 0 for no clipping.", FINITE)
    noise_std: float = option(
        0.5, "Standard deviation of the Gaussian noise on training images, whose pixels lie in [0, 1].", FINITE
    )
    noise_prob: float = option(1.0, "Chance with which each image gets that noise.", Range(0, 1))
    validation: int = option(
        200, "Images cut from the training set for validation, the same for every seed; 0 to train on all.", COUNT
    )
    save_every: int = option(
        10, "Save every so many epochs; the last epoch and the best on validation are always saved.", ONE_OR_MORE
    )


@dataclasses.dataclass(frozen=True)
class TextConfig(GateConfig):
    """A run on text: a Transformer with a GLU in each block. The defaults are those of the text `stories`."""

    data: str = option(
        "stories", "Text: stories, tinystories, or with --text a file of your own; or images.", positional=True
    )
    text: str = option(
        "",
        "UTF-8 to train on: a text, .jsonl or .parquet with a `text` in each record, a folder of these, or a pattern "
        "in quotes; it is not copied into the run.",
    )
    separator: Literal["auto", "endoftext", "blank_line", "newline"] = option(
        "auto",
        "What stands between two stories of --text: <|endoftext|>, a blank line, or a single newline; auto takes the "
        "first of these that the file has.",
    )
    init_from: str = option("", "Folder of a run whose last weights training begins with; its tokenizer is taken, too.")
    tokenizer: str = option(
        "", "A tokenizer.json to take, byte-level and with a token <|endoftext|>; by default one is trained."
    )
    # Each byte and the end of a text have a token.
    vocab: int = option(
        1024, "Tokens of the byte-level BPE, at most; it is trained on the training stories.", Range(257, 2**24)
    )
    context: int = option(256, "Tokens that the model sees at once.", Range(2, 2**18))
    width: int = option(128, "Width of the residual stream.", _WIDTH)
    hidden: int = option(
        0, "Width of each block's GLU; 0 for ⅔·4·width, rounded to a multiple of 64.", Range(0, _WIDTH.most)
    )
    layers: int = option(2, "Number of blocks.", _LAYERS)
    heads: int = option(4, "Attention heads of each block.", Range(1, 4096))
    tied: bool = option(True, "One matrix for embedding and unembedding.")
    remat: Literal["none", "dots", "block"] = option(
        "none",
        "What the backward pass computes again to save memory: none, dots (all but the products with weights), or "
        "block (the whole block).",
    )
    scan_layers: bool = option(True, "Compile one block for all layers.")
    epochs: int = option(8, "Passes over the training text.", COUNT)
    steps: int = option(0, "Steps of training; 0 for as many as --epochs has.", COUNT)
    batch_size: int = option(8, "Windows of --context tokens a step, over all devices.", _BATCH)
    accumulate: int = option(1, "Parts that each batch is split into, one after the other, to save memory.", _BATCH)
    warmup: int = option(20, "Steps of linear warm-up from 0.", COUNT)
    clip: float = option(1.0, "Largest global norm of the gradient; 0 for no clipping.", FINITE)
    noise_std: float = option(
        0.0, "Standard deviation of the noise on embedded training tokens, over their root mean square.", FINITE
    )
    evaluate_every: int = option(50, "Steps between two evaluations, each with samples.", ONE_OR_MORE)
    validation: int = option(
        30, "Stories cut from the end of the training text for validation; 0 to train on all.", COUNT
    )
    test: int = option(40, "Last stories held out for the test; tinystories has a file of its own for it.", ONE_OR_MORE)
    save_every: int = option(
        1, "Save every so many evaluations; the last one and the best on validation are always saved.", ONE_OR_MORE
    )
    samples: int = option(2, "Stories sampled at each evaluation.", Range(0, 1000))


@dataclasses.dataclass(frozen=True)
class AdoptConfig(GateConfig):
    """A pretrained language model that is given another gate: fitted layer by layer, then trained end to end."""

    model: str = option(
        "",
        "The model: a Hugging Face folder, a .gguf file, or hf:owner/name.",
        positional=True,
    )
    gate: str = option("sqs", "Gate σ of every GLU: sqs, bilinear, or own, the model's own, as a control.")
    text: str = option("", "UTF-8 text that it is fitted, trained and measured on.")
    stage: Literal["distil", "tune", "both"] = option(
        "both",
        "distil: each GLU is fitted to the inputs and outputs of the model's own; tune: all are trained end to end, "
        "from the model's own weights; both: one after the other.",
    )
    learnable: bool = option(True, "SQS: train c and λ too, one pair a layer.")
    tokens: int = option(0, "Distil: tokens that GLUs are fitted on; 0 for a number that suits the width.", COUNT)
    distil_steps: int = option(0, "Distil: steps for each layer; 0 for a number that suits the width.", COUNT)
    inputs: Literal["original", "adopted"] = option(
        "original",
        "Distil: what GLUs are fitted on, the stream of the model as it was, or that of the layers fitted before.",
    )
    train: Literal["glu", "all"] = option("glu", "Tune: the GLUs alone, or all parameters.")
    teacher: float = option(
        0.5,
        "Tune: weight of the Kullback-Leibler divergence to the original's logits; the cross-entropy has the rest.",
        Range(0, 1),
    )
    blend: int = option(
        0, "Tune alone: steps over which outputs go from those of the model's own gate to those of the new.", COUNT
    )
    steps: int = option(1000, "Tune: steps of training.", ONE_OR_MORE)
    batch_size: int = option(8, "Windows of --context tokens a step, over all devices.", _BATCH)
    accumulate: int = option(1, "Parts that each batch is split into, one after the other, to save memory.", _BATCH)
    context: int = option(512, "Tokens of a window; the model's context where that is shorter.", Range(2, 2**18))
    remat: bool = option(True, "Compute each block again in the backward pass, to save memory.")
    lr: float = option(1e-3, "Tune: peak learning rate of GLUs; a cosine takes it to 0.", POSITIVE)
    rest_lr: float = option(1e-4, "Tune: that of all other parameters, with --train all.", POSITIVE)
    weight_decay: float = option(0.0, "Tune: decoupled weight decay, on matrices only.", FINITE)
    warmup: int = option(20, "Tune: steps of linear warm-up from 0.", COUNT)
    clip: float = option(1.0, "Tune: largest global norm of the gradient; 0 for no clipping.", FINITE)
    validation: int = option(4096, "Tokens held out for the curve of training; 0 for no curve.", COUNT)
    test: int = option(8192, "Tokens held out for the losses in summary.json.", ONE_OR_MORE)
    control: bool = option(
        False, "Tune a control, too: the same layers with the model's own gate, the same steps; in control/ of the run."
    )
    evaluate_every: int = option(100, "Tune: steps between two evaluations.", ONE_OR_MORE)
    save_every: int = option(
        1, "Save every so many evaluations; the last one and the best on validation are always saved.", ONE_OR_MORE
    )


TrainConfig = ImageConfig | TextConfig | AdoptConfig


def length_of(config: TrainConfig) -> int:
    """The length of a run as it is given: steps where there are any, else epochs."""
    return getattr(config, "steps", 0) or getattr(config, "epochs", 0)
