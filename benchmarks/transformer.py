"""Speed of the Transformer: training and generation, ours beside a plain PyTorch loop of the same model, in one run.

    python -m benchmarks.transformer [--rounds 3] [--steps 8]

Four blocks of width 256, four heads, GLUs of 704 with SQS, 4,096 tokens, tied embeddings; training on batches of 16
windows of 256 tokens in float32 with AdamW, generation of 200 tokens one at a time with a cache of keys and values.
Each runs in a process of its own, in turn, for several rounds; what compiles is not counted. "step" calls the compiled
step and nothing else, "loop" is `python -m train` as users run it, "products" times the matrix products of a step
alone, the floor of any of them. Without PyTorch its columns are left out. Writes
benchmarks/results/transformer-<platform>.json.
"""

import dataclasses
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, in_turns, parsed

BATCH, CONTEXT, VOCAB, WIDTH, HIDDEN, LAYERS, HEADS = 16, 256, 4096, 256, 704, 4, 4
NEW = 200


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    rounds: int = 3
    """How often each is started."""
    steps: int = 8
    """Steps that are counted in each round."""
    only: str | None = None
    """Measure this one alone, in this process, and print its seconds."""


def main() -> None:
    """Runs the benchmark, prints its table and writes its result."""
    options = parsed(Options)
    flags = ["--steps", str(options.steps)]
    seconds = in_turns("benchmarks.transformer", MEASURES, options, flags)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        count = NEW if "generation" in name else BATCH * CONTEXT
        spread = f"{min(seconds[name]):.3f}-{max(seconds[name]):.3f}"
        print(f"{name:<17} {median:7.3f} s ({spread})  {count / median:9,.0f} tokens/s")
    _write(options, seconds, medians)


def _write(options: Options, seconds, medians):
    from sqs_jax.train.run_folder import provenance

    result = {
        "command": f"python -m benchmarks.transformer --rounds {options.rounds} --steps {options.steps}",
        "tokens_a_step": BATCH * CONTEXT,
        "tokens_generated": NEW,
        "median_seconds": medians,
        "seconds": seconds,
        "loop_over_step": medians["loop"] / medians["step"],
        **provenance(),
    }
    if "torch" in medians:
        result["tokens_per_second_over_torch"] = medians["torch"] / medians["loop"]
        result["generation_over_torch"] = medians["torch, generation"] / medians["generation"]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"transformer-{result['device']['platform']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


def _config(**changes):
    from sqs_jax.train import PRESETS

    config = dataclasses.replace(PRESETS["text"], vocab=VOCAB, batch_size=BATCH, context=CONTEXT, width=WIDTH)
    return dataclasses.replace(config, layers=LAYERS, heads=HEADS, samples=0, validation=1, test=1, **changes)


def measure_loop(options: Options) -> list[float]:
    """`train` on a text of made-up words: seconds a step, its batches and checks included, evaluation not."""
    from sqs_jax.train import train

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size)) for size in rng.integers(2, 9, 20_000)]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "words.txt"
        text.write_text("\n\n".join(" ".join(rng.choice(words, 200)) for _ in range(600)))
        os.environ["SQS_CACHE_DIR"] = f"{folder}/cache"
        config = _config(text=str(text), steps=3 * options.steps, evaluate_every=options.steps, warmup=1)
        tokens = BATCH * CONTEXT
        train(config, f"{folder}/run", report=lambda row, *_: seconds.append(tokens / row["tokens_per_second"]))
    return seconds[1:]  # the first round compiles


def measure_step(options: Options) -> list[float]:
    """The compiled step on one batch, again and again."""
    import jax

    from sqs_jax.train.layout import make_mesh
    from sqs_jax.train.optimizer import make_optimizer
    from sqs_jax.train.step import first_state
    from sqs_jax.train.text.language_model import make_model, make_step

    config = _config(text="-")
    model, optimizer = make_model(config, VOCAB), make_optimizer(config, 1000)
    step = make_step(config, model, optimizer, make_mesh())
    batch = jax.device_put(np.random.default_rng(0).integers(0, VOCAB, (2, BATCH, CONTEXT)).astype(np.int32))
    state, loss = step(first_state(model, optimizer), *batch)
    seconds = []
    for _ in range(2):
        loss.block_until_ready()
        start = time.perf_counter()
        for _ in range(options.steps):
            state, loss = step(state, *batch)
        loss.block_until_ready()
        seconds.append((time.perf_counter() - start) / options.steps)
    return seconds


def measure_products(options: Options) -> list[float]:
    """The matrix products of a step, forward and backward, by XLA, and nothing else."""
    import jax
    import jax.numpy as jnp

    rows = BATCH * CONTEXT
    shapes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)] * LAYERS
    shapes += [(WIDTH, VOCAB)]
    inputs = {n: jnp.ones((rows, n)) for n in (WIDTH, HIDDEN)}
    weights = [jnp.ones(shape) for shape in shapes]
    outputs = {m: jnp.ones((rows, m)) for _, m in shapes}
    heads = jnp.ones((BATCH * HEADS, CONTEXT, WIDTH // HEADS))
    scores = jnp.ones((BATCH * HEADS, CONTEXT, CONTEXT))
    three = jax.jit(lambda x, w, y: (x @ w, y @ w.T, x.T @ y))
    attention = jax.jit(lambda q, k: jnp.einsum("bid,bjd->bij", q, k))
    mixing = jax.jit(lambda s, v: jnp.einsum("bij,bjd->bid", s, v))

    def step():
        for weight in weights:
            jax.block_until_ready(three(inputs[len(weight)], weight, outputs[weight.shape[1]]))
        for _ in range(LAYERS):  # of attention: scores, read, and two gradients of each
            jax.block_until_ready([attention(heads, heads) for _ in range(2)])
            jax.block_until_ready([mixing(scores, heads) for _ in range(4)])

    step()
    return [_timed(step) for _ in range(options.steps)]


def measure_generation(options: Options) -> list[float]:
    """`generate`, one prompt of eight tokens."""
    from flax import nnx

    from sqs_jax.generation import generate
    from sqs_jax.transformer import Transformer, TransformerConfig

    model = Transformer(TransformerConfig(), rngs=nnx.Rngs(0))
    generate(model, [list(range(8))], tokens=NEW)
    return [_timed(lambda: generate(model, [list(range(8))], tokens=NEW)) for _ in range(options.steps)]


def _timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _torch_block(torch):
    """A block of the model in PyTorch, a class."""
    nn, functional = torch.nn, torch.nn.functional
    half = WIDTH // HEADS // 2
    angle = torch.arange(CONTEXT)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    cos, sin = angle.cos(), angle.sin()

    def rotate(x, start):
        first, second = x.chunk(2, -1)
        c, s = cos[start : start + x.shape[2]], sin[start : start + x.shape[2]]
        return torch.cat([first * c - second * s, second * c + first * s], -1)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2))
            self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.w, self.v = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
            self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

        def forward(self, x, cache=None, start=0):
            parts = self.qkv(self.norms[0](x)).split(WIDTH, -1)
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
            q, k = rotate(q, start), rotate(k, start)
            if cache is not None:
                cache[0][:, :, start : start + x.shape[1]], cache[1][:, :, start : start + x.shape[1]] = k, v
                k, v = (part[:, :, : start + x.shape[1]] for part in cache)
            read = functional.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)
            x = x + self.project(read.transpose(1, 2).flatten(2))
            z = self.norms[1](x)
            u = self.v(z)
            return x + self.down(self.w(z) * ((u - 0.01 * torch.sign(u)) / (1 + 0.5 * torch.abs(u))))

    return Block


def _torch_model():
    """The same model as one writes it in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports] - nothing else needs it, so no extra brings it
    from torch import nn  # pyright: ignore[reportMissingImports]

    Block = _torch_block(torch)  # noqa: N806 - a class

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCAB, WIDTH)
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.RMSNorm(WIDTH, eps=1e-6)

        def forward(self, tokens, caches=None, start=0):
            x = self.embedding(tokens)
            for i, block in enumerate(self.blocks):
                x = block(x, caches[i] if caches else None, start)
            return self.norm(x) @ self.embedding.weight.T

    return torch, Model()


def measure_torch(options: Options) -> list[float]:
    """The loop that one writes in PyTorch: eager, fused attention, clipping, AdamW with a cosine."""
    torch, model = _torch_model()
    tokens = torch.randint(0, VOCAB, (BATCH, CONTEXT + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)

    def step():
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        assert math.isfinite(loss.item())

    step()
    step()
    return [_timed(step) for _ in range(options.steps)]


def measure_torch_generation(options: Options) -> list[float]:
    """Sampling from it with preallocated caches."""
    torch, model = _torch_model()
    shape = (1, HEADS, CONTEXT, WIDTH // HEADS)

    @torch.inference_mode()
    def run():
        caches = [[torch.zeros(shape), torch.zeros(shape)] for _ in range(LAYERS)]
        logits, position = model(torch.arange(8)[None], caches)[:, -1], 8
        for _ in range(NEW):
            token = torch.multinomial(logits.softmax(-1), 1)
            logits, position = model(token, caches, position)[:, -1], position + 1

    run()
    return [_timed(run) for _ in range(options.steps)]


MEASURES = {
    "products": measure_products,
    "step": measure_step,
    "loop": measure_loop,
    "torch": measure_torch,
    "generation": measure_generation,
    "torch, generation": measure_torch_generation,
}

if __name__ == "__main__":
    main()
