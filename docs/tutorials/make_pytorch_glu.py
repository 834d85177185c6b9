"""Trains a gated linear unit in PyTorch on scikit-learn's digits, and saves it: what a user of PyTorch would have.

python docs/tutorials/make_pytorch_glu.py     # needs torch; writes docs/tutorials/data/pytorch_glu.*
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

FOLDER = Path(__file__).parent / "data"


class GLU(nn.Module):
    """SwiGLU without biases, and a head that reads it."""

    def __init__(self):
        super().__init__()
        self.up_proj = nn.Linear(64, 48, bias=False)
        self.gate_proj = nn.Linear(64, 48, bias=False)
        self.head = nn.Linear(48, 10, bias=False)

    def forward(self, x):
        return self.head(self.up_proj(x) * functional.silu(self.gate_proj(x)))


def main() -> None:
    """Trains for 300 steps, and saves the weights and the inputs that the layer gets."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(pixels / 16, labels, test_size=360, stratify=labels, random_state=0)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    model = GLU()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        functional.cross_entropy(model(x + 0.3 * torch.randn_like(x)), y).backward()
        optimizer.step()
    FOLDER.mkdir(exist_ok=True)
    save_file(model.state_dict(), FOLDER / "pytorch_glu.safetensors")
    arrays = {"x": x.numpy(), "test_x": np.asarray(test_x, np.float32), "test_y": np.asarray(test_y, np.int32)}
    np.savez_compressed(FOLDER / "pytorch_glu_inputs.npz", **arrays)


if __name__ == "__main__":
    main()
