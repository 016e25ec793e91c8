"""Torch's threads, which are set apart from the kernels'. Fit half."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmad_fast.threads import resolve_num_threads


@contextmanager
def torch_threads(num_threads: int | None = None) -> Iterator[None]:
    """Torch uses so many threads inside the block or decorated function, and as many as before
    after it.

    Args:
        num_threads: None means as many as the kernels.

    Raises:
        InvalidInputError: no integer, or not in 1..1024.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(resolve_num_threads(num_threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)
