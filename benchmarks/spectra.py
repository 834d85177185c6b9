"""Speed and memory of spectra beside torch.linalg.eigh and numpy.linalg.eigh, forming their matrices included.

    python -m benchmarks.spectra [--rounds 5] [--run runs/fidelity/sqs-0]

Four measurements, every contender in a process of its own, in turn, the first call of each not counted:

    top       10 outputs of a trained MNIST classifier, 784 pixels, 512 hidden units: the 10 largest pairs, tol 1e-4
    all       the same network's pairs, all of them, in the input basis
    large     d = 4096, H = 14336, 16 outputs, a decaying spectrum: the 10 largest, tol 1e-4; torch does one output
    growth    seconds of ours by outputs and by H, d = 1024

Without torch its columns are left out. Writes benchmarks/results/spectra-cpu.json and docs/images/spectra_growth.png.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, ROOT, in_its_own_process, parsed

FIGURES = RESULTS / "spectra-cpu.json"

PLOT = ROOT / "docs" / "images" / "spectra_growth.png"
LARGE = (4096, 14336, 16)
TOL = 1e-4
CONTENDERS = {"top": ("ours", "torch", "numpy"), "all": ("ours", "torch", "numpy"), "large": ("ours", "torch")}
GROWTH = {"outputs": [(o, 4096) for o in (4, 8, 16, 32, 64)], "hidden": [(8, h) for h in (2048, 4096, 8192, 16384)]}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    rounds: int = 5
    """How often each is started; a third of it for `large`."""
    run: Path = Path("runs/fidelity/sqs-0")
    """A finished MNIST run, whose weights are read."""
    only: tuple[str, ...] = ()
    """Measure this contender of this measurement alone, here, and print its figures: top ours."""


def main() -> None:
    """Runs the benchmark, prints its figures and writes them."""
    options = parsed(Options)
    if options.only:
        print(json.dumps(_measure(options.only[0], options.only[1], options)))
        return
    results = {}
    for what, contenders in CONTENDERS.items():
        rounds = max(1, options.rounds // 3) if what == "large" else options.rounds
        rows = {name: [] for name in contenders}
        for _ in range(rounds):
            for name in contenders:
                rows[name] += _in_its_own_process(what, name, options.run)
        results[what] = {name: _summary(values) for name, values in rows.items() if values}
        for name, row in results[what].items():
            ratio = row["seconds"] / results[what]["ours"]["seconds"]
            print(
                f"{what:<8}{name:<8}{row['seconds']:9.4f} s  {ratio:6.2f} x ours  {row['peak_mb']:7.0f} MB", flush=True
            )
    results["growth"] = _in_its_own_process("growth", "ours", options.run)[0]
    _write(options, results)


def measured(what: str, name: str, run: Path, rounds: int) -> dict | None:
    """Seconds, memory and accuracy of a contender of a measurement; None for torch where it is not installed."""
    rows = [row for _ in range(rounds) for row in _in_its_own_process(what, name, run)]
    return _summary(rows) if rows else None


def _in_its_own_process(what: str, name: str, run: Path) -> list[dict]:
    row = in_its_own_process("benchmarks.spectra", ["--run", str(run), "--only", what, name])
    return [] if row is None else [row]


def _summary(rows: list[dict]) -> dict:
    seconds = [row["seconds"] for row in rows]
    kept = {"seconds": statistics.median(seconds), "range": [min(seconds), max(seconds)]}
    return kept | {name: max(row[name] for row in rows) for name in rows[0] if name != "seconds"}


def _measure(what: str, name: str, options: Options) -> dict:
    if what == "growth":
        return {axis: [_ours_random(o, h) for o, h in sizes] for axis, sizes in GROWTH.items()}
    arrays = _large() if what == "large" else _trained(options.run)
    weights_mb = sum(array.nbytes for array in arrays if array is not None) / 2**20
    solve = _contender(name, what, arrays)
    outputs = LARGE[2] if what == "large" else 10
    _contender(name, "top", _small())()  # what every first call needs, compilers and libraries, is not the problem's
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mb("VmRSS")
    figures = solve()
    seconds = []
    for _ in range(2 if what == "large" else 9):
        start = time.perf_counter()
        figures = solve()
        seconds.append(time.perf_counter() - start)
    whole = statistics.median(seconds) * (outputs if figures.pop("one_output", False) else 1)
    return {"seconds": whole, "peak_mb": _status_mb("VmHWM") - before + weights_mb, "weights_mb": weights_mb} | figures


def _contender(name: str, what: str, arrays):
    return {"ours": _ours, "torch": _torch, "numpy": _numpy}[name](what, arrays)


def _status_mb(name: str) -> float:
    """VmRSS, the memory of this process, or VmHWM, its peak since it was cleared."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def _small() -> tuple:
    rng = np.random.default_rng(0)
    w, v = (rng.normal(size=(600, 500)).astype(np.float32) for _ in range(2))
    return w, v, rng.normal(size=(500, 10)).astype(np.float32), None


def _trained(run: Path) -> tuple:
    from sqs_jax.analysis import load_weights

    weights = load_weights(run)
    return tuple(np.asarray(array) for array in (weights.w, weights.v, weights.out, weights.embed))


def _large() -> tuple:
    """Normal weights whose input directions fall off as i^-1/2: eigenvalues fall off about as 1/i."""
    d, h, outputs = LARGE
    rng = np.random.default_rng(0)
    scale = np.arange(1, d + 1, dtype=np.float32)[:, None] ** np.float32(-0.5)
    w, v = (rng.standard_normal((d, h), np.float32) for _ in range(2))
    w *= scale
    v *= scale
    return w, v, rng.standard_normal((h, outputs), np.float32) / np.float32(h**0.5), None


def _ours(what: str, arrays):
    import jax
    import jax.numpy as jnp

    from sqs_jax.analysis import GLUWeights, spectrum, top_eigenpairs

    w, v, out, embed = arrays
    embed = None if embed is None else jnp.asarray(embed)
    weights = jax.block_until_ready(GLUWeights(jnp.asarray(w), jnp.asarray(v), jnp.asarray(out), embed))

    def solve():
        pairs = spectrum(weights) if what == "all" else top_eigenpairs(weights, 10, tol=TOL)
        jax.block_until_ready(pairs)
        worst = float(jnp.max(pairs.residuals / jnp.abs(pairs.values[:, :1])))
        return {"largest_residual": worst}

    return solve


def _torch(what: str, arrays):
    import torch  # pyright: ignore[reportMissingImports]

    w, v, out = map(torch.tensor, arrays[:3])
    embed = None if arrays[3] is None else torch.tensor(arrays[3])

    def solve():
        a, b = (w, v) if embed is None else (embed @ w, embed @ v)
        columns = out.T[:1] if what == "large" else out.T  # an output there takes seconds, and all take the same
        product = torch.stack([(a * column) @ b.T for column in columns])
        values, _ = torch.linalg.eigh((product + product.transpose(1, 2)) / 2)
        return {"one_output": what == "large", "first": float(values.abs().max())}

    return solve


def _numpy(what: str, arrays):
    w, v, out, embed = arrays

    def solve():
        a, b = (w, v) if embed is None else (embed @ w, embed @ v)
        product = np.stack([(a * column) @ b.T for column in out.T])
        values, _ = np.linalg.eigh((product + product.transpose(0, 2, 1)) / 2)
        return {"first": float(np.abs(values).max())}

    return solve


def _ours_random(outputs: int, h: int, d: int = 1024) -> dict:
    import jax
    import jax.numpy as jnp

    from sqs_jax.analysis import GLUWeights, top_eigenpairs

    rng = np.random.default_rng(0)
    scale = np.arange(1, d + 1)[:, None] ** -0.5
    w, v = (jnp.asarray(rng.normal(size=(d, h)) * scale, jnp.float32) for _ in range(2))
    weights = GLUWeights(w, v, jnp.asarray(rng.normal(size=(h, outputs)) / h**0.5, jnp.float32))
    jax.block_until_ready(top_eigenpairs(weights, 10, method="krylov", tol=TOL))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(top_eigenpairs(weights, 10, method="krylov", tol=TOL))
        seconds.append(time.perf_counter() - start)
    return {"outputs": outputs, "hidden": h, "seconds": statistics.median(seconds)}


def _write(options: Options, results: dict) -> None:
    from sqs_jax.train.run_folder import provenance

    _plot(results["growth"])
    result = {"command": f"python -m benchmarks.spectra --rounds {options.rounds}", "found": results}
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps(result | provenance(), indent=2) + "\n")
    print(f"{FIGURES}\n{PLOT}")


def _plot(growth: dict) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    labels = {"outputs": "outputs, H = 4096", "hidden": "H, 8 outputs"}
    for axis, (name, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        sizes, seconds = ([row[part] for row in growth[name]] for part in (name, "seconds"))
        axis.plot(sizes, seconds, "o-", color="#0b6e99", label="measured")
        axis.plot(sizes, [seconds[-1] * size / sizes[-1] for size in sizes], ":", color="#7a7a7a", label="linear")
        axis.set(xlabel=label, ylabel="seconds", xscale="log", yscale="log")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
        for one in (axis.xaxis, axis.yaxis):
            one.set_minor_locator(NullLocator())
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.suptitle("The 10 largest eigenpairs of each output, d = 1024, tol 1e-4", fontsize=11)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()
