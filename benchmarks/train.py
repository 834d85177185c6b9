"""Speed of a training epoch: ours, a bare hand-written scan and a plain PyTorch loop, side by side in one run.

    python -m benchmarks.train [--rounds 3] [--epochs 4] [--gate sqs]

The same model (embedding 512, one GLU layer of 512, head), data (MNIST), batch (2048), noise, float32 and AdamW
with a cosine. Each runs in a process of its own, in turn, for several rounds; a round's first epoch, which compiles,
is not counted. "products" times nothing but the large matrix products of a step: the floor of any of them.
Without PyTorch its column is left out. Writes benchmarks/results/train-<platform>.json.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.common import RESULTS, in_turns, parsed

BATCH, WIDTH, STEPS = 2048, 512, 29


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    rounds: int = 3
    """How often each is started."""
    epochs: int = 4
    """Epochs that are counted in each round."""
    gate: str = "sqs"
    """Gate: sqs or bilinear."""
    only: str | None = None
    """Measure this one alone, in this process, and print its seconds."""


def main() -> None:
    """Runs the benchmark, prints its table and writes its result."""
    options = parsed(Options)
    flags = ["--epochs", str(options.epochs), "--gate", options.gate]
    seconds = in_turns("benchmarks.train", MEASURES, options, flags)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        spread = f"{1e3 * min(seconds[name]) / STEPS:.1f}-{1e3 * max(seconds[name]) / STEPS:.1f}"
        print(f"{name:<10} {1e3 * median / STEPS:6.1f} ms a step ({spread}), {median / medians['ours']:.2f} x ours")
    _write(options, seconds, medians)


def _write(options, seconds, medians):
    from sqs_jax.train.run_folder import provenance

    RESULTS.mkdir(exist_ok=True)
    flags = f"--rounds {options.rounds} --epochs {options.epochs} --gate {options.gate}"
    result = {
        "command": f"python -m benchmarks.train {flags}",
        "steps_per_epoch": STEPS,
        "median_seconds_per_epoch": medians,
        "relative_to_ours": {name: median / medians["ours"] for name, median in medians.items()},
        "seconds_per_epoch": seconds,
        **provenance(),
    }
    path = RESULTS / f"train-{result['device']['platform']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


def _timed(run_epoch, epochs: int) -> list[float]:
    seconds = []
    for _ in range(epochs + 1):
        start = time.perf_counter()
        run_epoch()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def measure_ours(options: Options) -> list[float]:
    """Our loop as users run it, from the report of each epoch: with its checks, its checkpoint and its metrics."""
    from sqs_jax.train import PRESETS, train

    seconds = []
    config = dataclasses.replace(PRESETS["mnist"], gate=options.gate, epochs=options.epochs + 2, validation=0)
    config = dataclasses.replace(config, save_every=config.epochs)
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", report=lambda row, config, epoch_seconds: seconds.append(epoch_seconds))
    return seconds[1:-1]  # the last one holds the checkpoint


def measure_bare(options: Options) -> list[float]:
    """A lax.scan over batches, written by hand with jax and optax alone: no mesh, no modules, no custom rules."""
    import jax
    import jax.numpy as jnp
    import optax

    images, labels = (jnp.asarray(array) for array in _mnist())
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(784, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 10)]
    init = jax.nn.initializers.lecun_normal()
    params = [init(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, 20 * STEPS), weight_decay=0.1)

    def gate(u):
        return (u - 0.01 * jnp.sign(u)) / (1 + 0.5 * jnp.abs(u)) if options.gate == "sqs" else u

    def loss_of(params, x, y):
        e, w, v, p = params
        z = x @ e
        logits = ((z @ w) * gate(z @ v)) @ p
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, batch):
        params, opt_state, count = carry
        x = images[batch].astype(jnp.float32) / 255
        x += jax.random.normal(jax.random.fold_in(keys[4], count), x.shape)
        loss, gradient = jax.value_and_grad(loss_of)(params, x, labels[batch])
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, count + 1), loss

    @jax.jit(donate_argnums=0)
    def epoch(carry):
        order = jax.random.permutation(jax.random.fold_in(keys[4], carry[2]), len(labels))
        return jax.lax.scan(step, carry, order[: STEPS * BATCH].reshape(STEPS, BATCH))

    carry = (params, optimizer.init(params), jnp.int32(0))

    def run_epoch():
        nonlocal carry
        carry, losses = epoch(carry)
        losses.block_until_ready()

    return _timed(run_epoch, options.epochs)


def measure_products(options: Options) -> list[float]:
    """The eight large matrix products of a step's forward and backward pass, by XLA, and nothing else."""
    import jax
    import jax.numpy as jnp

    x, z = jnp.ones((BATCH, 784)), jnp.ones((BATCH, WIDTH))
    e, w, v = jnp.ones((784, WIDTH)), jnp.ones((WIDTH, WIDTH)), jnp.ones((WIDTH, WIDTH))

    @jax.jit
    def products(x, z, e, w, v):
        forward = x @ e, z @ w, z @ v
        return forward, z @ w.T, z @ v.T, z.T @ forward[1], z.T @ forward[2], x.T @ forward[0]

    def run_epoch():
        for _ in range(STEPS):
            jax.block_until_ready(products(x, z, e, w, v))

    return _timed(run_epoch, options.epochs)


def measure_torch(options: Options) -> list[float]:
    """The loop that one writes in PyTorch: eager, the images as float32 in memory."""
    import torch  # pyright: ignore[reportMissingImports] - nothing else needs it, so no extra brings it

    images, labels = _mnist()
    images = torch.tensor(images).float() / 255
    labels = torch.tensor(labels).long()
    sizes = ((784, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 10))
    e, w, v, p = layers = [torch.nn.Linear(n, m, bias=False) for n, m in sizes]
    params = [parameter for layer in layers for parameter in layer.parameters()]
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20 * STEPS)

    def gate(u):
        return (u - 0.01 * torch.sign(u)) / (1 + 0.5 * torch.abs(u)) if options.gate == "sqs" else u

    def run_epoch():
        for batch in torch.randperm(len(labels))[: STEPS * BATCH].split(BATCH):
            x = images[batch]
            z = e(x + torch.randn_like(x))
            loss = torch.nn.functional.cross_entropy(p(w(z) * gate(v(z))), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    return _timed(run_epoch, options.epochs)


def _mnist():
    import numpy as np

    from sqs_jax.train.images.dataset import load

    data = load("mnist")
    return np.array(data.train_images).reshape(60000, 784), np.array(data.train_labels)


MEASURES = {"products": measure_products, "bare": measure_bare, "ours": measure_ours, "torch": measure_torch}

if __name__ == "__main__":
    main()
