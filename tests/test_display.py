"""What commands show while they work: in a terminal, in a file, with --quiet, and in a program of the user's."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

import sqs_jax
from sqs_jax import display
from sqs_jax.train.cli.train import main

SCRIPT = """
import time
from sqs_jax import display
{begin}
display.line("before [bold]" + "/long" * 40)
with display.stage("the whole", plain=True):
    display.about("of a command")
    with display.stage("counting", 4, "things") as shown:
        for i in range(4):
            shown.advance(text=f"figure {{i}}")
            time.sleep(0.3)
        print("a stray line")
display.result("the result")
display.end()
print("after")
"""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(*arguments: str, width: int = 100) -> str:
    """What a Python process writes to a terminal of this width."""
    terminal, side = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = dict(os.environ) | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
    )
    os.close(side)
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the process has ended
            break
        if not part:
            break
        written += part
    os.close(terminal)
    assert process.wait() == 0
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that are left: of each, what was written after it was last erased."""
    lines = [""]
    for part in re.split(r"(\n|\r|\x1b\[2K|\x1b\[1A)", written):
        if part == "\n":
            lines.append("")
        elif part in ("\r", "\x1b[2K"):
            lines[-1] = "" if part == "\x1b[2K" else lines[-1]
        elif part == "\x1b[1A":
            lines.pop()
        else:
            lines[-1] += ESCAPE.sub("", part)
    return [line.rstrip() for line in lines if line.strip()]


LONG = "before [bold]" + "/long" * 40


def test_in_a_terminal_stages_move_and_leave_nothing():
    written = in_terminal("-c", SCRIPT.format(begin="display.begin(); time.sleep(0.5)"))
    for words in ("starting", "the whole", "counting", "2/4 things", "figure 3", "0:00:0"):
        assert words in ESCAPE.sub("", written)
    assert "\x1b[?25l" not in written  # the cursor stays
    assert screen(written) == [LONG, "of a command", "a stray line", "the result", "after"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_letters_has_plain_lines(encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    written = in_terminal("-c", SCRIPT.format(begin="display.begin()"))
    assert "\x1b" not in written
    assert "the whole\r\n" in written
    assert "usage: python -m sqs_jax.train" in in_terminal("-m", "sqs_jax.train", "--help")


def test_help_and_versions_show_no_progress():
    for flag in ("--help", "--version"):
        assert "starting" not in in_terminal("-m", "sqs_jax.train", flag)


def test_elsewhere_lines_are_plain():
    def lines(begin):
        done = subprocess.run([sys.executable, "-c", SCRIPT.format(begin=begin)], capture_output=True, text=True)
        return done.stdout.splitlines()

    assert lines("display.begin()") == [LONG, "the whole", "of a command", "a stray line", "the result", "after"]
    assert lines("") == [LONG, "a stray line", "the result", "after"]
    assert lines("display.begin(); display.quiet(True)") == ["a stray line", "the result", "after"]


def test_a_command_in_a_terminal_says_what_it_does(tmp_path):
    written = in_terminal("-m", "train", "--epochs", "12", "--run-dir", str(tmp_path / "run"))
    moving = ESCAPE.sub("", written)
    for words in ("starting", "loading digits", "compiling the training step", "reading the weights", "images/s"):
        assert words in moving
    left = screen(written)
    assert left[0] == f"digits: 1 layer of 64, gate sqs (c 0.01, λ 0.5, p 1), seed 0, in {tmp_path / 'run'}"
    assert left[1].startswith("1,237 images of 8 × 8 to train on, 200 for validation, 360 for the test; 10 classes; ")
    assert left[-1] == str(tmp_path / "run" / "summary.json")
    assert [line.split()[1] for line in left if line.startswith("epoch")] == [f"{epoch:}/12" for epoch in range(1, 13)]


def test_quiet_shows_results_alone(tmp_path, capsys):
    main(["--epochs", "2", "--quiet", "--no-report", "--run-dir", str(tmp_path / "run")])
    first, *paths = capsys.readouterr().out.splitlines()
    assert first.startswith("test loss ")
    assert paths == [str(tmp_path / "run" / "summary.json")]
    display.line("loud again")
    assert capsys.readouterr().out == "loud again\n"


@pytest.mark.parametrize("module", ["train", "analysis"])
def test_the_version_is_told(module):
    done = subprocess.run([sys.executable, "-m", f"sqs_jax.{module}", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert f"sqs-jax {sqs_jax.__version__}, jax " in done.stdout
