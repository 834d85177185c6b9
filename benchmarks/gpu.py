"""The gated linear unit on an accelerator: correctness, then speed and memory, beside its alternatives.

    python -m benchmarks.gpu [--rows 2048,8192] [--inputs 256,512,1024,4096] [--dtype bfloat16] [--repeats 20]

First every kernel, gate and dtype is compared with float64 on this very device. Then come XLA, ours (save, recompute),
what `implementation=None` picks, plain jax.numpy with autodiff, and, where they are installed, tokamax (SiLU) and
PyTorch: forward, and forward and backward together; h = 4 d. Needs jax and flax alone. Writes
benchmarks/results/<device>.json and docs/results/kernels-<device>.md. `--interpret tpu` (or triton) tries all of it on
a CPU, in small, and writes below --out; its times mean nothing.
"""

import contextlib
import functools
import importlib.util
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import markdown_table
from benchmarks.memory import plain
from sqs_jax import GATES, gated, gated_linear, kernels, sqs
from sqs_jax.kernels import timings
from sqs_jax.kernels.__main__ import Parser, grid_flags
from sqs_jax.kernels.measure import PASSES, calls_in_a_program, compile_all, milliseconds, operands, passes

ROOT = Path(__file__).parent.parent
# Spacings: one rounding of the result is half of one, and the sums of float32 lose some more.
LIMITS = {"bfloat16": 2, "float16": 2, "float32": 16}
EDGES = ((1, 1, 1), (7, 127, 129), (130, 600, 260), (513, 64, 1000))


def main(arguments: list[str] | None = None) -> None:
    """Runs both parts; exits with 1 where a kernel is wrong, and with 2 where this device has none."""
    parser = Parser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    grid_flags(parser)
    parser.add_argument("--interpret", choices=("tpu", "triton"), help="try it in small, without the device")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder below which the results are written")
    options = parser.parse_args(arguments)
    with kernels.interpreted(options.interpret) if options.interpret else contextlib.nullcontext():
        backend, kind = kernels.target()
        if backend is None:
            print(f"error: {kind} has no kernels: nothing to measure (--interpret tries it in small)", file=sys.stderr)
            sys.exit(2)
        errors = check(backend, EDGES[1:2] if options.interpret else EDGES)
        result = {"device": kind, "dtype": options.dtype, "versions": versions(), "largest_errors": errors}
        result["rows"] = [
            row
            for m in options.rows
            for k in options.inputs
            for row in compare((m, k, 4 * k), options.dtype, options.repeats)
        ]
    write(options.out, result)


def check(backend: str, shapes) -> dict[str, float]:
    """The largest error of every operation, value and gradient, by dtype, in spacings of the largest element.

    One rounding of the result is half a spacing. Exits with 1 above `LIMITS`.
    """
    errors: dict[str, float] = {}
    for dtype, gate in [(dtype, gate) for dtype in kernels.DTYPES[backend] for gate in GATES.values()]:
        cases = [(shape, *pair) for shape in shapes for pair in _operations(gate, shape, dtype)]
        jitted = [jax.jit(functools.partial(_value_and_pullback, function)) for _, function, _ in cases]
        compile_all(jitted, [arrays for *_, arrays in cases])
        for (shape, function, arrays), both in zip(cases, jitted, strict=True):
            pairs = zip(both(*arrays), _reference(gate, dtype, arrays), strict=True)
            error = max(_units(one, other, dtype, jumps=gate.name == "sqs") for one, other in pairs)
            errors[dtype] = max(errors.get(dtype, 0.0), error)
            if not error <= LIMITS[dtype]:
                sys.exit(f"wrong: {function} {dtype} {gate.name} {shape}: {error} units")
    print("correct on this device; largest error in units of the dtype's spacing:", errors, flush=True)
    return errors


def _operations(gate, shape: tuple[int, int, int], dtype: str) -> list[tuple[Callable, list[jax.Array]]]:
    """Every operation of a gate that has a kernel, and its arrays, of which the last is the result's cotangent."""
    x, w, v, g = operands("gated_linear", shape, dtype)
    a, u, _ = operands("gated", (shape[0], shape[2]), dtype)
    kernel = functools.partial(gated_linear, gate=gate, implementation="pallas", precision="highest")
    pairs: list[tuple[Callable, list[jax.Array]]] = [
        (functools.partial(kernel, residuals=way), [x, w, v, g]) for way in ("save", "recompute")
    ]
    pairs.append((functools.partial(gated, gate=gate, implementation="pallas"), [a, u, g]))
    if gate.name == "sqs":
        pairs.append((functools.partial(sqs, implementation="pallas"), [u, g]))
    return pairs


def _value_and_pullback(function, *arrays):
    value, pullback = jax.vjp(function, *arrays[:-1])
    return (value, *pullback(arrays[-1]))


def _reference(gate, dtype, arrays):
    """Value and pullback by numpy in float64, a and u rounded to the dtype as the layer does."""
    *rest, g = (np.asarray(array, np.float64) for array in arrays)
    with jax.enable_x64(True):

        def at(function, u):
            return np.asarray(function(jnp.asarray(u, jnp.float64)))

        def rounded(z):
            return np.asarray(jnp.asarray(z, jnp.float32).astype(dtype), np.float64)

        if len(rest) == 1:
            return at(gate.value, rest[0]), g * at(gate.slope, rest[0])
        a, u = rest if len(rest) == 2 else (rounded(rest[0] @ weights) for weights in rest[1:])
        da, du = g * at(gate.value, u), g * a * at(gate.slope, u)
        if len(rest) == 2:
            return a * at(gate.value, u), da, du
        x, w, v = rest
        da, du = rounded(da), rounded(du)
        return a * at(gate.value, u), da @ w.T + du @ v.T, x.T @ da, x.T @ du


def _units(got, exact, dtype, *, jumps: bool) -> float:
    difference = np.abs(np.asarray(got, np.float64) - exact)
    # At the jump of SQS the sign of a sum that is nearly 0 is a matter of rounding: the few largest are no error.
    share = 0.999 if jumps else 1
    kept = np.sort(difference, axis=None)[: math.ceil(difference.size * share)]
    return float(kept[-1] / (float(jnp.finfo(dtype).eps) * max(1e-30, np.abs(exact).max())))


def compare(shape: tuple[int, int, int], dtype: str, repeats: int) -> list[dict]:
    """A row for each variant and pass: milliseconds (median, least, most), and bytes of memory in training."""
    arrays = operands("gated_linear", shape, dtype)
    calls = calls_in_a_program(shape)
    rows, contenders = [], variants()
    timed = {name: passes(function, calls) for name, function in contenders.items()}
    single = [passes(function)["training"] for function in contenders.values()]
    jitted = [*single, *(part for both in timed.values() for part in both.values())]
    compiled: list[Any] = compile_all(jitted, [arrays] * len(jitted))
    for (name, function), program in zip(contenders.items(), compiled[: len(single)], strict=True):
        memory = {
            "kept_bytes": kept_bytes(function, arrays[:-1]),
            "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        }
        for part in PASSES:
            times = milliseconds(timed[name][part], arrays, repeats=repeats, calls=calls)
            rows.append(_row(shape, name, part, times) | memory)
    if importlib.util.find_spec("torch"):
        rows += [_row(shape, "torch", part, times) for part, times in torch_times(arrays, repeats).items()]
    xla = {row["pass"]: row["median_ms"] for row in rows if row["variant"] == "xla"}
    for row in rows:
        row["gain_over_xla"] = xla[row["pass"]] / row["median_ms"]
        print(
            f"{shape!s:<22}{row['variant']:<18}{row['pass']:<10}{row['median_ms']:9.3f} ms {row['gain_over_xla']:6.2f}",
            flush=True,
        )
    return rows


def _row(shape, variant, part, times):
    spread = {"median_ms": statistics.median(times), "least_ms": min(times), "most_ms": max(times)}
    return {"shape": shape, "variant": variant, "pass": part, **spread}


def variants() -> dict:
    """The functions (x, w, v) → h that are compared, by name."""
    contenders = {
        "xla": functools.partial(gated_linear, implementation="xla"),
        "ours, save": functools.partial(gated_linear, implementation="pallas"),
        "ours, recompute": functools.partial(gated_linear, implementation="pallas", residuals="recompute"),
        "picked": gated_linear,
        "jax.numpy": plain,
    }
    if importlib.util.find_spec("tokamax"):
        import tokamax  # pyright: ignore[reportMissingImports]

        contenders["tokamax, silu"] = lambda x, w, v: tokamax.gated_linear_unit(
            x, jnp.stack([v, w], axis=1), activation=jax.nn.silu
        )
    return contenders


def kept_bytes(function, arrays) -> int:
    """Bytes that reverse mode keeps between forward and backward, beside the arguments themselves."""
    kept = jax.eval_shape(lambda *z: jax.vjp(function, *z)[1], *arrays)
    arguments = [(array.shape, array.dtype) for array in arrays]
    sizes = 0
    for leaf in jax.tree.leaves(kept):
        if (leaf.shape, leaf.dtype) in arguments:
            arguments.remove((leaf.shape, leaf.dtype))
        else:
            sizes += leaf.size * leaf.dtype.itemsize
    return sizes


def torch_times(arrays, repeats: int) -> dict[str, list[float]]:
    """The same layer in PyTorch, eager, on its first GPU (else the CPU)."""
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, arrays[0].dtype.name)
    x, w, v, g = (torch.tensor(np.asarray(a, np.float32)).to(device, kind).requires_grad_() for a in arrays)

    def forward():
        u = x @ v
        return (x @ w) * ((u - 0.01 * torch.sign(u)) / (1 + 0.5 * torch.abs(u)))

    def training():
        return torch.autograd.grad(forward(), (x, w, v), g)

    def timed(function):
        wait = (lambda _: torch.cuda.synchronize()) if device == "cuda" else (lambda _: None)
        return milliseconds(function, (), repeats=repeats, wait=wait)

    return {"forward": timed(torch.no_grad()(forward)), "training": timed(training)}


def versions() -> dict[str, str]:
    """Versions of what was compared."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {}
    for name in ("jax", "jaxlib", "flax", "tokamax", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def write(folder: Path, result: dict) -> None:
    """Writes the result as JSON, and its table."""
    slug = timings.slug(result["device"])
    data, page = folder / "benchmarks" / "results" / f"{slug}.json", folder / "docs" / "results" / f"kernels-{slug}.md"
    for path, text in ((data, json.dumps(result, indent=1) + "\n"), (page, table(result))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)


def table(result: dict) -> str:
    """The result as a page for the docs."""
    lines = [
        f"# The gated linear unit on {result['device']}", "",
        f"`python -m benchmarks.gpu`, {result['dtype']}, seed 0; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ". Milliseconds: median (least to most); MiB kept for the backward pass beside the arguments.", "",
    ]  # fmt: skip
    body = []
    for row in result["rows"]:
        time = f"{row['median_ms']:.3f} ({row['least_ms']:.3f} to {row['most_ms']:.3f})"
        kept = f"{row['kept_bytes'] / 2**20:.1f}" if "kept_bytes" in row else ""
        shape = ", ".join(map(str, row["shape"]))
        body.append((shape, row["variant"], row["pass"], time, f"{row['gain_over_xla']:.2f}", kept))
    heads = ("m, d, h", "variant", "pass", "ms", "gain over XLA", "kept MiB")
    return "\n".join([*lines, markdown_table(heads, body)]) + "\n"


if __name__ == "__main__":
    main()
