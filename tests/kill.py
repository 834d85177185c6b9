"""Kills of runs, sweeps, language runs and adoptions: `python -m tests.kill [--kills N] [--seed N]`, or `make kill`.

A command is started, killed without warning after a random time, and resumed, until one comes to its end. The end must
be that of a command that nobody killed, to the byte, and nothing half-written may be left.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SMALL = ["--width", "16", "--hidden", "16"]
# A command, the flag of its folder, and the files that must be equal in the end.
COMMANDS = {
    "run": (["digits", "--epochs", "60", "--save-every", "1", "--no-report", *_SMALL], "--run-dir", "metrics.jsonl"),
    "sweep": (["sweep", "--seeds", "6", "--epochs", "4", "--no-report", *_SMALL], "--sweep-dir", "results.csv"),
    "language": (
        ["stories", "--steps", "60", "--evaluate-every", "3", "--no-report", "--width", "16", "--heads", "2"],
        "--run-dir",
        "metrics.jsonl",
    ),
}
if "SQS_DATA_DIR" in os.environ:  # a small pretrained model, and a text
    _DATA = Path(os.environ["SQS_DATA_DIR"])
    _FLAGS = "--tokens 4000 --distil-steps 100 --steps 20 --evaluate-every 2 --batch-size 1 --context 64 --no-report"
    _TEXT = str(_DATA / "tinystories" / "tinystories-train-first5000-lowercase.txt")
    _MODEL = ["adopt", str(_DATA / "models" / "stories260K"), "--text", _TEXT, "--gate", "sqs", *_FLAGS.split()]
    COMMANDS["adoption"] = (_MODEL, "--run-dir", "model/model.safetensors")


def kill(name: str, kills: int, rng: random.Random, folder: Path) -> int:
    """Kills one command over and over, `kills` times in all; returns how often it came to its end and was compared."""
    flags, place, file = COMMANDS[name]
    reference = folder / "reference"
    start = time.monotonic()
    _run([*flags, place, str(reference)]).check_returncode()
    length, trial, ends = time.monotonic() - start, 0, 0
    path = folder / f"trial{trial}"
    while kills or path.exists():
        begun = (path / ("sweep.json" if name == "sweep" else "config.json")).exists()
        command = ["--resume", "--no-report"] if begun else flags
        command = ["sweep", *command] if begun and name == "sweep" else command
        done = _run([*command, place, str(path)], rng.uniform(0.1, 1.2) * length if kills else None)
        if done.returncode == -9:
            kills -= 1
            continue
        assert done.returncode == 0, f"{name}, after kills: {done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        assert (path / file).read_bytes() == (reference / file).read_bytes(), f"{path / file} is another"
        left = [part for part in path.rglob(".*.partial") if part.exists()]
        assert not left, f"left half-written: {left}"
        ends, trial = ends + 1, trial + 1
        shutil.rmtree(path)
        path = folder / f"trial{trial}"
    return ends


def _run(flags: list[str], seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """The command, killed after some seconds."""
    command = [sys.executable, "-m", "train", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def main() -> None:
    """Kills each command its share of times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SQS_CACHE_DIR"] = str(Path(folder) / "cache")
        for i, name in enumerate(COMMANDS):
            share = (options.kills + i) // len(COMMANDS)
            (Path(folder) / name).mkdir()
            ends = kill(name, share, random.Random(f"{options.seed} {name}"), Path(folder) / name)
            print(f"{name}: {share} kills, {ends} ends as without them", flush=True)
    print(f"seed {options.seed}: nothing lost")


if __name__ == "__main__":
    main()
