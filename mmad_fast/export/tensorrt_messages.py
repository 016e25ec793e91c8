"""What a TensorRT library says while it builds: kept, and not printed."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from mmad_fast.engines.tensorrt_library import TensorRtLibrary
from mmad_fast.errors import MmadFastError
from mmad_fast.export.engine_layers import TEXT_LAYER

MAX_ERRORS_SHOWN = 3


class EngineBuildError(MmadFastError):
    """TensorRT cannot build an engine from a graph."""


def build_error(
    library: TensorRtLibrary, what: str, errors: Sequence[str], spilled: str
) -> EngineBuildError:
    shown = list(dict.fromkeys(error.strip() for error in errors if error.strip()))
    reason = "; ".join(shown[:MAX_ERRORS_SHOWN]) or spilled.strip() or "it gives no reason"
    return EngineBuildError(
        f"{library.title} {what}: {reason}. Export the artifact again; if that does not help, take "
        "another precision or target"
    )


@dataclass(frozen=True)
class BuildMessages:
    """What the library says during one build.

    Attributes:
        errors: Its errors.
        layers: Each list of layers that it gives.
    """

    errors: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    def take(self, is_error: bool, message: str) -> None:
        if is_error:
            self.errors.append(message)
        elif TEXT_LAYER.search(message):
            self.layers.append(message)


@contextmanager
def build_messages(log: Any) -> Iterator[BuildMessages]:
    """What the library's logger gets meanwhile."""
    messages = BuildMessages()
    log.listeners.append(messages.take)
    try:
        yield messages
    finally:
        log.listeners.remove(messages.take)


@contextmanager
def taking_stderr() -> Iterator[Callable[[], str]]:
    """Gives a function that returns what was written to the process's stderr since.

    The library's compiler writes there past its logger. Where nothing fails, what others wrote
    meanwhile is written again at the end."""
    try:
        original = os.dup(2)
    except OSError:  # a service without one
        yield lambda: ""
        return
    with tempfile.TemporaryFile() as file:

        def spilled() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        _flush()
        os.dup2(file.fileno(), 2)
        succeeded = False
        try:
            yield spilled
            succeeded = True
        finally:
            _flush()
            os.dup2(original, 2)
            os.close(original)
            if succeeded:
                with suppress(OSError), os.fdopen(2, "wb", closefd=False) as stderr:
                    stderr.write(spilled().encode())


def _flush() -> None:
    with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
        if sys.stderr is not None:
            sys.stderr.flush()
