"""The first seconds of a command: Ctrl-C while it imports and compiles, and packages that are not installed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("seconds", [1.0, 2.5])
@pytest.mark.parametrize(
    "command",
    ["train digits --epochs 500 --no-report", "sqs_jax.train stories --no-report", "sqs_jax.analysis report x"],
)
def test_ctrl_c_is_one_line_from_the_first_moment_on(command, seconds, tmp_path):
    folder = [] if "analysis" in command else ["--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split(), *folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    if "error:" not in error:  # else it was over already
        assert process.returncode == 130
        assert "interrupted" in error or "stopped by SIGINT" in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_write_leaves_nothing(tmp_path):
    code = (
        "import time; from pathlib import Path; from sqs_jax import files, start\n"
        "start.catch_interrupts('interrupted')\n"
        "with files.appearing(Path('run')) as partial:\n"
        "    (partial / 'x').write_text('x'); print('there', flush=True); time.sleep(60)"
    )
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "\ninterrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_users_own_program_keeps_its_signals(tmp_path):
    (tmp_path / "train.py").write_text("import signal, sqs_jax; print(signal.getsignal(signal.SIGINT))")
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "train"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "default_int_handler" in done.stdout


@pytest.fixture
def bare(tmp_path):
    """An environment in which the packages of the extra `train` cannot be imported."""
    for name in ("orbax", "optax", "msgspec", "safetensors", "psutil", "filelock", "tokenizers"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')")
    return dict(os.environ) | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


@pytest.mark.parametrize("module", ["sqs_jax.train", "sqs_jax.analysis"])
def test_without_the_extra_a_command_says_which(module, bare, tmp_path):
    words = ["report", "run"] if module == "sqs_jax.analysis" else []
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the package msgspec is not installed: pip install 'sqs-jax[train]' brings it\n"


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("from sqs_jax.analysis import load_weights; load_weights('x')", "msgspec"),
        ("from sqs_jax.analysis import load_language", "optax"),
        ("from sqs_jax.train import train", "msgspec"),
        (
            "from sqs_jax.analysis import read_weights; read_weights('a.safetensors', {'w': 'w', 'v': 'v'})",
            "safetensors",
        ),
    ],
)
def test_without_the_extra_a_function_says_which(call, name, bare, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"x")
    done = subprocess.run([sys.executable, "-c", call], env=bare, cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == f"ImportError: the package {name} is not installed: pip install 'sqs-jax[train]' brings it"


def test_without_the_extra_npz_files_are_read(bare, tmp_path):
    code = (
        "import numpy as np; np.savez('a.npz', w=np.ones((3, 2), 'f4'), v=np.ones((3, 2), 'f4'))\n"
        "from sqs_jax.analysis import read_weights, spectrum\n"
        "print(spectrum(read_weights('a.npz', {'w': 'w', 'v': 'v'})).values.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(2, 3)\n"


def test_the_installed_command_is_there():
    assert shutil.which("sqs", path=str(Path(sys.executable).parent))
