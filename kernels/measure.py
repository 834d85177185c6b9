"""Measuring XLA and the kernels on this device, for `tune` and for the benchmark."""

import concurrent.futures
import contextvars
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax import kernels
from sqs_jax.glu import gated, gated_linear
from sqs_jax.kernels import rules
from sqs_jax.kernels.timings import Measurement

PASSES = ("forward", "training")


def milliseconds(
    function: Callable, arrays, *, repeats: int = 20, calls: int = 1, wait=jax.block_until_ready
) -> list[float]:
    """Milliseconds of `repeats` runs of a compiled function on arrays of the device, after one that warms up.

    Each timing is a queue of runs of at least some 10 ms. `calls` is how often a run calls the operation.
    """
    wait(function(*arrays))
    start = time.perf_counter()
    wait(function(*arrays))
    queue = max(1, int(0.01 / (time.perf_counter() - start)))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(queue - 1):
            function(*arrays)
        wait(function(*arrays))
        times.append(1e3 * (time.perf_counter() - start) / (queue * calls))
    return times


def compile_all(functions: Iterable[jax.stages.Wrapped], arrays: Iterable[Iterable]) -> list[Any]:
    """Compiles jitted functions for their arrays, a core each, so that their first calls compile nothing.

    Returns what was compiled, or the error of what does not fit this device.
    """

    def compiled(function, operands):
        return function.lower(*operands).compile()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # A thread has a context of its own, in which no interpreter is asked for.
        started = [
            (pool.submit(contextvars.copy_context().run, compiled, *pair), pair)
            for pair in zip(functions, arrays, strict=True)
        ]
    executables = []
    for future, pair in started:
        try:
            # Many compilers at once may lack memory that one alone has.
            executables.append(compiled(*pair) if future.exception() else future.result())
        except jax.errors.JaxRuntimeError as error:
            executables.append(error)
    return executables


def calls_in_a_program(shape: tuple[int, ...]) -> int:
    """How often a timed program calls an operation of this shape.

    Launching a program from Python takes longer than a small operation, so small ones are called often.
    """
    return max(1, min(100, int(2e11 / math.prod(shape if len(shape) == 3 else (*shape, 256)))))


def passes(function: Callable, calls: int = 1) -> dict[str, jax.stages.Wrapped]:
    """The jitted passes of a function whose last argument is the cotangent of its result: forward, and both.

    Each calls it `calls` times, one after the other, and gives the last result.
    """

    def forward(*arrays):
        return function(*arrays[:-1])

    def training(*arrays):
        result, pullback = jax.vjp(function, *arrays[:-1])
        return result, pullback(arrays[-1])

    return {"forward": jax.jit(_repeated(forward, calls)), "training": jax.jit(_repeated(training, calls))}


def _repeated(function, calls):
    if calls == 1:
        return function

    def run(*arrays):
        def again(_, carried):
            # As if every call had other arrays, and those of the result before: none is left out, or done only once.
            return jax.lax.optimization_barrier((carried[0], function(*carried[0])))

        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arrays))
        return jax.lax.fori_loop(0, calls, again, (arrays, empty))[1]

    return run


def operands(op: str, shape: tuple[int, ...], dtype) -> list[jax.Array]:
    """Random arrays for `gated_linear` (x, w, v), `gated` (a, u) or `sqs` (x), and the cotangent of the result."""
    if op == "gated_linear":
        m, k, n = shape
        shapes, scales = [(m, k), (k, n), (k, n), (m, n)], [1, k**-0.5, k**-0.5, 1]
    else:
        shapes = [shape] * {"gated": 3, "sqs": 2}[op]
        scales = [1] * len(shapes)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    drawn = (jax.random.normal(key, s, jnp.float32) for key, s in zip(keys, shapes, strict=True))
    return [(array * scale).astype(dtype) for array, scale in zip(drawn, scales, strict=True)]


def measure(op: str, shape: tuple[int, ...], dtype: str, gate, *, repeats: int = 20) -> Iterator[Measurement]:
    """Measures an operation, XLA beside each kernel and tile; for `gated_linear`, both ways with residuals.

    Of the tiles, the one with the best worse pass is kept.
    """
    backend = kernels.target()[0]
    if backend is None:
        raise NotImplementedError("this device has no kernels: there is nothing to measure")
    arrays = operands(op, shape, dtype)
    calls = calls_in_a_program(shape)
    tiles = kernels.load(backend).candidates(*shape, dtype) if op == "gated_linear" else [None]
    for residuals in ("save", "recompute") if op == "gated_linear" else ("save",):
        plans = {"xla": None} | {tile: kernels.plan_for(backend, tile) for tile in tiles}
        programs = {name: passes(_operation(op, gate, residuals, plan), calls) for name, plan in plans.items()}
        both = [(name, function) for name, parts in programs.items() for function in parts.values()]
        compiled = compile_all([function for _, function in both], [arrays] * len(both))
        failed = {name for (name, _), one in zip(both, compiled, strict=True) if isinstance(one, Exception)}
        tried = {name: _times(parts, arrays, repeats, calls) for name, parts in programs.items() if name not in failed}
        xla = tried.pop("xla")
        if not tried:
            raise NotImplementedError(f"no tile of {tiles} compiles for {op} {shape} {dtype} on this device")
        best = min(tried, key=lambda tile: max(tried[tile][name] / xla[name] for name in PASSES))
        tile: Any = best
        yield Measurement(op, gate.name, dtype, shape, residuals, tile, xla, tried[best])


def _operation(op, gate, residuals, plan):
    """A function of the operation's arrays: by XLA without a plan."""
    if op == "gated_linear":
        if plan:
            return lambda x, w, v: rules.gated_linear(x, w, v, (), gate, plan, residuals, jax.lax.Precision.DEFAULT)
        return functools.partial(gated_linear, gate=gate, implementation="xla", residuals=residuals)
    if op == "gated":
        if plan:
            return lambda a, u: rules.gated(a, u, gate, plan)
        return functools.partial(gated, gate=gate, implementation="xla")
    return (lambda x: rules.activation(x, gate, plan)) if plan else gate


def _times(compiled, arrays, repeats, calls) -> dict[str, float]:
    return {
        name: statistics.median(milliseconds(compiled[name], arrays, repeats=repeats, calls=calls)) for name in PASSES
    }


def grid(rows: Iterable[int], inputs: Iterable[int]) -> list[tuple[str, tuple[int, ...]]]:
    """The operations and shapes that tuning covers: h = 4 d, as in a Transformer, and the elementwise ones."""
    shapes = [(m, k, 4 * k) for m in rows for k in inputs]
    elementwise = [(m, n) for m, _, n in shapes]
    return [
        *(("gated_linear", shape) for shape in shapes),
        *(("gated", shape) for shape in elementwise),
        *(("sqs", shape) for shape in elementwise),
    ]
