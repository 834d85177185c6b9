"""What the benchmarks share: their flags, processes of their own, spreads and tables. Imports no JAX."""

import argparse
import ast
import dataclasses
import inspect
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ROOT / "docs" / "results"
Gate = Literal["sqs", "bilinear", "relu", "gelu", "silu"]
GATES: tuple[Gate, ...] = get_args(Gate)


def parsed(function: Callable[..., Any], arguments: Sequence[str] | None = None) -> Any:
    """Calls a function, or a dataclass, with the flags of the command line: one for each parameter.

    A parameter that is positional only stands on the command line without a flag.
    """
    description = (inspect.getdoc(function) or "").partition("\n\nArgs:")
    parser = argparse.ArgumentParser(
        description=description[0],
        epilog=inspect.cleandoc(description[2]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    positionals, helps = [], _attribute_docs(function)
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        default, kind = parameter.default, parameter.annotation
        is_required: bool = default is inspect.Parameter.empty
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            positionals.append(name)
            parser.add_argument(name, type=kind)
            continue
        shown = "" if is_required or default is None else f"(default: {default})"
        settings: dict[str, Any] = {"help": f"{helps.get(name, '')} {shown}".strip()}
        settings |= {"required": True} if is_required else {"default": default}
        many = get_origin(kind) is tuple
        item = get_args(kind)[0] if many else kind
        if get_origin(item) is Literal:
            settings |= {"choices": get_args(item)}
        elif kind is bool:
            settings |= {"action": argparse.BooleanOptionalAction}
        else:
            settings |= {"type": next(part for part in (get_args(item) or (item,)) if part is not type(None))}
        settings |= {"nargs": "*"} if many else {}
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    values = vars(parser.parse_args(arguments))
    words = [values.pop(name) for name in positionals]
    return function(*words, **values)


def _attribute_docs(kind: Any) -> dict[str, str]:
    """The docstrings below the fields of a dataclass."""
    if not dataclasses.is_dataclass(kind):
        return {}
    source: Any = kind
    (body,) = ast.parse(inspect.getsource(source)).body
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(str(doc.value.value).split())
        for field, doc in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
    }


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
