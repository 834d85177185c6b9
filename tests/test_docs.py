"""The documentation: its Python runs, its commands are understood, and it names every public name and every module."""

import os
import re
import shlex
from pathlib import Path

import pytest

import sqs_jax
from sqs_jax import analysis, train
from sqs_jax.analysis.cli import Compare, Report
from sqs_jax.command_line import given
from sqs_jax.train.cli.adopt import Paths as AdoptPaths
from sqs_jax.train.cli.sample import Options as SampleOptions
from sqs_jax.train.cli.sweep import Options as SweepOptions
from sqs_jax.train.cli.train import Settings
from sqs_jax.train.config import AdoptConfig, ImageConfig, TextConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [path for path in DOCS.glob("**/*.md") if "build" not in path.parts and "results" not in path.parts]
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_in_order(page):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)


def flags_of(words: list[str]) -> tuple[list[type], list[str]]:
    """The dataclasses that a command takes its flags from, and its arguments."""
    module, *rest = words
    if module.endswith("train"):
        kinds = {"sweep": [SweepOptions], "sample": [SampleOptions], "adopt": [AdoptConfig, AdoptPaths]}
        return (kinds[rest[0]], rest[1:]) if rest and rest[0] in kinds else ([ImageConfig, TextConfig, Settings], rest)
    return [{"report": Report, "compare": Compare}[rest[0]]], [word for word in rest[1:] if word != "--"]


def test_every_command_of_the_pages_is_understood():
    lines = [
        line.partition("#")[0].strip()
        for page in [*PAGES, ROOT / "README.md"]
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.splitlines()
    ]
    commands = [line for line in lines if re.match(r"python -m (train|analysis)\b", line)]
    assert len(commands) > 12
    for line in commands:
        kinds, arguments = flags_of(shlex.split(line)[2:])
        given(kinds, arguments, prog="a command")


def test_the_reference_lists_every_public_name():
    listed = set(
        re.findall(r"^   (\w+)$", "".join(page.read_text() for page in (DOCS / "reference").glob("*.md")), re.M)
    )
    for module in (sqs_jax, analysis, train):
        missing = {name for name in module.__all__ if name not in listed}
        # A type for annotations, and data.
        assert missing <= {"TrainConfig", "PRESETS"}, missing


def test_the_table_of_the_layout_names_real_files():
    paths = re.findall(r"`([\w/.*]+\.(?:py|js)|[\w/]+/)`", (DOCS / "layout.md").read_text())
    assert len(paths) > 25
    for path in paths:
        assert list(ROOT.glob(path)) or list((ROOT / "analysis" / "report").glob(path)), path


def test_the_picture_of_the_layout_shows_every_module():
    for suffix in ("dot", "svg"):
        words = set(re.findall(r"[\w]+", (DOCS / "diagrams" / f"layout.{suffix}").read_text()))
        for folder in ("kernels", "train", "analysis"):
            for path in (ROOT / folder).glob("**/*.py"):
                assert path.stem.startswith("__") or path.stem in words, f"{path.stem} is not in layout.{suffix}"


def test_no_page_names_a_network_host_for_its_own_files():
    for path in (DOCS / "_static").glob("*"):
        assert "http" not in path.read_text(), os.fspath(path)
