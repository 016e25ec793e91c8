"""SIGINT (Ctrl-C) and SIGTERM end a command in order: what was decided is printed first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user or the system wants the command to end; no error, so that nothing takes it for one.

    Attributes:
        number: The signal's.
        during: How far what was going on had come, "" if nobody knows.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.during = ""

    @property
    def signal_name(self) -> str:
        """E.g. "SIGTERM"."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """As of a process that the signal ended: 130 or 143."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"interrupted by {self.signal_name}" + (f" {self.during}" if self.during else "")


class _Waiting:
    """Whether signals have to wait, and the one that does; the handler runs in the main thread."""

    must = False
    number: int | None = None
    is_finished = False


def _handle(number: int, frame: FrameType | None) -> None:
    if _Waiting.is_finished:
        return
    if _Waiting.must and _Waiting.number is None:
        _Waiting.number = number
    else:
        raise Interrupted(number)


def finish() -> None:
    """What was asked for is printed: a signal that comes from now on changes nothing, neither what
    is on stdout nor the exit code."""
    _Waiting.is_finished = True


@contextmanager
def interruptible(*, ends_process: bool = False) -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted inside; before and after they do what they did.

    A signal that the process was started to ignore, as in the background of a shell, stays so.

    Args:
        ends_process: Nothing but the end of the process comes after: signals change nothing then.
    """
    _Waiting.is_finished = False
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ends_process else handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A signal that comes inside is raised at the end: what is written inside is written whole.

    A second one is raised at once: the reader may have stopped reading. Where the inside raises,
    that goes first. Not to be nested.
    """
    _Waiting.must = True
    try:
        yield
    finally:
        _Waiting.must = False
        number, _Waiting.number = _Waiting.number, None
    if number is not None:
        raise Interrupted(number)
