"""What the benchmarks share: their flags, processes of their own, spreads and tables. Imports no JAX."""

import argparse
import inspect
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ROOT / "docs" / "results"
GATES = ("sqs", "bilinear", "relu", "gelu", "silu")


def parsed(function: Callable[..., Any], arguments: Sequence[str] | None = None) -> Any:
    """Calls a function, or a dataclass, with the flags of the command line: one for each parameter with a default.

    A parameter without a default stands on the command line without a flag.
    """
    description = (inspect.getdoc(function) or "").partition("\n\nArgs:")
    parser = argparse.ArgumentParser(
        description=description[0],
        epilog=inspect.cleandoc(description[2]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if default is inspect.Parameter.empty:
            parser.add_argument(name, type=parameter.annotation)
            continue
        settings: dict[str, Any] = {"default": default, "help": f"default: {default}"}
        if isinstance(default, bool):
            settings |= {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple):
            settings |= {"nargs": "*", "type": type(default[0]) if default else str}
        else:
            settings |= {"type": str if default is None else type(default)}
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    return function(**vars(parser.parse_args(arguments)))


def in_its_own_process(module: str, flags: Sequence[str]) -> Any:
    """The JSON that `python -m module flags` prints last; None where it needs torch and that is not installed."""
    done = subprocess.run([sys.executable, "-m", module, *flags], capture_output=True, text=True)
    if done.returncode and "No module named 'torch'" in done.stderr:
        return None
    if done.returncode:
        sys.exit(f"error: python -m {module} {' '.join(flags)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(module: str, measures: Mapping[str, Any], options: Any, flags: Sequence[str]) -> dict[str, list[float]]:
    """The seconds of each contender, in rounds of processes of their own (without torch: fewer).

    Such a process has `options.only`: it measures that contender, prints its seconds and exits.
    """
    if options.only:
        print(json.dumps(measures[options.only](options)))
        sys.exit(0)
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(options.rounds):
        for name in measures:
            seconds[name] += in_its_own_process(module, [*flags, "--only", name]) or []
    return {name: values for name, values in seconds.items() if values}


def spread(values: Sequence[float], digits: int) -> str:
    """Mean of values and, of more than one, ± their standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{round(statistics.mean(values), digits) + 0.0:.{digits}f}{deviation}"  # no -0.0


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as Markdown."""
    lines = [[str(value).replace("|", "\\|") for value in row] for row in (heads, *rows)]  # |cos| would end the cell
    lines.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
