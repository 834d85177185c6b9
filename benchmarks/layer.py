"""The gated linear unit by XLA beside the formula as one writes it in jax.numpy, on this device, in one run.

    python -m benchmarks.layer [--rows 512 2048] [--inputs 64 256 512] [--rounds 9]

Forward, and forward and backward together, SQS, h = 4 d; the contenders take turns, and each round's ratio is of two
timings that lie side by side. Memory: temporary bytes of the gradient, by the compiler. Writes
benchmarks/results/layer-<platform>.json and docs/results/layer.md.
"""

import functools
import json
import statistics
from typing import Any, Literal

from benchmarks.common import PAGES, RESULTS, markdown_table, parsed
from benchmarks.memory import plain
from sqs_jax import gated_linear
from sqs_jax.kernels.measure import PASSES, calls_in_a_program, milliseconds, operands, passes
from sqs_jax.train.run_folder import described, provenance

CONTENDERS = {"gated_linear": functools.partial(gated_linear, implementation="xla"), "jax.numpy": plain}
Dtype = Literal["float32", "bfloat16", "float16"]


def main(
    rows: tuple[int, ...] = (512, 2048),
    inputs: tuple[int, ...] = (64, 256, 512),
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16"),
    rounds: int = 9,
) -> None:
    """Measures, prints a table and writes the result.

    Args:
        rows: Rows m of x.
        inputs: Inputs d; there are 4 d hidden units.
        dtypes: Of all arrays.
        rounds: Timings of each contender.
    """
    measured = []
    for dtype in dtypes:
        for shape in ((m, d, 4 * d) for m in rows for d in inputs):
            measured += compare(shape, dtype, rounds)
            for row in measured[-2:]:
                print(row, flush=True)
    about = provenance()
    command = (
        f"python -m benchmarks.layer --rows {' '.join(map(str, rows))} --inputs {' '.join(map(str, inputs))} "
        f"--dtypes {' '.join(dtypes)} --rounds {rounds}"
    )
    path = RESULTS / f"layer-{about['device']['platform']}.json"
    path.write_text(json.dumps({"command": command, "rows": measured, **about}, indent=1) + "\n")
    (PAGES / "layer.md").write_text(page(command, measured, about))
    print(path, PAGES / "layer.md", sep="\n")


def compare(shape: tuple[int, int, int], dtype: str, rounds: int) -> list[dict]:
    """A row for each pass: median milliseconds, their ratio (plain over ours, above 1 is faster), and memory."""
    arrays = operands("gated_linear", shape, dtype)
    calls = calls_in_a_program(shape)
    programs = {name: passes(function, calls) for name, function in CONTENDERS.items()}
    compiled = {name: passes(function)["training"].lower(*arrays).compile() for name, function in CONTENDERS.items()}
    memory: dict[str, Any] = {name: program.memory_analysis() for name, program in compiled.items()}
    temporary = {name: facts.temp_size_in_bytes for name, facts in memory.items()}
    rows = []
    for part in PASSES:
        times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for turn in range(rounds):
            for name in sorted(CONTENDERS, reverse=bool(turn % 2)):
                times[name] += milliseconds(programs[name][part], arrays, repeats=1, calls=calls)
        ratios = [other / own for own, other in zip(*times.values(), strict=True)]
        rows.append(
            {
                "shape": shape,
                "dtype": dtype,
                "pass": part,
                "median_ms": {name: statistics.median(values) for name, values in times.items()},
                "ratio": statistics.median(ratios),
                "ratios": sorted(ratios),
                "temporary_bytes": temporary,
            }
        )
    return rows


def page(command: str, measured: list[dict], about: dict) -> str:
    """The result for the docs."""
    heads = (
        "m, d, h",
        "dtype",
        "pass",
        *(f"`{name}`, ms" for name in CONTENDERS),
        "plain / ours",
        "MiB, ours",
        "plain",
    )
    lines = [
        (
            ", ".join(map(str, row["shape"])),
            row["dtype"],
            row["pass"],
            *(f"{value:.2f}" for value in row["median_ms"].values()),
            f"{row['ratio']:.2f} ({row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f})",
            *(f"{value / 2**20:.1f}" for value in row["temporary_bytes"].values()),
        )
        for row in measured
    ]
    return f"""# The layer by XLA, beside plain jax.numpy

`{command}`:
`gated_linear` with SQS, by XLA, and the formula written down for autodiff, in turns. The ratio is the median of the
rounds (least to most): above 1 `gated_linear` is faster. MiB: temporaries of the gradient of one layer, by the
compiler. {{doc}}`memory` has what is kept of many layers.

{markdown_table(heads, lines)}

Machine: {described(about)}. Commit: {about["git"]}.
"""


if __name__ == "__main__":
    parsed(main)
