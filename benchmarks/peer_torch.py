"""The training of `python -m train` as one writes it in PyTorch: what `benchmarks.peers` sets beside ours.

    python -m benchmarks.peer_torch DATA.npz CONFIG.json OUT.json [--compile]

DATA has train_images, train_labels, validation_images, validation_labels; CONFIG the fields of a configuration, with
lists of `gates` and `seeds`. Every network is trained after the other; OUT gets its validation losses, epoch by epoch.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports] - the extra `bench` brings it
from torch.nn import functional  # pyright: ignore[reportMissingImports]


def sqs(u, c: float, lam: float):
    """Signed Quadratic Shrink with p = 1."""
    return (u - c * torch.sign(u)) / (1 + lam * torch.abs(u))


GATES = {
    "sqs": lambda u, config: sqs(u, config["c"], config["lam"]),
    "bilinear": lambda u, config: u,
    "relu": lambda u, config: functional.relu(u),
    "gelu": lambda u, config: functional.gelu(u),
    "silu": lambda u, config: functional.silu(u),
}


def loss_of(params, x, labels, gate: str, config: dict):
    """The cross-entropy of one GLU layer between an embedding and a head."""
    e, w, v, head = params
    z = x @ e
    return functional.cross_entropy(((z @ w) * GATES[gate](z @ v, config)) @ head, labels)


def train(data: dict, config: dict, gate: str, seed: int, loss, fused: bool) -> list[float]:
    """Trains one network; its validation loss after each epoch."""
    torch.manual_seed(seed)
    images, labels = data["train_images"], data["train_labels"]
    sizes = [images.shape[1], config["width"], config["hidden"], int(labels.max()) + 1]
    shapes = [(sizes[0], sizes[1]), (sizes[1], sizes[2]), (sizes[1], sizes[2]), (sizes[2], sizes[3])]
    params = [(torch.randn(n, m) / n**0.5).requires_grad_() for n, m in shapes]
    batch, steps = config["batch_size"], len(labels) // config["batch_size"]
    optimizer = torch.optim.AdamW(params, lr=config["lr"], weight_decay=config["weight_decay"], fused=fused)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["epochs"] * steps)
    curve = []
    for _ in range(config["epochs"]):
        for indices in torch.randperm(len(labels))[: steps * batch].split(batch):
            x = images[indices]
            x = x + config["noise_std"] * torch.randn_like(x)
            value = loss(params, x, labels[indices], gate, config)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            held_out = data["validation_images"], data["validation_labels"]
            curve.append(float(loss_of(params, *held_out, gate, config)))
    return curve


def main(data_path: str, config_path: str, out_path: str, *flags: str) -> None:
    """Trains every network that CONFIG asks for, on a GPU where torch finds one."""
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    data = {}
    for name, array in np.load(data_path).items():
        images = name.endswith("images")
        data[name] = torch.tensor(array).float().flatten(1) / 255 if images else torch.tensor(array).long()
    config = json.loads(Path(config_path).read_text())
    compiled = "--compile" in flags
    loss = torch.compile(loss_of) if compiled else loss_of
    curves = {
        f"{gate}-{seed}": train(data, config, gate, seed, loss, fused=compiled)
        for gate in config["gates"]
        for seed in config["seeds"]
    }
    Path(out_path).write_text(json.dumps(curves))


if __name__ == "__main__":
    main(*sys.argv[1:])
