"""What the C library's heap keeps of memory that was freed."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Hands freed heap pages back to the system, where the C library can (glibc).

    Reading graphs leaves tens of MiB in small freed pieces that large tensors do not fit into.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
