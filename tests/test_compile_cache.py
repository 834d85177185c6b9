"""Compiled programs are kept from one command to the next, and a cache that does not fit or is damaged is no harm."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sqs_jax import compile_cache

ROOT = Path(__file__).parent.parent
_OF_THE_TESTS = ("JAX_COMP", "JAX_ENABLE_COMP", "XLA_FLAGS")  # settings that users do not have


class Command:
    """A short training run as a process, with a cache folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.compiled = folder / "cache" / "compiled"

    def __call__(self, *flags: str, **settings: str) -> tuple[dict[str, list[str]], dict]:
        """The programs that were found and those that were not, and the run's summary; nothing else is on stderr."""
        self.count += 1
        run = self.folder / f"run{self.count}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_TESTS)}
        environment |= {"SQS_CACHE_DIR": str(self.folder / "cache"), "JAX_DEBUG_LOG_MODULES": "jax._src.compiler"}
        environment.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)
        words = ["train", "--epochs", "1", "--hidden", "8", "--no-report", "--run-dir", str(run), *flags]
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, env=environment | settings, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        assert [line for line in lines if not line.startswith("DEBUG:")] == []
        kinds = {"found": r"compilation cache hit for '(\w+)'", "missed": r"CACHE MISS for '(\w+)'"}
        return {kind: re.findall(pattern, done.stderr) for kind, pattern in kinds.items()}, json.loads(
            (run / "summary.json").read_text()
        )["test"]


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    result = Command(tmp_path_factory.mktemp("compiled"))
    result.first = result()
    (result.own,) = result.compiled.iterdir()  # of this machine
    return result


def test_a_second_command_compiles_nothing(command):
    first, second = command.first, command()
    assert len(first[0]["missed"]) > 5
    assert second[0]["missed"] == []
    assert sorted(second[0]["found"]) == sorted(first[0]["missed"] + first[0]["found"])
    assert second[1] == first[1]


def test_half_written_entries_are_made_anew(command):
    whole = sizes(command.own)
    for path in command.own.iterdir():
        os.truncate(path, path.stat().st_size // 2)
    assert command()[1] == command.first[1]
    # The one that was read first was there; it is missing, as all others are, for the next, and then there is nothing.
    command()
    assert sizes(command.own).keys() == whole.keys()
    assert command()[0]["missed"] == []


def test_what_another_machine_has_compiled_is_ignored(command):
    foreign = command.compiled / "0123456789abcdef"
    command.own.rename(foreign)
    before = sizes(foreign)
    found, test = command()
    assert len(found["missed"]) == len(command.first[0]["missed"])
    assert test == command.first[1]
    assert sizes(foreign) == before
    assert len(list(command.compiled.iterdir())) == 2


def test_it_can_be_switched_off(tmp_path):
    command, theirs = Command(tmp_path), tmp_path / "theirs"
    command("--no_compile_cache", JAX_COMPILATION_CACHE_DIR=str(theirs))
    assert not command.compiled.exists()
    assert not theirs.exists()
    command(JAX_COMPILATION_CACHE_DIR=str(theirs), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert not command.compiled.exists()
    assert list(theirs.iterdir())


def test_a_cache_that_cannot_be_made_is_no_harm(tmp_path):
    command = Command(tmp_path)
    (tmp_path / "cache").mkdir()
    command.compiled.write_text("a file in its place")
    assert command()[1]["accuracy"] > 0


CPU = "processor\t: 0\nmodel name\t: A\nflags\t\t: sse avx2\ncpu MHz\t: 1000\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("old", "new", "is_another"),
    [("avx2", "avx512f", True), ("name\t: A", "name\t: B", True), ("1000", "2000", False), (": 1\n", ": 7\n", False)],
)
def test_a_machine_is_told_by_what_its_processor_can(old, new, is_another, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text(CPU)
    assert CPU.replace(old, new) != CPU
    other.write_text(CPU.replace(old, new))
    assert (compile_cache.machine(one) != compile_cache.machine(other)) == is_another


def test_a_machine_of_which_nothing_is_known_is_its_own(tmp_path, monkeypatch):
    names = set()
    for node in ("a", "b"):
        monkeypatch.setattr(compile_cache.platform, "node", lambda node=node: node)
        names.add(compile_cache.machine(tmp_path / "nothing"))
    assert len(names) == 2


def test_what_was_not_used_for_the_longest_time_is_removed(tmp_path):
    for place, name in enumerate(("b", "c", "a", "d")):
        path = tmp_path / name / name
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + place, 1000 + place))
    os.utime(tmp_path / "b" / "b", (2000, 1000))  # read since
    compile_cache.bound(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["b", "d"]
    compile_cache.bound(tmp_path / "nothing", 250)
    compile_cache.bound(tmp_path / ("n" * 300), 250)  # no system has such a name


def test_other_programs_keep_jax_as_it_is():
    code = "import os, sqs_jax, jax; print(sorted(os.environ), jax.config.jax_compilation_cache_dir)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_TESTS)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("None\n")
    assert "JAX_COMP" not in done.stdout
