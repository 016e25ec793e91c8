"""TensorRT and TensorRT-RTX on an NVIDIA GPU, without torch."""

from __future__ import annotations

from mmad_fast.engines.tensorrt_library import gpu_refusal, library_refusal, library_version


def version(library: str) -> str:
    """The version of one of the two libraries."""
    return library_version(library).rpartition(" ")[2]


def device_refusal(device: str, library: str) -> str | None:
    """Why a library cannot run an engine here, with what to do; None where it can. `device` is
    where the arrays lie: the engine computes on a GPU in either case."""
    return gpu_refusal() or library_refusal(library)
