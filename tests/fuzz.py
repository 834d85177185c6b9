"""Mutation fuzzing of every file that is read: `python -m tests.fuzz [--seconds N] [--seed N] [name …]`, `make fuzz`.

A sample of each file is damaged at random and read, over and over. A reader may read it, or say in a ValueError (of
which InputError is one) what is wrong: any other exception is a fault, and the file that led to it is kept.
"""

import argparse
import dataclasses
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sqs_jax.analysis.runs.load import load_run
from sqs_jax.analysis.weight_files import read_weights
from sqs_jax.kernels import timings
from sqs_jax.train import ImageConfig, TextConfig, train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.config_check import check
from sqs_jax.train.config_file import from_json
from sqs_jax.train.images import dataset
from sqs_jax.train.records import ShardIndex, Summary, read_record, read_rows
from sqs_jax.train.sweep.run_sweep import Grid, read_grid, sweep
from sqs_jax.train.sweep.table import read_csv
from sqs_jax.train.text.language_model import load_language
from sqs_jax.train.text.token_stream import _open as open_text
from sqs_jax.train.text.token_stream import load_text
from sqs_jax.train.text.tokenizer import read_tokenizer

HOSTILE = (
    b"null", b"[]", b"{}", b"true", b'""', b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b'"\\ud800"', b'"\\u0000"',
    b"\x00", b"\xff\xfe", b"\x1b[2J", b"NaN", b'"../../x"', b"\xf0\x9f\x92\xa9", b'{"a":' * 300, b"0" * 70000,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """A file, and what reads it; `read` gets the path of the file, in a copy of all that lies around it."""

    root: Path
    file: str
    read: Callable[[Path], Any]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content after one to four changes: cut, flipped, doubled, swapped, or with something hostile put in."""
    result = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, end = sorted(rng.randint(0, len(result)) for _ in range(2))
        end = min(end, at + rng.choice((1, 4, 64, 10**9)))
        match rng.randrange(6):
            case 0:
                del result[end:]
            case 1:
                del result[at:end]
            case 2 if result:
                result[min(at, len(result) - 1)] ^= 1 << rng.randrange(8)
            case 3:
                result[at:at] = result[at:end][:10_000]
            case 4:
                result[at:end] = rng.choice(HOSTILE)
            case _:
                result[at:end] = rng.randbytes(min(end - at, 64))
    return bytes(result)


def _quiet(*_):
    pass


def _checked(path: Path) -> None:
    check(from_json(path))


def targets(folder: Path) -> dict[str, Target]:
    """Small samples of all files, made in a folder, by name."""
    run, text, grid, weights = (folder / name for name in ("run", "text", "sweep", "weights"))
    config = ImageConfig(epochs=1, width=4, hidden=4)
    train(config, run, report=_quiet)
    words = TextConfig(steps=2, warmup=0, width=8, heads=2, layers=1, vocab=300, context=16, samples=0)
    train(words, text, report=_quiet)
    sweep(Grid(config, {"seed": (0, 1)}), grid, report=_quiet)
    weights.mkdir()
    arrays = {"w": np.ones((3, 2), np.float32), "v": np.ones((3, 2), np.float32)}
    np.savez(weights / "a.npz", **arrays)
    save_file(arrays, weights / "a.safetensors")
    (weights / "a.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors", "v": "a.safetensors"}}')
    (weights / "text.txt").write_text("One story.\n\nTwo.\n\nThree.\n\nFour.\n")
    shutil.copy(Path(timings.__file__).parent / "tuning" / "nvidia-h100-80gb-hbm3.json", weights / "tuning.json")
    arrays_dir = folder / "arrays"
    dataset._save(
        arrays_dir, {split: (np.zeros((2, 3, 3), np.uint8), np.zeros(2, np.int32)) for split in dataset.SPLITS}, ["a"]
    )
    cached = next((folder / "cache").glob("text/*/splits.json"), None)
    names = {"w": "w", "v": "v"}
    result = {
        "config": Target(run, "config.json", _checked),
        "summary": Target(run, "summary.json", lambda path: read_record(path, Summary)),
        "run": Target(run, "summary.json", lambda path: load_run(path.parent)),
        "metrics": Target(run, "metrics.jsonl", read_rows),
        "text config": Target(text, "config.json", lambda path: load_language(path.parent)),
        "tokenizer": Target(text, "tokenizer.json", read_tokenizer),
        "facts": Target(text, "text.json", lambda path: load_language(path.parent)),
        "sweep": Target(grid, "sweep.json", lambda path: read_grid(path.parent)),
        "table": Target(grid, "results.csv", read_csv),
        "npz": Target(weights, "a.npz", lambda path: read_weights(path, names)),
        "safetensors": Target(weights, "a.safetensors", lambda path: read_weights(path, names)),
        "index": Target(weights, "a.safetensors.index.json", lambda path: read_weights(path, names)),
        "index record": Target(weights, "a.safetensors.index.json", lambda path: read_record(path, ShardIndex)),
        "text": Target(weights, "text.txt", lambda path: _load_text(path, words)),
        "tuning": Target(weights, "tuning.json", timings._read.__wrapped__),
        "classes": Target(arrays_dir, "classes.json", lambda path: dataset._open("x", path.parent)),
        "array": Target(arrays_dir, "train_images.npy", lambda path: dataset._open("x", path.parent)),
    }
    last = sorted((run / "checkpoints").iterdir())[-1]
    for path in sorted(path for path in last.rglob("*") if path.is_file()):
        name = str(path.relative_to(run))
        kind = "/".join("*" if len(part) == 32 else part for part in path.relative_to(last).parts)
        result.setdefault(f"checkpoint {kind}", Target(run, name, _restore))
    if cached:
        for name in ("splits.json", "tokens.bin", "tokenizer.json"):
            result[f"stream {name}"] = Target(cached.parent, name, lambda path: open_text(words, "x", path.parent))
    return result


def _load_text(path: Path, config: TextConfig) -> None:
    held = dataclasses.replace(config, data="text", text=str(path), validation=1, test=1)
    load_text(held, cache_dir=path.parent / "cache")


def _restore(path: Path) -> None:
    """Both ways of reading a checkpoint."""
    run = next(folder for folder in path.parents if (folder / "config.json").exists())
    train(ImageConfig(epochs=1, width=4, hidden=4), run, resume=True, report=_quiet)
    restore_params(run / "checkpoints")


def fuzz(target: Target, rng: random.Random, until: Callable[[int], bool], keep: Path) -> int:
    """Reads damaged copies until `until(tries)`, and returns the tries. Raises AssertionError at the first fault."""
    content, tries = (target.root / target.file).read_bytes(), 0
    while not until(tries):
        tries += 1
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(target.root, Path(folder) / "copy"))
            if "checkpoints" in target.file:
                (copy / "summary.json").unlink()
            path = copy / target.file
            path.write_bytes(mutated(content, rng))
            damaged = path.read_bytes()
            try:
                target.read(path)
            except ValueError as error:
                if not str(error).strip():
                    raise AssertionError(f"{target.file}: an error that says nothing") from error
            except BaseException:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / path.name).write_bytes(damaged)
                raise AssertionError(f"{target.file}, kept as {keep / path.name}:\n{traceback.format_exc()}") from None
    return tries


def main() -> None:
    """Fuzzes each file for some seconds; exits with 1 at a fault."""
    import os

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="files; default: all")
    parser.add_argument("--seconds", type=float, default=60, help="of each file")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SQS_CACHE_DIR"] = str(Path(folder) / "cache")
        result = targets(Path(folder))
        for name in options.names or result:
            end = time.monotonic() + options.seconds
            try:
                tries = fuzz(
                    result[name],
                    random.Random(f"{options.seed} {name}"),
                    lambda _, end=end: time.monotonic() > end,
                    Path("fuzz"),
                )
                print(f"{name}: {tries} damaged files, no fault", flush=True)
            except AssertionError as error:
                faults += 1
                print(f"{name}: FAULT {error}", flush=True)
    print(f"seed {options.seed}, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
