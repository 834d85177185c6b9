"""What the README says is true: followed to the letter from an empty folder, its commands and its Python run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
# What makes a command small; as it stands it takes up to minutes.
_TEXT = ["--steps", "4", "--width", "16", "--heads", "2", "--context", "32", "--vocab", "300", "--no-report"]
SMALL = {
    "python -m train": ["--epochs", "2"],
    "python -m train mnist --gate sqs": ["--epochs", "1", "--width", "16", "--hidden", "16", "--no-report"],
    "python -m train stories": _TEXT,
}
_LEFT = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "__pycache__", ".*_cache", "generated")


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_command_runs_in_order_from_an_empty_folder(tmp_path, original_files):
    clone = tmp_path / "sqs-jax"
    environment = dict(os.environ) | {"SQS_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(clone)}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len(commands()) == 6
    for line in commands():
        if line.startswith("git clone"):
            assert line == "git clone <this repository> sqs-jax && cd sqs-jax"
            shutil.copytree(ROOT, clone, symlinks=True, ignore=_LEFT)
            for folder in ("runs", "sweeps"):  # of whoever works here
                shutil.rmtree(clone / folder, ignore_errors=True)
        elif line.startswith("pip install"):  # .ci/wheel installs the package for real
            assert set(re.findall(r"\[(.*)\]", line)[0].split(",")) <= set(extras)
        else:
            words = [*shlex.split(line), *SMALL.get(line, [])]
            assert words[0] == "python"
            done = subprocess.run(
                [sys.executable, *words[1:]], cwd=clone, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (clone / "runs" / "digits-sqs-seed0" / "report.html").stat().st_size > 1e6


def test_the_python_runs_and_reads_a_layer():
    names = {}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "README.md", "exec"), names)
    assert names["pairs"].vectors.shape == (10, 3, 64)
    assert 0.9 < names["r2"] < 1


def test_the_files_that_it_names_exist():
    linked = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    assert len(linked) > 8
    for target in linked:
        assert (ROOT / target).exists(), target
    for folder in re.findall(r"^\| `(\w+)/`", README, re.MULTILINE):
        assert (ROOT / folder).is_dir()


def test_it_can_be_read_in_two_minutes():
    assert len(README.splitlines()) <= 120
    assert len(README.split()) <= 900


@pytest.mark.parametrize("command", ["make demo", "make test", "make docs"])
def test_the_make_targets_that_it_names_exist(command):
    target = command.split()[1]
    assert command in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
