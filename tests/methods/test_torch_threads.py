from __future__ import annotations

import pytest

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.threads import get_num_threads, set_num_threads

torch = pytest.importorskip("torch", reason="it is torch's threads that are set")


def test_torch_uses_as_many_threads_as_the_kernels_unless_told_otherwise() -> None:
    kernels_before, torch_before = get_num_threads(), torch.get_num_threads()
    try:
        set_num_threads(torch_before + 1)
        with torch_threads():
            assert torch.get_num_threads() == torch_before + 1
            with torch_threads(torch_before + 2):
                assert torch.get_num_threads() == torch_before + 2
            assert torch.get_num_threads() == torch_before + 1
    finally:
        set_num_threads(kernels_before)
    assert torch.get_num_threads() == torch_before


def test_they_are_restored_after_an_error_and_absurd_counts_are_refused() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before
    with pytest.raises(InvalidInputError, match="num_threads is 0"), torch_threads(0):
        pass
