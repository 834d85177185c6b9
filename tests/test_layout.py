"""The layout: no import goes up, no two files share a name, and files and functions stay small."""

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up: a module imports what stands in its own line or above it. A folder stands for what is in it.
ORDER = (
    ("messages", "files", "cache", "display", "versions"),
    ("compile_cache",),
    ("start",),
    ("options", "command_line"),
    ("kernels",),
    ("activation",),
    ("gates",),
    ("glu",),
    ("sharding",),
    ("attention",),
    ("modules", "transformer"),
    ("generation",),
    ("pretrained.architecture", "pretrained.rope", "pretrained.decoder", "pretrained.tensor_files"),
    ("pretrained.families", "pretrained.vocabulary", "pretrained.model"),
    ("pretrained.saving", "pretrained.windows"),
    ("pretrained.loading", "pretrained.gguf_tokenizer", "pretrained.gguf_file", "pretrained.sampling"),
    (
        "analysis.as_json",
        "analysis.reading_kinds",
        "analysis.interaction",
        "analysis.derivatives",
        "analysis.krylov",
        "analysis.lapack",
    ),
    ("analysis.moments",),
    ("analysis.eigen",),
    ("analysis.spectrum_summary", "analysis.gains"),
    ("analysis.calibration",),
    ("analysis.fidelity", "analysis.similarity", "analysis.interpret"),
    ("analysis.layer_fit",),
    ("analysis.streams", "analysis.surrogate"),
    ("analysis.language",),
    ("analysis.layer_reading",),
    ("train.config",),
    ("train.presets",),
    ("train.records",),
    ("train.config_check", "train.config_file", "train.metrics", "train.keeping", "train.layout", "train.processes"),
    (
        "train.run_folder",
        "train.original_files",
        "train.device_memory",
        "train.interrupt",
        "train.optimizer",
        "train.step",
    ),
    ("train.orbax_errors",),
    ("train.noise", "train.checkpoint", "train.extension"),
    ("train.initial",),
    ("train.images", "train.text"),
    ("train.adoption.distil", "train.adoption.network", "train.adoption.adoption_task"),
    ("train.task",),
    ("train.loop",),
    ("train.sweep", "train.adoption.run_adoption"),
    ("analysis.weight_files", "analysis.recorded"),
    ("analysis.runs",),
    ("analysis.report",),
)
# A command may import upward, nothing else may: it starts whatever it is asked for. `kernels.measure`, which only the
# command `tune` and the benchmark import, measures the layer.
COMMANDS = ("train.cli", "analysis.cli", "kernels.__main__", "kernels.measure", "train.__main__", "analysis.__main__")
# What a package shows of the modules in it.
FACADES = ("", "train", "analysis", "pretrained")
# Below these, analysis takes arrays and knows nothing of runs.
OF_RUNS = ("analysis.runs", "analysis.report", "analysis.cli", "analysis.weight_files", "analysis.recorded")


def modules() -> dict[str, Path]:
    paths = {}
    for folder, prefix in (("sqs_jax", ""), ("kernels", "kernels."), ("train", "train."), ("analysis", "analysis.")):
        pattern = "*.py" if folder == "sqs_jax" else "**/*.py"
        inner = (ROOT / "sqs_jax" / "pretrained").glob("*.py") if folder == "sqs_jax" else ()
        for path in (*(ROOT / folder).glob(pattern), *inner):  # the other folders of sqs_jax are links
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = (prefix + ".".join(parts)).removesuffix("__init__").rstrip(".")
            paths[name] = path
    return paths


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, anywhere in it but for type checkers."""
    tree = ast.parse(path.read_text())
    skipped = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped and (node.module or "").startswith("sqs_jax"):
            base = (node.module or "").removeprefix("sqs_jax").lstrip(".")
            for name in node.names:
                inner = f"{base}.{name.name}".lstrip(".")
                yield inner if inner in MODULES else base


def is_in(name: str, folders) -> bool:
    return any(name == folder or name.startswith(f"{folder}.") for folder in folders)


def rank(name: str) -> int:
    (place,) = [i for i, line in enumerate(ORDER) if is_in(name, line)]
    return place


CHECKED = sorted(name for name in MODULES if name not in FACADES and not is_in(name, COMMANDS))


@pytest.mark.parametrize("name", CHECKED)
def test_no_import_goes_up(name):
    for imported in imports(MODULES[name]):
        if imported in FACADES:
            assert imported == "", f"{name} imports the package {imported}: import the module that has it"
            continue
        assert not is_in(imported, COMMANDS[:2]), f"{name} imports the command {imported}"
        assert is_in(imported, COMMANDS) or rank(imported) <= rank(name), (
            f"{name} imports {imported}, which is above it"
        )


def test_only_runs_reports_and_commands_know_of_training():
    for name, path in MODULES.items():
        if is_in(name, ("analysis",)) and name not in FACADES and not is_in(name, OF_RUNS):
            assert not [result for result in imports(path) if is_in(result, ("train",))], name


def test_no_two_files_have_one_name():
    names = Counter(path.name for path in MODULES.values() if not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []
    stems = sorted(path.stem for path in MODULES.values())
    alike = [(a, b) for a, b in itertools.pairwise(stems) if a != b and b in (f"{a}s", f"{a}d", f"{a}_")]
    assert alike == []


FILES = [
    path
    for folder in ("sqs_jax", "kernels", "train", "analysis", "tests", "benchmarks", "experiments", "docs")
    for path in (ROOT / folder).glob("*.py" if folder == "sqs_jax" else "**/*.py")
] + list((ROOT / "sqs_jax" / "pretrained").glob("*.py"))


def test_files_and_functions_are_small():
    long = [str(path.relative_to(ROOT)) for path in FILES if len(path.read_text().splitlines()) > 400]
    assert long == []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 50, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


def test_the_list_of_what_is_compiled_in_full_names_test_files():
    (names,) = re.findall(r"_COMPILED_IN_FULL = \{(.*?)\}", (ROOT / "tests" / "conftest.py").read_text(), re.DOTALL)
    for name in re.findall(r'"(\w+)"', names):
        assert (ROOT / "tests" / f"test_{name}.py").is_file(), name


def test_every_folder_with_code_is_packaged():
    import tomllib

    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(["sqs_jax", *name.split(".")[:-1]]).rstrip(".") for name in MODULES if name}
    assert folders | {"sqs_jax.kernels.tuning"} == set(packages)
