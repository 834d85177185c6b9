"""Memory that training keeps a layer, in a `lax.scan` of gated linear units: plain autodiff beside ours.

    python -m benchmarks.memory

By the memory analysis of the compiler: temporary bytes of the gradient of 24 layers less those of 8, a layer, in arrays
of rows × width. Nothing runs. Writes docs/results/memory.md.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.common import markdown_table
from sqs_jax import gated_linear

PAGE = Path(__file__).parent.parent / "docs" / "results" / "memory.md"
ROWS, WIDTH = 256, 128


def plain(x, w, v):
    """The formula as one writes it, for autodiff."""
    u = x @ v
    return (x @ w) * ((u - 0.01 * jnp.sign(u)) / (1 + 0.5 * jnp.abs(u)))


VARIANTS: dict[str, Callable] = {
    "jax.numpy, autodiff": plain,
    'gated_linear, `residuals="save"`': gated_linear,
    'gated_linear, `residuals="recompute"`': functools.partial(gated_linear, residuals="recompute"),
}


def compile_here(function, *shapes, dtype):
    """Compiles for this device."""
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)).compile()


def arrays_a_layer(layer, *, rows=ROWS, width=WIDTH, dtype="float32", compiled=compile_here, layers=(8, 24)) -> float:
    """Arrays (rows, width) that the gradient of a scan of layers (x, w, v) → h keeps for each."""

    def temporary(count):
        def loss(x, w, v):
            last, _ = jax.lax.scan(lambda x, pair: (layer(x, *pair), None), x, (w, v))
            return last.astype(jnp.float32).sum()

        weights = (count, width, width)
        function = compiled(jax.grad(loss, (0, 1, 2)), (rows, width), weights, weights, dtype=dtype)
        return function.memory_analysis().temp_size_in_bytes

    few, many = layers
    return (temporary(many) - temporary(few)) / (many - few) / (rows * width * jnp.dtype(dtype).itemsize)


def main() -> None:
    """Writes and prints the table."""
    from sqs_jax.train.run_folder import described, provenance

    counts = {name: arrays_a_layer(layer) for name, layer in VARIANTS.items()}
    rows = [(name, f"{count:.2f}") for name, count in counts.items()]
    about = provenance()
    PAGE.write_text(f"""# Memory of training

`python -m benchmarks.memory`: arrays ({ROWS}, {WIDTH}) of float32 kept a layer by the gradient of a `lax.scan` over
gated linear units with SQS, of one width; by XLA's memory analysis. One of them is x, which the scan carries.

{markdown_table(("layer", "arrays"), rows)}

Machine: {described(about)}. Commit: {about["git"]}.
""")
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
