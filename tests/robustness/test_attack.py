"""What a guarded process says of cases that end it, block it or eat memory."""

from __future__ import annotations

import os
import signal
import time

import pytest
from robustness.attack import ANSWER, CRASH, HANG, LEAK, Outcome, Work, run_guarded

MIB = 2**20


def prepare(mark: str) -> Work:
    """Gives the process's number with each case; some cases do worse."""
    if mark == "cannot be prepared":
        raise OSError(mark)
    if mark == "ends early":
        os._exit(3)

    def work(case: int) -> Outcome:
        if case == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if case == 2:
            os._exit(3)
        if case == 3:
            time.sleep(60)
        if case == 4:
            bytearray(b"x") * (300 * MIB)
        if case == 5:
            raise KeyError("a slip in the attack")
        return Outcome(ANSWER, what=f"{mark} {os.getpid()}")

    return work


@pytest.mark.own_process
def test_a_case_that_ends_or_blocks_its_process_is_an_outcome() -> None:
    outcomes = run_guarded(prepare, ("mark",), [0, 1, 0, 2, 3, 4, 0], limit_s=1, limit_mib=250)
    found = list(outcomes)
    assert [one.kind for one in found] == [ANSWER, CRASH, ANSWER, CRASH, HANG, LEAK, ANSWER]
    assert found[1].what == "was ended by SIGSEGV"
    assert found[3].what == "left with exit code 3"
    assert found[4].what == "not done after 1 s"
    assert found[5].what.endswith("MiB, at most 250 are expected")
    assert len({found[case].what for case in (0, 2, 6)}) == 3  # a process each
    assert 10 < found[0].peak_mib < 250 < found[5].peak_mib
    assert 1 <= found[4].seconds < 20


@pytest.mark.own_process
@pytest.mark.parametrize(
    ("mark", "cases", "words"),
    [
        ("mark", [0, 5], "KeyError"),
        ("cannot be prepared", [0], "cannot be prepared"),
        ("ends early", [0], "could not be prepared: its process left with exit code 3"),
    ],
)
def test_a_slip_of_the_attack_itself_is_no_outcome(mark, cases, words) -> None:
    with pytest.raises(RuntimeError, match=words):
        list(run_guarded(prepare, (mark,), cases, limit_s=30))
