"""What fits on how many chips: training steps of large Transformers, compiled for slices that are not there.

    make scaling

Each step is that of `python -m train` on text: AdamW, float32 state, bfloat16 products, each block computed again in
the backward pass. The real compilers of TPUs and NVIDIA GPUs make it for a described slice, in a process of its own.
They tell memory and collectives; nothing runs, and no speed is told. Writes benchmarks/results/scaling.json, where what
is there is not compiled again, and docs/results/scaling.md.
"""

import dataclasses
import json
import math
import os
import re
import resource
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.common import PAGES, RESULTS, ROOT, in_its_own_process, markdown_table, parsed

RESULT, PAGE = RESULTS / "scaling.json", PAGES / "scaling.md"
CONTEXT, VOCAB = 2048, 32768
GIB = 2**30
# Before JAX is imported: what the compilers need to know of chips that are not there.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "CUDA_VISIBLE_DEVICES": "-1",
}


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of a Transformer."""

    layers: int
    width: int
    heads: int
    hidden: int

    @property
    def parameters(self) -> int:
        """How many it has; embedding and unembedding are one matrix."""
        block = 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width
        return self.layers * block + VOCAB * self.width + self.width


MODELS = {
    "1 B": Model(16, 2048, 16, 8192),
    "3 B": Model(28, 3072, 24, 8192),
    "8 B": Model(32, 4096, 32, 14336),
    "13 B": Model(40, 5120, 40, 13824),
    "20 B": Model(44, 6144, 48, 16384),
    "30 B": Model(48, 7168, 56, 19456),
    "39 B": Model(48, 8192, 64, 22016),
    "78 B": Model(80, 8192, 64, 28672),
    "174 B": Model(96, 12288, 96, 32768),
    "412 B": Model(128, 16384, 128, 43648),
    "1,000 B": Model(160, 24576, 192, 51200),
}
ASKED = ("1 B", "8 B")
# GiB of memory that a program may have: what the compilers of TPUs say where one needs more, and all of an H100.
CHIPS = {"v5e": 15.75, "v6e": 31.25, "v5p": 95.74, "H100": 80e9 / GIB}
SLICES = {
    f"{kind}:{shape}": math.prod(map(int, shape.split("x")))
    for kind, shapes in {
        "v5e": ("4x4", "8x8", "16x16"),
        "v6e": ("4x4", "8x8", "16x16"),
        "v5p": ("2x2x4", "4x4x4", "4x8x8"),
    }.items()
    for shape in shapes
} | {"H100:8": 8}
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which programs are compiled."""

    only: str = ""
    """One of them, as the JSON of its settings: its row is printed."""
    processes: int = 2
    """How many are compiled at a time."""
    page: bool = True
    """Write the page."""


def main(settings: Settings) -> None:
    """Compiles what is not in the results yet, and writes the page."""
    if settings.only:
        os.environ.update(ENVIRONMENT)
        print(json.dumps(compiled_row(json.loads(settings.only))))
        return
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []

    lock = threading.Lock()

    def row_of(slice_name: str, model: str, fsdp: int) -> dict[str, Any]:
        key = {"slice": slice_name, "model": model, "fsdp": fsdp}
        with lock:
            found = [row for row in rows if key.items() <= row.items()]
        if not found:
            found = [in_its_own_process("benchmarks.scaling", ["--only", json.dumps(key)])]
            print(json.dumps(found[0]), file=sys.stderr, flush=True)
            with lock:
                rows.append(found[0])
                rows.sort(key=lambda row: ([*SLICES].index(row["slice"]), [*MODELS].index(row["model"]), row["fsdp"]))
                RESULT.write_text(json.dumps({"machine": rows[0]["machine"], "rows": rows}, indent=1) + "\n")
        return found[0]

    with ThreadPoolExecutor(settings.processes) as pool:
        list(pool.map(lambda name: _slice(name, row_of), SLICES))
    if settings.page:
        write_page()
        print(PAGE.read_text())


def _slice(name: str, row_of) -> None:
    """The programs of a slice: those of the models that are asked for, and up to the largest that fits."""
    chips, memory = SLICES[name], CHIPS[name.partition(":")[0]]
    for model in ASKED:
        if not row_of(name, model, min(16, chips))["fits"] and chips > 16:
            row_of(name, model, chips)
    held = [model for model, sizes in MODELS.items() if 12 * sizes.parameters / chips < memory * GIB]
    for model in reversed(held):  # the state of the larger ones alone is too large
        if row_of(name, model, chips)["fits"]:
            return


def compiled_row(key: dict[str, Any]) -> dict[str, Any]:
    """Memory of a chip in bytes, collectives of the program, and what its compilation took: `key`, and these."""
    import jax
    import jax.numpy as jnp

    from sqs_jax.train.device_memory import shapes_of
    from sqs_jax.train.layout import along_batch
    from sqs_jax.train.run_folder import described, provenance

    name, chips = key["slice"], SLICES[key["slice"]]
    mesh = _mesh(name, key["fsdp"])
    attention: Any = "xla" if name.startswith("H100") else "auto"
    step, state, placed = _step(MODELS[key["model"]], chips, mesh, attention)
    batch = jax.ShapeDtypeStruct((chips, CONTEXT), jnp.int32, sharding=along_batch(mesh))
    row = key | {"chips": chips, "machine": described(provenance())}
    before, start = time.process_time(), time.perf_counter()
    lowered = step.lower(shapes_of(state, placed), batch, batch)
    try:
        program: Any = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        wanted = re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm", str(error))
        return row | {"fits": False, "peak": float(wanted[1]) * GIB if wanted else None}
    row |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - before}
    row["host_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    row |= {"state": memory.argument_size_in_bytes, "peak": peak + memory.temp_size_in_bytes}
    row["fits"] = row["peak"] <= CHIPS[name.partition(":")[0]] * GIB
    return row | collectives(program.as_text())


def collectives(text: str) -> dict[str, dict[str, int]]:
    """How often each collective stands in a compiled program, and how many of these begin and end apart.

    One in the loop over layers counts once. A TPU's fused all-reduce-scatter counts as a reduce-scatter.
    """
    counts: Counter[str] = Counter()
    apart: Counter[str] = Counter()
    fused = set(re.findall(r"^%?(all-reduce-scatter[\w.-]*) \(", text, re.MULTILINE))
    counts["reduce-scatter"] = len(fused)
    inside = ""
    for line in text.splitlines():
        if head := re.match(r"%?([\w.-]+) \(.*\{$", line):
            inside = head[1]
        found = re.search(rf"= .*? ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if found and inside not in fused:  # what a fusion is made of
            counts[found[1]] += 1
            apart[found[1]] += bool(found[2])
        elif re.search(r"= .*? async-start\(", line):
            called = re.search(rf"calls=%?({'|'.join(COLLECTIVES)})", line)
            if called:
                apart[called[1]] += 1
    kept = {kind: counts[kind] for kind in COLLECTIVES if counts[kind]}
    return {"collectives": kept, "asynchronous": {kind: apart[kind] for kind in kept}}


def _mesh(slice_name: str, fsdp: int):
    from jax.experimental import topologies

    from sqs_jax.train.layout import Layout, make_mesh

    if slice_name.startswith("H100"):
        config = (ROOT / "tests" / "aot" / "targets" / "sm_90_h100.pbtxt").read_text()
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="h", target_config=config, topology=f"1x1x{SLICES[slice_name]}"
        )
    else:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=slice_name)
    return make_mesh(Layout(fsdp=fsdp), topology.devices)


def _step(model: Model, batch_size: int, mesh, attention: Any):
    """The step of training of a model, its state's shapes, and how that lies on the mesh."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from sqs_jax.train.config import TextConfig
    from sqs_jax.train.layout import parted
    from sqs_jax.train.optimizer import make_optimizer
    from sqs_jax.train.step import first_state
    from sqs_jax.train.text.language_model import make_step
    from sqs_jax.transformer import Transformer, TransformerConfig

    sizes = TransformerConfig(
        vocab=VOCAB,
        context=CONTEXT,
        dtype=jnp.bfloat16,
        remat="block",
        attention=attention,
        **dataclasses.asdict(model),
    )
    network: Any = nnx.eval_shape(lambda: Transformer(sizes, rngs=nnx.Rngs(0)))
    config = TextConfig(steps=1000, batch_size=batch_size, context=CONTEXT, dtype="bfloat16", remat="block")
    optimizer = make_optimizer(config, config.steps)
    state = jax.eval_shape(lambda: first_state(network, optimizer))
    return make_step(config, network, optimizer, mesh), state, parted(state, mesh)


def write_page() -> None:
    """The page of all rows that there are."""
    result = json.loads(RESULT.read_text())
    asked = [row for row in result["rows"] if row["model"] in ASKED and (row["fits"] or row["fsdp"] == row["chips"])]
    # The first that fits of each slice and model.
    best = {(row["slice"], row["model"]): row for row in reversed(asked)}
    rows = [_cells(best[key]) for key in sorted(best, key=lambda key: ([*SLICES].index(key[0]), key[1]))]
    largest = [_largest(result["rows"], name) for name in SLICES]
    compiled = [row for row in result["rows"] if "cpu_seconds" in row]
    host = max(row["host_memory"] for row in compiled) / GIB
    models = [
        (name, sizes.layers, sizes.width, sizes.heads, sizes.hidden, f"{sizes.parameters / 1e9:.2f}")
        for name, sizes in MODELS.items()
    ]
    PAGE.write_text(f"""# What fits on how many chips

`make scaling`: the training step of Transformers ({CONTEXT:,} tokens of context, a sequence a chip, a vocabulary of
{VOCAB:,}), compiled by the real compilers of TPUs and NVIDIA GPUs for slices that are not there. State is float32:
parameters and two moments, 12 bytes a parameter; products are bfloat16; each block is computed again in the backward
pass. A mesh is data × fsdp: parameters lie in parts along fsdp ({{doc}}`../how-to/devices`). *state*: what a chip holds
between two steps; *peak*: that, results and temporaries together, of which the compiler may let some share memory. A
program fits where the compiler accepts it, and the peak is no more than what a program may have of a chip's memory.
Memory and collectives are the compiler's; nothing ran.

## The largest of a slice

All chips along fsdp. The next model of the ladder does not fit, or its state alone is too large.

{markdown_table(("slice", "GiB for a program", "largest", "state", "peak", "next"), largest)}

{markdown_table(("model", "layers", "width", "heads", "hidden", "10⁹ parameters"), models)}

## What is sent

Collectives, as often as they stand in the program: those of a layer run once for each. *apart*: how many of them begin
and end apart, so that something may be computed meanwhile, with the compiler's own settings. *compiled in*: so many CPU
seconds.

{markdown_table(_HEADS, rows)}

Attention: on TPUs the splash kernel; on NVIDIA GPUs XLA's here, whose memory grows with the square of the context,
since cuDNN's compiles only where a GPU is. Each program took at most {host:.1f} GiB of this machine to compile.

Machine: {result["machine"]}.
""")


_HEADS = ("slice", "model", "mesh", "state GiB", "peak GiB", *COLLECTIVES, "apart", "compiled in")


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["slice"], row["model"], f"{row['chips'] // row['fsdp']} × {row['fsdp']}".replace(" ", "\u00a0")]
    if "state" not in row:
        return [*cells, "does not fit", _gib(row["peak"]), *[""] * (len(COLLECTIVES) + 2)]
    counts = [str(row["collectives"].get(kind, 0)) for kind in COLLECTIVES]
    apart = f"{sum(row['asynchronous'].values())} of {sum(row['collectives'].values())}".replace(" ", "\u00a0")
    return [*cells, _gib(row["state"]), _gib(row["peak"]), *counts, apart, f"{row['cpu_seconds']:.0f}"]


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:.2f}"


def _largest(rows: list[dict[str, Any]], name: str) -> list[str]:
    memory = CHIPS[name.partition(":")[0]]
    own = {row["model"]: row for row in rows if row["slice"] == name and row["fsdp"] == SLICES[name]}
    largest = [model for model in MODELS if model in own and own[model]["fits"]][-1]
    after = [*MODELS][[*MODELS].index(largest) + 1 :][:1]
    what = ""
    if after and after[0] in own:
        peak = own[after[0]]["peak"]
        what = f"{after[0]} needs {_gib(peak)}" if peak else f"{after[0]} does not fit"
    elif after:
        what = f"{after[0]}: a state of {12 * MODELS[after[0]].parameters / SLICES[name] / GIB:.2f}"
    return [name, f"{memory:.4g}", largest, _gib(own[largest]["state"]), _gib(own[largest]["peak"]), what]


if __name__ == "__main__":
    main(parsed(Settings))
