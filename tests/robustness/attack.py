"""What attacks share: one outcome per case, and processes that a case may end or block.

An attack is a module of this folder with

    def run(count: int, seed: int) -> Iterator[Outcome]: ...

that tries `count` cases, the same ones for the same seed, and says what became of each. Its test
runs some of them and wants no faults; `bench/fuzz.py` runs many and keeps a row of the counts.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from mmad_fast.measure.memory import process_peak_mib

ANSWER, REFUSAL = "answer", "refusal"
"""What may become of a case: it was answered, or refused with an error that is documented."""
CRASH = "crash"
HANG = "hang"
WRONG_EXCEPTION = "wrong exception"
WRONG_ANSWER = "wrong answer"
NOT_FINITE = "not finite"
DIFFERENT_REPEAT = "different repeat"
MIXTURE = "mixture"
LOST_ROW = "lost row"
LEFTOVER = "leftover"
LEAK = "leak"
FAULTS = (
    CRASH, HANG, WRONG_EXCEPTION, WRONG_ANSWER, NOT_FINITE, DIFFERENT_REPEAT, MIXTURE, LOST_ROW,
    LEFTOVER, LEAK,
)  # fmt: skip
"""What must not become of any.

crash: the process was ended by a signal or left. hang: it was not done in time. wrong exception:
an error that the call does not document. wrong answer: nonsense was accepted, the map has another
shape, or the score is not the one documented. not finite: a NaN or infinity in an answer. different
repeat: the same call, or one with another number of threads, gave another answer. mixture: an
answer from parts of two artifacts. lost row: a scan was decided and is not written down, or not as
JSON. leftover: a file that nobody will use. leak: memory, descriptors, threads or latency grew
beyond their limit.
"""
ADDRESS_SPACE_MIB = 8 * 1024
"""Most that a guarded process may map: a case that wants more gets MemoryError, not the machine."""


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
        kind: ANSWER, REFUSAL or one of FAULTS.
        case: What names the case beside the seed.
        what: Of a fault, what happened.
        seconds: How long it took; 0 where nobody looked.
        peak_mib: Most resident memory so far of the process that ran it.
        cases: How many cases it is of, alike.
        figures: What was measured besides, by name with its unit.
    """

    kind: str
    case: str = ""
    what: str = ""
    seconds: float = 0.0
    peak_mib: float = 0.0
    cases: int = 1
    figures: dict[str, float] | None = None

    @property
    def is_fault(self) -> bool:
        return self.kind in FAULTS


def faults(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that must not be; a test compares them with [], which shows them."""
    return [one for one in outcomes if one.is_fault]


Work = Callable[[int], Outcome]


def run_guarded(
    prepare: Callable[..., Work],
    arguments: Sequence[object],
    cases: Iterable[int],
    *,
    limit_s: float,
    limit_mib: float = float("inf"),
) -> Iterator[Outcome]:
    """The outcome of each case, worked on in a process that is replaced when a case ends it.

    Args:
        prepare: A module's function, called with the arguments once per process; gives what is
            called with each case. An exception of either is the attack's own fault.
        arguments: Of prepare; pickled.
        cases: Numbers of the cases.
        limit_s: A case that takes longer hangs; it is ended.
        limit_mib: A process whose peak is above it leaks.

    Raises:
        RuntimeError: the attack's own code failed.
    """
    process = _Process(prepare, arguments)
    try:
        for case in cases:
            outcome = process.work(case, limit_s)
            if outcome.peak_mib > limit_mib and not outcome.is_fault:
                text = f"{outcome.peak_mib:.0f} MiB, at most {limit_mib:.0f} are expected"
                outcome = outcome._replace(kind=LEAK, what=text)
            yield outcome
            if outcome.kind in (CRASH, HANG, LEAK):
                process.end()
                process = _Process(prepare, arguments)
    finally:
        process.end()


class _Process:
    """A process that works on cases, one at a time."""

    START_LIMIT_S = 300.0

    def __init__(self, prepare: Callable[..., Work], arguments: Sequence[object]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and engines
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(
            target=_work_on_cases, args=(far_end, prepare, arguments), daemon=True
        )
        self._process.start()
        far_end.close()
        self._is_ready = False

    def work(self, case: int, limit_s: float) -> Outcome:
        self._wait_until_ready()
        start = time.perf_counter()
        try:
            self._pipe.send(case)
            outcome = self._receive(limit_s)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            outcome = Outcome(CRASH, str(case), _exit_text(self._process.exitcode))
        if outcome is None:
            outcome = Outcome(HANG, str(case), f"not done after {limit_s:g} s")
        return outcome._replace(seconds=time.perf_counter() - start)

    def _wait_until_ready(self) -> None:
        if self._is_ready:
            return
        if not self._pipe.poll(self.START_LIMIT_S):
            raise RuntimeError(f"the attack was not prepared after {self.START_LIMIT_S:g} s")
        try:
            self._receive(0)
        except EOFError:
            self._process.join()
            text = _exit_text(self._process.exitcode)
            raise RuntimeError(f"the attack could not be prepared: its process {text}") from None
        self._is_ready = True

    def _receive(self, limit_s: float) -> Outcome | None:
        if not self._pipe.poll(limit_s):
            return None
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"the attack itself failed:\n{answer}")
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _exit_text(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}"
    return f"left with exit code {exitcode}"


def _work_on_cases(pipe: Connection, prepare: Callable[..., Work], arguments: Sequence) -> None:
    """What the process does: says when it is ready, then the outcome of every case."""
    faulthandler.enable()
    logging.disable(logging.CRITICAL)  # what is said of hostile input
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that counts
    limit = ADDRESS_SPACE_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        work = prepare(*arguments)
        pipe.send(None)
        while True:
            case = pipe.recv()
            outcome = work(case)
            pipe.send(outcome._replace(peak_mib=process_peak_mib() or 0.0))
    except EOFError:
        return
    except BaseException:
        pipe.send(traceback.format_exc())
