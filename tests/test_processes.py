"""Several real processes that train one network: the same numbers, and an end for all where one is stopped or fails."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sqs_jax.train import train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.cli.train import main
from sqs_jax.train.config_file import to_json
from sqs_jax.train.processes import Agreement, are_several, from_main, is_main, main_first
from tests.helpers import on_devices, quiet, text_config, wrong

TEXT = {"steps": 24, "evaluate_every": 6, "samples": 1}
LIMIT = 30  # seconds that none outlives another


def started(folder: Path, *flags: str, prepare=("", ""), folders=None):
    """Two processes of two devices each that train into a folder; `prepare` is run in each before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder.parent / "config.json"
    config.write_text(to_json(text_config(folder.parent, **TEXT)))
    pair = []
    for index in (0, 1):
        code = f"{prepare[index]}\nfrom sqs_jax.train.cli.train import main\nmain()"
        begun = [] if "--resume" in flags else ["--config", str(config)]
        line = [*begun, *flags, "--no-report", "--heartbeat", "8",
                "--run-dir", str((folders or (folder, folder))[index]),
                "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(index)]  # fmt: skip
        command = [sys.executable, "-c", code, *line]
        pair.append(
            subprocess.Popen(command, env=on_devices(2), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    return pair


def ended(pair, limit=240):
    """Exit codes, and what was said on stdout and stderr, of both; what of gloo's own is left out."""
    said = [process.communicate(timeout=limit) for process in pair]
    texts = [[re.sub(r".*\[Gloo\].*\n", "", text) for text in each] for each in said]
    return [process.returncode for process in pair], texts


def wait_for(folder: Path, rows: int, pair):
    """Until a run has so many rows of metrics."""
    for _ in range(1200):
        path = folder / "metrics.jsonl"
        if path.is_file() and len(path.read_text().splitlines()) >= rows:
            return
        assert [process.poll() for process in pair] == [None, None], [process.communicate() for process in pair]
        time.sleep(0.1)
    pytest.fail(f"{folder} has not come so far")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("two") / "run"
    codes, said = ended(started(folder, "--fsdp", "4"))
    assert codes == [0, 0], said
    return folder, said


def test_two_processes_come_to_the_numbers_of_one(whole, tmp_path):
    folder, said = whole
    train(text_config(tmp_path, **TEXT), tmp_path / "run", report=quiet)
    np.testing.assert_allclose(losses(folder)[:3], losses(tmp_path / "run")[:3], atol=5e-6, rtol=0)
    np.testing.assert_allclose(losses(folder), losses(tmp_path / "run"), atol=1e-4, rtol=0)
    assert "process 0 of 2, with 2 of the 4 devices" in said[0][0]
    assert "test loss" in said[0][0]
    assert "test loss" not in said[1][0]  # one alone speaks, and writes
    assert (folder / "samples.txt").is_file()


_COUNTED = """
import atexit
from sqs_jax.train.text import language_task as task
read, windows = set(), task.windows
task.windows = lambda stream, context, numbers: read.add(len(numbers)) or windows(stream, context, numbers)
atexit.register(lambda: print("rows read at a time:", sorted(read)))
"""


def test_units_may_be_parted_over_processes_too(whole, tmp_path):
    codes, said = ended(started(tmp_path / "run", "--fsdp", "2", "--model", "2", prepare=(_COUNTED, _COUNTED)))
    assert codes == [0, 0], said
    # Of the eight windows of a batch each process reads the four of its own devices.
    assert ["rows read at a time: [4]" in out for out, _ in said] == [True, True]
    np.testing.assert_allclose(losses(tmp_path / "run")[:3], losses(whole[0])[:3], atol=5e-6, rtol=0)


def test_killed_and_stopped_it_goes_on_to_the_same_bits(whole, tmp_path):
    folder = tmp_path / "run"
    pair = started(folder, "--fsdp", "4")
    wait_for(folder, 1, pair)
    pair[1].kill()
    begin = time.monotonic()
    codes, said = ended(pair)
    assert time.monotonic() - begin < LIMIT
    assert codes[0] == 1
    assert "the same commands with --resume go on" in said[0][1]
    pair = started(folder, "--resume", "--fsdp", "4")
    wait_for(folder, 1 + len(losses(folder)), pair)
    pair[1].send_signal(signal.SIGTERM)
    codes, said = ended(pair)
    assert codes == [143, 143], said
    assert "stopped by SIGTERM; go on with" in said[0][1]
    codes, said = ended(started(folder, "--resume", "--fsdp", "4"))
    assert codes == [0, 0], said
    assert losses(folder) == losses(whole[0])
    own, other = (jax.tree.leaves(restore_params(path / "checkpoints")) for path in (folder, whole[0]))
    assert all(np.array_equal(a, b) for a, b in zip(own, other, strict=True))
    # One process reads what two have written, and goes on with it.
    main(["--run-dir", str(folder), "--resume", "--steps", "25", "--no-report"])
    assert len(losses(folder)) == 5


@pytest.mark.parametrize(
    ("index", "numbers"),
    [(0, [signal.SIGKILL]), (0, [signal.SIGSTOP]), (1, [signal.SIGSTOP]), (1, [signal.SIGINT, signal.SIGINT])],
)
def test_nobody_waits_for_one_that_is_gone(index, numbers, tmp_path):
    pair = started(tmp_path / "run", "--steps", "100000")
    wait_for(tmp_path / "run", 1, pair)
    for number in numbers:
        pair[index].send_signal(number)
        time.sleep(0.05)
    try:
        assert pair[1 - index].wait(timeout=LIMIT) != 0
    finally:
        for process in pair:
            process.kill()
    _, said = ended(pair)
    if signal.SIGKILL in numbers:
        # By JAX's service or by a collective, whichever fails first.
        assert re.search(
            "error: (process 1 was killed, or process 0|another process) is gone.*--resume go on", said[1][1]
        )
    if signal.SIGSTOP in numbers:
        line = f"process {index} has given no sign of life for 8 s; the same commands with --resume go on"
        assert line in said[1 - index][1]


def test_a_failure_of_one_ends_both(tmp_path):
    fault = "import sqs_jax.train.text.language_task as task\ntask.LanguageTask.evaluate = lambda *_: 1 / 0"
    codes, said = ended(started(tmp_path / "run", prepare=("", fault)), limit=120)
    assert codes == [1, 1]
    assert "ZeroDivisionError" in said[1][1]
    assert "process 0 ends: process 1 failed" in said[0][1]


def test_a_folder_that_is_not_shared_is_named(tmp_path):
    (tmp_path / "b").mkdir()
    codes, said = ended(started(tmp_path, folders=(tmp_path / "a", tmp_path / "b" / "a")), limit=120)
    assert codes == [2, 2]
    assert f"{tmp_path / 'b' / 'a'} of process 1 is not that of process 0" in said[1][1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes", "2"], "it goes with --coordinator HOST:PORT"),
        (["--coordinator", "127.0.0.1:9", "--processes", "2", "--process", "2"], "`process` is 2: from 0 to 1"),
        (["--coordinator", "127.0.0.1:9", "--distributed"], "exclude each other"),
        (["--heartbeat", "0"], "`heartbeat` is 0"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(flags, message, tmp_path, capsys):
    assert message in wrong(main, ["--run-dir", str(tmp_path / "run"), *flags], capsys)
    assert not (tmp_path / "run").exists()


def test_of_one_process_nothing_waits():
    assert not are_several()
    assert is_main()
    assert from_main(lambda: "text", "name") == "text"
    with main_first():
        pass
    received = None
    agreement = Agreement(lambda: received)
    assert (agreement(), agreement.now()) == (None, None)
    received = 15
    assert (agreement(), agreement.now()) == (15, 15)
