"""What a run needs of its devices, before its folder is made: programs compiled, and that it fits into memory."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import psutil
from flax import nnx

from sqs_jax import display
from sqs_jax.messages import InputError, first_line


def free_memory() -> int:
    """Bytes free on the device; on a CPU, which does not report them, bytes free on the machine."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return psutil.virtual_memory().available


def check_fits(needed: int, what: str) -> None:
    """Raises InputError where this many bytes are more than a device has free."""
    free = free_memory()
    if needed > free:
        raise InputError(f"{what} {size(needed)}, and the device has {size(free)} free")


def size(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def check_model(make_model: Callable[[], nnx.Module], parts: int = 1) -> None:
    """Raises InputError for a network whose weights, gradient and both moments are more than a device has free.

    `make_model` is traced alone: no weight is made. `parts` says over how many devices each array is parted.
    """
    shapes: Any = nnx.eval_shape(make_model)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes)))
    check_fits(16 * count // parts, f"{count:,} parameters, with their gradient and AdamW's two moments, take")


def check_program(step: Any, *arguments: Any) -> None:
    """Compiles a step of training for these arguments or shapes; the first real call then finds it compiled.

    Raises InputError where the device cannot run it, or lacks the memory.
    """
    try:
        with display.stage("compiling the training step", plain=True):
            counted = step.lower(*arguments).compile().memory_analysis()
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        device = jax.devices()[0].device_kind
        raise InputError(
            f"a step of training cannot be compiled for this device, {device}: {first_line(error)}"
        ) from None
    if counted is not None:  # some devices do not tell
        check_fits(counted.temp_size_in_bytes, "a step of training takes, beside weights and data,")


@contextlib.contextmanager
def compiling(calls: Iterable[tuple[Any, ...]]) -> Iterator[None]:
    """Compiles programs, each with the arguments or shapes of its call, in a thread beside the block.

    The calls then find them compiled. What cannot be compiled fails again in its call. Does nothing where there are
    several processes, which have to compile in the same order.
    """

    def compile_all() -> None:
        for program, *arguments in calls:
            program.lower(*arguments).compile()

    with ThreadPoolExecutor(1) as thread:
        if jax.process_count() == 1:
            thread.submit(compile_all)
        yield


def shapes_of(tree: Any, placed: Any) -> Any:
    """The shapes of a tree's arrays, all with one sharding, or each with its own."""
    placed = jax.tree.map(lambda _: placed, tree) if isinstance(placed, jax.sharding.Sharding) else placed
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, placed
    )
