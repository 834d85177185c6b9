"""What a command shows while it works: moving lines in a terminal, plain ones anywhere else.

Code says what it is doing by `stage`, `line` and `result`, whoever calls it. A command calls `begin` first and `end`
last. Without them, in a notebook or a program of yours, lines are printed and nothing moves.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

_REFRESH = 8  # a second


class Stage:
    """A part of the work, shown as long as it lasts."""

    def __init__(self, name: str, total: float | None, unit: str):
        self.name, self.total, self.unit = name, total, unit
        self.done = 0.0
        self.text = ""

    def at(self, done: float, text: str = "") -> None:
        """So much is done; a text beside it stays until there is another."""
        self.done, self.text = done, text or self.text
        if _terminal:
            _terminal.update(self)

    def advance(self, count: float = 1, text: str = "") -> None:
        """So much more is done."""
        self.at(self.done + count, text)


class _Terminal:
    """A terminal in which each stage is a line, the parts of a stage below it."""

    def __init__(self):
        self._progress: Any = None
        self._tasks: dict[Stage, Any] = {}
        self.starting: Stage | None = Stage("starting", None, "")
        self.add(self.starting)

    def add(self, stage: Stage) -> None:
        if self._progress is None:
            self._progress = _rich_progress()
            self._progress.start()
        self._tasks[stage] = self._progress.add_task(stage.name, total=stage.total, count="", text="")

    def update(self, stage: Stage) -> None:
        if (task := self._tasks.get(stage)) is not None:
            count = f"{stage.done:,.0f}/{stage.total:,.0f} {stage.unit}".rstrip() if stage.total else ""
            self._progress.update(task, completed=stage.done, count=count, text=stage.text)

    def remove(self, stage: Stage) -> None:
        if stage not in self._tasks:
            return
        self._progress.remove_task(self._tasks.pop(stage))
        if not self._tasks:
            self._progress.stop()
            self._progress = None

    def started(self) -> None:
        """The first stage takes the place of "starting"."""
        if self.starting:
            starting, self.starting = self.starting, None
            self.remove(starting)

    def notice(self, text: str) -> None:
        for stage in list(self._tasks):
            stage.text = text
            self.update(stage)

    def clear(self) -> None:
        for stage in list(self._tasks):
            self.remove(stage)

    def line(self, text: str) -> None:
        if self._progress is None:
            print(text, flush=True)
        else:  # not wrapped: a path stays one that can be copied
            self._progress.console.print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)


_terminal: _Terminal | None = None
_command = _quiet = False


def begin(*, moving: bool = True) -> None:
    """A command begins. Where stdout is a terminal that has such letters, something moves from now on.

    A second call does nothing, and with `moving` False lines stay plain.
    """
    global _command, _terminal
    _command = True
    if moving and _terminal is None and not _quiet and _can_move():
        with contextlib.suppress(ModuleNotFoundError):  # without rich, lines are plain
            _terminal = _Terminal()


def _can_move() -> bool:
    stream = sys.stdout
    if stream is None or not stream.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return (stream.encoding or "").lower().startswith("utf")


def end() -> None:
    """A command ends: nothing moves any more, and lines are printed as in any program."""
    global _command, _terminal
    if _terminal:
        _terminal.clear()
    _command, _terminal = False, None


@contextlib.contextmanager
def command(*, moving: bool = True) -> Iterator[None]:
    """Around a whole command."""
    begin(moving=moving)
    try:
        yield
    finally:
        end()


@contextlib.contextmanager
def loud_again() -> Iterator[None]:
    """Around what may have called `quiet`: afterwards lines are shown again."""
    try:
        yield
    finally:
        quiet(False)


def quiet(value: bool) -> None:
    """Whether results alone are shown from now on."""
    global _quiet
    if value:
        end()
    _quiet = value


@contextlib.contextmanager
def stage(name: str, total: float | None = None, unit: str = "", *, plain: bool = False) -> Iterator[Stage]:
    """Around a part of the work.

    Args:
      name: what is done.
      total: of how much, where that is known; its unit.
      plain: whether a command says it in a line where nothing moves.
    """
    now = Stage(name, total, unit)
    terminal = _terminal
    if terminal:
        terminal.started()
        terminal.add(now)
    elif plain:
        about(name)
    try:
        yield now
    finally:
        if terminal:
            terminal.remove(now)


def line(text: str) -> None:
    """Shows a line of progress."""
    if _terminal:
        _terminal.line(text)
    elif not _quiet:
        print(text, flush=True)


def about(text: str) -> None:
    """Shows a line of what a command is doing; nothing in a program of yours."""
    if _command:
        line(text)


def result(text: object) -> None:
    """Shows a line of what a command was called for, also where it is to be quiet."""
    if _terminal:
        _terminal.started()
        _terminal.line(str(text))
    else:
        print(text, flush=True)


def notice(text: str) -> bool:
    """Puts a message in the place of what the moving lines say, from a signal's handler; whether anything moves."""
    if not _terminal:
        return False
    _terminal.notice(text)
    return True


def _rich_progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    class Left(TimeRemainingColumn):
        """Time left, where it can be told."""

        def render(self, task: Any) -> Any:
            return super().render(task) if task.total and task.completed else ""

    class Bar(BarColumn):
        """A bar, where there is a total."""

        def render(self, task: Any) -> Any:
            return super().render(task) if task.total else ""

    class Screen(Console):
        """Leaves the cursor where it is seen: a process that is killed could not bring it back."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        Bar(bar_width=24),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        Left(compact=True),
    )
    return Progress(*columns, console=Screen(file=sys.stdout), transient=True, refresh_per_second=_REFRESH)
