"""Several processes that train one network: who is who, what they wait for, and how all end when one does.

JAX's coordination service carries it all. Of one process every function returns at once.
"""

import atexit
import contextlib
import dataclasses
import math
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax

from sqs_jax import display, files
from sqs_jax.messages import InputError, first_line, one_line
from sqs_jax.options import COUNT, ONE_OR_MORE, check_options, option

_BEAT = 1.0  # seconds between two signs of life
_FOREVER = 10**9  # milliseconds: what may take long is ended by the watch, not by a limit
_GO_ON = "the same commands with --resume go on"
_AGREE_EVERY = 2.0  # seconds, and a number of calls of `Agreement`
_MOST_CALLS = 200


@dataclasses.dataclass(frozen=True)
class Processes:
    """How this process finds the others. Each is started with the same command, but for `process`."""

    distributed: bool = option(False, "Join the processes that SLURM, GKE or a TPU pod started; JAX finds them.")
    coordinator: str = option("", "Where nothing starts them: HOST:PORT of process 0, which all can reach.")
    processes: int = option(1, "Where nothing starts them: how many there are.", ONE_OR_MORE)
    process: int = option(0, "Where nothing starts them: the number of this one, from 0.", COUNT)
    heartbeat: int = option(30, "Seconds without a sign of life of a process after which all end.", ONE_OR_MORE)


def start(settings: Processes) -> None:
    """Joins the other processes, before anything touches a device. Raises InputError for settings that do not fit."""
    check_options(settings)
    if not settings.distributed and not settings.coordinator:
        if settings.processes > 1:
            raise InputError(f"`processes` is {settings.processes}: it goes with --coordinator HOST:PORT")
        return
    if settings.distributed and settings.coordinator:
        raise InputError("--distributed and --coordinator exclude each other")
    if settings.coordinator and settings.process >= settings.processes:
        raise InputError(f"`process` is {settings.process}: from 0 to {settings.processes - 1} is needed")
    names = ("coordinator_address", "num_processes", "process_id")
    values = (settings.coordinator, settings.processes, settings.process)
    by_hand: dict[str, Any] = dict(zip(names, values, strict=True)) if settings.coordinator else {}
    display.about("waiting for the other processes")
    try:
        # JAX's own heartbeat comes later than ours, which ends with a line.
        jax.distributed.initialize(**by_hand, heartbeat_timeout_seconds=2 * settings.heartbeat + 30)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes did not find each other: {one_line(error)}") from None
    if jax.local_devices()[0].platform == "cpu":
        # Collectives of CPUs in programs that come from the cache were seen to wait for one another for ever.
        jax.config.update("jax_enable_compilation_cache", False)
    for watch in (_watch, _watch_service):
        threading.Thread(target=watch, args=(settings.heartbeat,), daemon=True).start()
    _say_where_killed()
    display.line(
        f"process {jax.process_index()} of {jax.process_count()}, with {jax.local_device_count()} of the "
        f"{jax.device_count()} devices"
    )
    display.quiet(not is_main())


def _say_where_killed() -> None:
    """Says how to go on where this process is killed, as JAX does where process 0 is gone: by a process of its own."""
    said = f"error: process {jax.process_index()} was killed, or process 0 is gone; {_GO_ON}"
    program = f"import sys, signal; signal.signal(2, signal.SIG_IGN); sys.stdin.read() or sys.exit({said!r})"
    witness = subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, text=True)
    assert witness.stdin is not None
    _farewells.append(witness.stdin)
    atexit.register(_farewell)


def _farewell() -> None:
    """This process ends by itself, and has said why."""
    while _farewells:
        with contextlib.suppress(OSError):
            print("farewell", file=(pipe := _farewells.pop()))
            pipe.close()


def _service() -> Any:
    from jax._src import distributed  # JAX has no public way to it

    return distributed.global_state.client


def are_several() -> bool:
    """Whether there is more than one process."""
    return _service() is not None and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is the process that writes: the only one, or process 0."""
    return not are_several() or jax.process_index() == 0


_answered = [math.inf]  # when the service last answered
_farewells: list[Any] = []
_counts: dict[str, int] = {}
_ended = threading.Event()


def _next(name: str) -> str:
    """A name that all processes come to in the same order, and only once."""
    _counts[name] = _counts.get(name, 0) + 1
    return f"{name}-{_counts[name]}"


def barrier(name: str) -> None:
    """Waits until all processes are here. Unlike a collective it may wait for as long as it takes."""
    if are_several():
        _service().wait_at_barrier(_next(name), _FOREVER)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Around what finds its work done where it was done before: process 0 goes through first."""
    if not is_main():
        barrier("first")
    yield
    if is_main():
        barrier("first")


def from_main(make: Callable[[], str], name: str) -> str:
    """A text that process 0 makes, in every process."""
    if not are_several():
        return make()
    key = _next(name)
    if is_main():
        _service().key_value_set(key, make())
    return _service().blocking_key_value_get(key, _FOREVER)


def check_shared(folder: Path) -> None:
    """Raises InputError where a folder is not the same one for all processes."""
    if not are_several():
        return
    path = folder / ".processes"
    token = from_main(lambda: secrets.token_hex(8), "token")
    if is_main():
        files.write(path, token)
    barrier("token")
    if not path.is_file() or path.read_text() != token:
        host = f"process {jax.process_index()}"
        raise InputError(f"{folder.absolute()} of {host} is not that of process 0: a folder that all share is needed")
    barrier("token")


class Agreement:
    """The number for which all processes pause, at the same call: `received` gives this process's own, or None.

    Every process calls it equally often. One of several processes asks the others about every two seconds, and `now`:
    after so many calls as process 0 makes in that time. The largest number counts, until `forget`.
    """

    def __init__(self, received: Callable[[], int | None]):
        self._received, self._agreed = received, None
        self._calls, self._until, self._asked = 0, 1, time.monotonic()

    def __call__(self) -> int | None:
        if not are_several():
            return self._received()
        self._calls += 1
        return self._agreed if self._agreed or self._calls < self._until else self.now()

    def now(self) -> int | None:
        """The number that any process has by now."""
        if not are_several():
            return self._received()
        name = _next("signals")
        if number := self._received():
            _service().key_value_set(f"{name}/{jax.process_index()}", str(number))
        if is_main():
            _service().key_value_set(f"{name}-calls", str(self._calls_between()))
        _service().wait_at_barrier(name, _FOREVER)
        numbers = [int(value) for _, value in _service().key_value_dir_get(f"{name}/")]
        self._agreed = max([self._agreed, *numbers] if self._agreed else numbers, default=None)
        self._until = int(_service().blocking_key_value_get(f"{name}-calls", _FOREVER))
        self._calls, self._asked = 0, time.monotonic()
        return self._agreed

    def forget(self) -> None:
        """All have paused, and go on."""
        self._agreed = None

    def _calls_between(self) -> int:
        each = (time.monotonic() - self._asked) / max(1, self._calls)
        return max(1, min(_MOST_CALLS, round(_AGREE_EVERY / max(each, 1e-6))))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around all that the processes do together: where one fails, it says so and all end.

    Without it the others would wait for ever, and the one at its exit for five minutes.
    """
    try:
        yield
    except BaseException as error:
        if are_several() and not _ended.is_set():
            _fail(error)
        raise
    part()


def part() -> None:
    """Waits for the others, who have come to the same end; from now on each process may end by itself."""
    if not _ended.is_set():
        barrier("end")
        _ended.set()


def _fail(error: BaseException) -> NoReturn:
    """Ends this process after a failure that has been said, or is said now, and tells the others."""
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    if isinstance(error, jax.errors.JaxRuntimeError) and "peer" in str(error):
        print(f"error: another process is gone ({first_line(error)}); {_GO_ON}", file=sys.stderr, flush=True)
    elif not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    with contextlib.suppress(Exception):
        _service().key_value_set(f"failed/{jax.process_index()}", str(code))
    _leave(code)


def _leave(code: int) -> NoReturn:
    files.discard()
    display.end()
    _farewell()
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(2 * _BEAT if is_main() else 0)  # the service ends with process 0: first the others are to hear of it
    os._exit(code)


def _watch(heartbeat: int) -> None:
    """Gives signs of life, and ends this process where another one failed, or gives none."""
    index, beats, seen = jax.process_index(), 0, {}
    _answered[0] = time.monotonic()
    while not _ended.is_set():
        beats += 1
        try:
            _service().key_value_set(f"alive/{index}", str(beats), allow_overwrite=True)
            failed = _service().key_value_dir_get("failed/")
            alive = _service().key_value_dir_get("alive/")
        except Exception:  # the service is gone, and process 0 with it
            if _ended.wait(_BEAT):
                return
            _say_and_leave("process 0 is gone")
        now = _answered[0] = time.monotonic()
        if failed:
            which, code = failed[0][0].rpartition("/")[2], int(failed[0][1])
            if which != str(index):
                print(f"process {index} ends: process {which} failed", file=sys.stderr, flush=True)
                _leave(code)
            return  # this process failed, and is about to end
        for key, value in alive:
            if seen.get(key, ("",))[0] != value:
                seen[key] = (value, now)
            elif now - seen[key][1] > heartbeat:
                _say_and_leave(f"process {key.rpartition('/')[2]} has given no sign of life for {heartbeat} s")
        _ended.wait(_BEAT)


def _watch_service(heartbeat: int) -> None:
    """Ends this process where the service answers no more, and `_watch` waits for it: process 0 has stopped."""
    late = 0
    while not _ended.wait(_BEAT):
        late = late + 1 if time.monotonic() - _answered[0] > heartbeat else 0
        if late > 2:  # at once after this process itself was stopped the answer may be on its way
            _say_and_leave(f"process 0 has given no sign of life for {heartbeat} s")


def _say_and_leave(what: str) -> NoReturn:
    print(f"error: {what}; {_GO_ON}", file=sys.stderr, flush=True)
    _leave(1)
