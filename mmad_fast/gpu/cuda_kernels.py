"""The compiled CUDA kernels, and why a GPU backend cannot run here.

Nothing is imported before it is needed. What was found once is remembered.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from mmad_fast.errors import BackendUnavailableError
from mmad_fast.gpu.architectures import ARCHITECTURES

BUILD_COMMAND = "MMAD_FAST_CUDA=ON pip install . (in a checkout, with nvcc on the PATH)"


def kernels() -> Any:
    """The extension module `mmad_fast._cuda_kernels`.

    Raises:
        BackendUnavailableError: it is not built, or does not load.
    """
    module, problem = _load()
    if module is None:
        raise BackendUnavailableError(problem)
    return module


def cuda_refusal() -> str | None:
    """None if the CUDA kernels can run, else why not."""
    return _cuda_problem()


def torch_refusal() -> str | None:
    """None if torch can compute on a CUDA device, else why not."""
    return _torch_problem()


def triton_refusal() -> str | None:
    """None if Triton's kernels can run, else why not."""
    return _torch_problem() or _triton_problem()


def num_devices() -> int:
    """How many CUDA devices there are, as far as what is installed can tell."""
    if _cuda_problem() is None:
        return int(kernels().device_count())
    if _torch_problem() is None:
        import torch

        return torch.cuda.device_count()
    return 0


@cache
def _load() -> tuple[ModuleType | None, str]:
    """The extension module, or None and why."""
    try:
        import mmad_fast._cuda_kernels as module
    except ModuleNotFoundError:
        return None, (f"this build of mmad-fast has no CUDA kernels; build them: {BUILD_COMMAND}")
    except ImportError as error:
        return None, f"the CUDA kernels do not load ({error}); rebuild them: {BUILD_COMMAND}"
    return module, ""


@cache
def _cuda_problem() -> str | None:
    module, problem = _load()
    if module is None:
        return problem
    driver_problem: str | None = module.driver_problem()
    if driver_problem is not None:
        return driver_problem
    if module.device_count() == 0:
        return "there is no CUDA device: check CUDA_VISIBLE_DEVICES and nvidia-smi"
    oldest = min(ARCHITECTURES)
    found = [module.compute_capability(device) for device in range(module.device_count())]
    if max(found) < oldest:
        return (
            f"the CUDA device has compute capability {max(found) / 10}; the kernels are compiled "
            f"for {oldest / 10} and newer: take backend='cpu'"
        )
    return None


@cache
def _torch_problem() -> str | None:
    try:
        import torch
    except ImportError as error:
        return (
            f"torch does not load ({error}); install it with: pip install 'mmad-fast[gpu]' (on "
            "Windows take the CUDA build, see pytorch.org)"
        )
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA; install the CUDA build, see "
            "pytorch.org"
        )
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no CUDA device: check the NVIDIA driver with "
            "nvidia-smi, and CUDA_VISIBLE_DEVICES"
        )
    return None


@cache
def _triton_problem() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton does not load ({error}); install it with: pip install 'mmad-fast[gpu]'"
    return None
