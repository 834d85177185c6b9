"""Kills of runs, sweeps, language runs and adoptions: `python -m tests.kill [--kills N] [--seed N] [--only NAME]`.

A command is started, killed without warning after a random time, and resumed, until one comes to its end. The end must
be that of a command that nobody killed, to the byte, and nothing half-written may be left. Of several processes one is
killed, or stopped, or all are; those that are left have to end within 30 s.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from tests.helpers import on_devices

_LIMIT = 30  # seconds that no process outlives another
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
_SEVERAL = "--steps 60 --evaluate-every 6 --save-steps 4 --async-checkpoints --fsdp 4 --no-report --width 16 --heads 2"
COMMANDS["processes"] = (["stories", "--context", "64", *_SEVERAL.split()], "--run-dir", "metrics.jsonl")
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
    run = _run_several if name == "processes" else _run
    run([*flags, place, str(reference)], None, rng).check_returncode()
    length, trial, ends = time.monotonic() - start, 0, 0
    path = folder / f"trial{trial}"
    while kills or path.exists():
        begun = (path / ("sweep.json" if name == "sweep" else "config.json")).exists()
        command = ["--resume", *_kept(flags)] if begun else flags
        os.environ["SQS_CACHE_DIR"] = str(folder / f"cache{trial}")  # each trial prepares its text anew
        command = ["sweep", *command] if begun and name == "sweep" else command
        done = run([*command, place, str(path)], rng.uniform(0.1, 1.2) * length if kills else None, rng)
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


def _kept(flags: list[str]) -> list[str]:
    """The flags that are no part of a run's configuration."""
    alone = [flag for flag in flags if flag in ("--no-report", "--async-checkpoints")]
    pairs = [pair for pair in pairwise(flags) if pair[0] in ("--save-steps", "--fsdp")]
    return [*alone, *(word for pair in pairs for word in pair)]


def _run_several(flags: list[str], seconds: float | None, rng: random.Random) -> subprocess.CompletedProcess[str]:
    """The command in two processes; after some seconds one of them, or both, are killed or stopped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "train", *flags, "--heartbeat", "6", "--coordinator", f"127.0.0.1:{port}"]
    command += ["--processes", "2", "--process"]
    logs = [Path(os.environ["SQS_CACHE_DIR"]).with_name(f"stdout{index}") for index in (0, 1)]
    pair = []
    for index, log in enumerate(logs):
        with log.open("w") as out:
            pipes = {"stdout": out, "stderr": subprocess.PIPE, "text": True, "env": on_devices(2)}
            pair.append(subprocess.Popen([*command, str(index)], **pipes))
    # Before they have found each other, each waits for the others, which may come minutes later.
    while any(process.poll() is None for process in pair) and not all(" of 2, with" in log.read_text() for log in logs):
        time.sleep(0.02)
    deadline = time.monotonic() + (seconds or 600)
    while any(process.poll() is None for process in pair) and time.monotonic() < deadline:
        time.sleep(0.02)
    victims = []
    if seconds and all(process.poll() is None for process in pair):
        victims = rng.choice([[pair[0]], [pair[1]], pair])
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
        for victim in victims:
            victim.send_signal(number)
        begin = time.monotonic()
        while any(process.poll() is None for process in pair if process not in victims):
            assert time.monotonic() - begin < _LIMIT, f"a process outlives another, which got {number!r}"
            time.sleep(0.05)
        for victim in victims:
            victim.kill()
    said = [process.communicate(timeout=_LIMIT)[1] for process in pair]
    ends = [-9] if victims else [process.returncode for process in pair]
    return subprocess.CompletedProcess(command, next((end for end in ends if end), 0), "", "".join(said))


def _run(flags: list[str], seconds: float | None, _rng: random.Random) -> subprocess.CompletedProcess[str]:
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
    parser.add_argument("--only", choices=COMMANDS, help="one of the commands")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SQS_CACHE_DIR"] = str(Path(folder) / "cache")
        names = [options.only] if options.only else list(COMMANDS)
        for i, name in enumerate(names):
            share = (options.kills + i) // len(names)
            (Path(folder) / name).mkdir()
            ends = kill(name, share, random.Random(f"{options.seed} {name}"), Path(folder) / name)
            print(f"{name}: {share} kills, {ends} ends as without them", flush=True)
    print(f"seed {options.seed}: nothing lost")


if __name__ == "__main__":
    main()
