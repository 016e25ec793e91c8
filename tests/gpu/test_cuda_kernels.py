from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import mmad_fast
from mmad_fast.errors import BackendUnavailableError
from mmad_fast.gpu import cuda_kernels

CACHED = ("_load", "_cuda_problem", "_torch_problem", "_triton_problem")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was found in other tests does not count here, nor the other way round."""
    # An import looks at the package's attribute before it looks at sys.modules.
    monkeypatch.delattr(mmad_fast, "_cuda_kernels", raising=False)
    for name in CACHED:
        getattr(cuda_kernels, name).cache_clear()
    yield
    for name in CACHED:
        getattr(cuda_kernels, name).cache_clear()


def torch_with(version: str, cuda: str | None, *, available: bool = False) -> Any:
    return SimpleNamespace(
        __version__=version,
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(is_available=lambda: available, device_count=lambda: 3),
    )


def kernels_with(problem: str | None, count: int, sm: int = 89) -> Any:
    return SimpleNamespace(
        driver_problem=lambda: problem,
        device_count=lambda: count,
        compute_capability=lambda device: sm,
    )


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (None, "has no CUDA kernels; build them: MMAD_FAST_CUDA=ON pip install"),
        (kernels_with("no driver; install one", 0), "^no driver; install one$"),
        (kernels_with(None, 0), "there is no CUDA device: check CUDA_VISIBLE_DEVICES"),
        (kernels_with(None, 2, 70), "compute capability 7.0; the kernels are compiled for 7.5 and"),
    ],
)
def test_cuda_says_why_not(module: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmad_fast._cuda_kernels", module)
    reason = cuda_kernels.cuda_refusal()
    assert reason is not None
    with pytest.raises(BackendUnavailableError, match=words):
        raise BackendUnavailableError(reason)


def test_cuda_runs_where_there_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    module = kernels_with(None, 2)
    monkeypatch.setitem(sys.modules, "mmad_fast._cuda_kernels", module)
    assert cuda_kernels.cuda_refusal() is None
    assert cuda_kernels.kernels() is module
    assert cuda_kernels.num_devices() == 2


def test_kernels_that_are_not_built_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmad_fast._cuda_kernels", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailableError, match="no CUDA kernels"):
        cuda_kernels.kernels()
    assert cuda_kernels.num_devices() == 0


@pytest.mark.parametrize(
    ("torch", "triton", "words"),
    [
        (None, True, "torch does not load .*install it with: pip install 'mmad-fast"),
        (torch_with("2.13.0+cpu", None), True, "torch 2.13.0.cpu is built without CUDA; install"),
        (torch_with("2.13.0", "13.0"), True, "torch 2.13.0 finds no CUDA device: check"),
        (torch_with("2.13.0", "13.0", available=True), None, "triton does not load .*pip install"),
    ],
)
def test_triton_says_why_not(
    torch: Any, triton: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "triton", triton)
    with pytest.raises(BackendUnavailableError, match=words):
        raise BackendUnavailableError(cuda_kernels.triton_refusal())


def test_torch_needs_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmad_fast._cuda_kernels", None)
    monkeypatch.setitem(sys.modules, "torch", torch_with("2.13.0", "13.0", available=True))
    monkeypatch.setitem(sys.modules, "triton", None)
    assert cuda_kernels.torch_refusal() is None
    assert cuda_kernels.num_devices() == 3
