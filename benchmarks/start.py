"""What a user waits for: seconds from Enter to the first epoch and to the end, the first time and the second.

    python -m benchmarks.start [--only train mnist report] [--repeats 3]

The first time no program is compiled and, but for the report, no data set is prepared. The second time, of which the
median is shown, both are there. Then each command runs once more and says what its time goes to: `imports` (Python's
own count, which slows them a little), `compiling` (tracing, lowering, and compiling or loading), `steps` (of training,
by its summary), and the rest: data, files, pictures. Writes benchmarks/results/start-<platform>.json and
docs/results/start.md.
"""

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import PAGES, RESULTS, ROOT, markdown_table, parsed

COMMANDS = {
    "train": "train --no-report --run-dir DIR",
    "train, report": "train --run-dir DIR",
    "mnist": "train mnist --no-report --epochs 3 --run-dir DIR",
    "report": "analysis report DIR",
    "sweep": "train sweep digits --gate sqs,bilinear,relu,gelu,silu --seeds 5 --sweep-dir DIR",
    "stories": "train stories --steps 100 --no-report --run-dir DIR",
}
"""What follows `python -m`. The report is of the run that `mnist` leaves."""
PARTS = ("imports", "compiling", "steps", "rest")
_IMPORTED = re.compile(r"import time: +(\d+) \|")
_COMPILED = re.compile(r"Finished (?:tracing|jaxpr to MLIR|XLA compilation).* in ([\d.e-]+) sec")


def main(only: tuple[str, ...] = tuple(COMMANDS), repeats: int = 3) -> None:
    """Measures and writes.

    Args:
        only: Commands: train, "train, report", mnist, report, sweep, stories.
        repeats: Second times.
    """
    if unknown := [name for name in only if name not in COMMANDS]:
        sys.exit(f"error: `only` is {unknown[0]!r}: one of {', '.join(map(repr, COMMANDS))} is needed")
    measured = {}
    for name in only:
        with tempfile.TemporaryDirectory() as folder:
            measured[name] = measure(name, Path(folder), repeats)
        print(name, measured[name], flush=True)
    _write(measured, repeats)


def measure(name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds to the first epoch and to the end: (first time, median of the second times), and the parts of one."""
    words = _words(name, folder)
    if name == "report":
        timed(_words("mnist", folder), folder)
        shutil.rmtree(folder / "cache" / "compiled")
    times = []
    for _ in range(1 + repeats):
        _cleared(words, folder)
        times.append(timed(words, folder))
    _cleared(words, folder)
    parts = parts_of(words, folder)
    later = [[run[i] for run in times[1:]] for i in range(2)]
    both = {
        kind: (times[0][i], statistics.median(later[i]) if times[0][i] is not None else None)
        for i, kind in enumerate(("first_epoch", "end"))
    }
    return {"command": f"python -m {COMMANDS[name]}", **both, "all": times, "parts": parts}


def timed(words: Sequence[str], folder: Path) -> tuple[float | None, float]:
    """Seconds until the first row of metrics is there, None where there is none, and until the command has ended."""
    begin, first = time.perf_counter(), None
    process = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, env=environment(folder), stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        if first is None and _has_metrics(folder):
            first = time.perf_counter() - begin
        time.sleep(0.005)
    end = time.perf_counter() - begin
    _check_ended(words, process.returncode)
    return (None if words[0] == "analysis" else first), end


def parts_of(words: Sequence[str], folder: Path) -> dict[str, float]:
    """Seconds of a command by what they go to: `PARTS`."""
    settings = environment(folder) | {"JAX_LOG_COMPILES": "1"}
    begin, imports, spans, programs = time.perf_counter(), 0.0, [], 0
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", *words],
        cwd=ROOT,
        env=settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if found := _IMPORTED.match(line):
                imports += int(found[1]) / 1e6
            elif found := _COMPILED.search(line):
                spans.append((time.perf_counter(), float(found[1])))
                programs += "XLA compilation" in line
    _check_ended(words, process.returncode)
    end, compiling = time.perf_counter() - begin, union(spans)
    summaries = [json.loads(path.read_text()) for path in (folder / "made").rglob("summary.json")]
    steps = sum(summary["seconds"] for summary in summaries) if words[0] == "train" else 0.0
    parts = {"imports": imports, "compiling": compiling, "steps": steps}
    return parts | {"rest": end - sum(parts.values()), "programs": programs}


def _check_ended(words: Sequence[str], code: int) -> None:
    if code:
        sys.exit(f"error: python -m {' '.join(words)} ended with {code}")


def union(spans: Iterable[tuple[float, float]]) -> float:
    """The time that spans cover, each (its end, its length): one that lies in another does not count twice."""
    covered, reached = 0.0, -float("inf")
    for begin, end in sorted((end - length, end) for end, length in spans):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


def environment(folder: Path) -> dict[str, str]:
    """The user's, with a cache of its own, and of JAX's settings the device alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_") or "PLATFORM" in name}
    return kept | {"SQS_CACHE_DIR": str(folder / "cache")}


def _words(name: str, folder: Path) -> list[str]:
    return [str(folder / "made") if word == "DIR" else word for word in COMMANDS[name].split()]


def _cleared(words: Sequence[str], folder: Path) -> None:
    """Removes what a command makes, so that it can run again."""
    if words[0] == "analysis":
        (folder / "made" / "report.html").unlink(missing_ok=True)
    else:
        shutil.rmtree(folder / "made", ignore_errors=True)


def _has_metrics(folder: Path) -> bool:
    paths = [folder / "made" / "metrics.jsonl", *(folder / "made" / "members").glob("[!.]*/metrics.jsonl")]
    return any(path.is_file() and path.stat().st_size for path in paths)


def _write(measured: dict[str, Any], repeats: int) -> None:
    from sqs_jax.train.run_folder import described, provenance

    about = provenance()
    some = "" if set(measured) == set(COMMANDS) else f" --only {shlex.join(measured)}"
    command = f"python -m benchmarks.start --repeats {repeats}{some}"
    result = {"command": command, "commands": measured, **about}
    path = RESULTS / f"start-{about['device']['platform']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    (PAGES / "start.md").write_text(page(result, described(about)))
    print(path, PAGES / "start.md", sep="\n")


def page(result: dict[str, Any], machine: str) -> str:
    """The result for the docs."""

    def pair(values):
        return ["", ""] if values[0] is None else [f"{value:.1f}" for value in values]

    rows = [
        (
            name,
            *pair(one["first_epoch"]),
            *pair(one["end"]),
            *(f"{one['parts'][part]:.1f}" for part in PARTS),
        )
        for name, one in result["commands"].items()
    ]
    commands = "\n".join(f"- {name}: `{one['command']}`" for name, one in result["commands"].items())
    return f"""# What a user waits for

`{result["command"]}`: seconds from Enter to the first epoch (of text: the first evaluation)
and to the end. The 1st time nothing is compiled and, but for the report (of a run on MNIST), no data set is prepared;
the 2nd is the median of several. The last four columns are what a 2nd time goes to, from a run that counts: imports,
compiling (tracing, lowering, and loading what is compiled), steps, and the rest: data, files, pictures, and of a report
all that is measured.

{markdown_table(("", "epoch, 1st", "2nd", "end, 1st", "2nd", *PARTS), rows)}

{commands}

Machine: {machine}. Commit: {result["git"]}.
"""


if __name__ == "__main__":
    parsed(main)
