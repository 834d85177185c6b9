"""Stopping on Ctrl-C and SIGTERM without losing the epoch."""

import os
import signal
from types import FrameType

from sqs_jax import display


class Stopped(Exception):
    """A run that was asked to stop, and has saved its state. `number` is the signal's."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is only noted; a second one acts as usual.

    In a thread that is not the main one signals cannot be caught, and nothing is noted.
    """

    def __init__(self):
        self.received: int | None = None
        self._previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None):
        self.received = number
        message = f"{signal.Signals(number).name}: stopping when it is safe; once more to stop at once"
        if not display.notice(message):
            os.write(2, f"\n{message}\n".encode())  # print may be what the signal has interrupted
        self.__exit__()
