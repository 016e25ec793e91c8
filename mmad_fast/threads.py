"""How many threads the compiled kernels use, in this process."""

from __future__ import annotations

from types import ModuleType

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.errors import BackendUnavailableError
from mmad_fast.validation import check_integer

MAX_THREADS = 1024


def get_num_threads() -> int:
    """The number of threads the kernels use.

    It is what `set_num_threads` set; before that the environment variable MMAD_FAST_NUM_THREADS if
    it is a positive number and nothing else; else the number of cores that this process may run
    on, or fewer where its control groups have a quota of processor time (`docker run --cpus 2`).

    Raises:
        BackendUnavailableError: the compiled kernels cannot be loaded.
    """
    return int(_kernels().num_threads())


def set_num_threads(count: int) -> None:
    """Sets the number of threads the kernels use, for all Python threads of this process.

    Results do not depend on it.

    Args:
        count: 1..1024.

    Raises:
        InvalidInputError: count is no integer or out of range.
        BackendUnavailableError: the compiled kernels cannot be loaded.
    """
    _kernels().set_num_threads(check_integer(count, "count", minimum=1, maximum=MAX_THREADS))


def resolve_num_threads(num_threads: int | None) -> int:
    """The given number of threads, or the kernels' for None.

    Raises:
        InvalidInputError: no integer, or not in 1..1024: an engine would try to start them all.
        BackendUnavailableError: the compiled kernels cannot be loaded.
    """
    if num_threads is None:
        return get_num_threads()
    return check_integer(num_threads, "num_threads", minimum=1, maximum=MAX_THREADS)


def _kernels() -> ModuleType:
    reason = kernels_refusal()
    if reason is not None:
        raise BackendUnavailableError(reason)
    from mmad_fast import _kernels

    kernels: ModuleType = _kernels
    return kernels
