"""What a TensorRT library says: its errors are kept, the rest goes to Python's logging."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

logger = logging.getLogger("mmad_fast")

MAX_LINES = 3
Listener = Callable[[bool, str], None]
"""Called with whether a message is an error, and the message."""


@cache
def library_log(trt: ModuleType) -> Any:
    """The logger of a library: one for the process, never freed, since the library holds on to the
    first that it gets as long as anything of it is left.

    Its `lines` are the last errors; whoever wants all messages for a while adds a `Listener` to its
    `listeners`.
    """
    errors = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=MAX_LINES)
            self.listeners: list[Listener] = []

        def log(self, severity: Any, msg: str) -> None:
            is_error = severity in errors
            if is_error:
                self.lines.append(msg)
            else:
                logger.debug("%s", msg)
            for listener in tuple(self.listeners):
                listener(is_error, msg)

    return Log()
