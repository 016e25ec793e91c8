"""The CUDA kernels of cosine_maps, emulated on the host or on a device."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray
from ops.map_cases import CASES, Levels, MapCase, make_levels, torch_map
from ops.neighbor_kernels import GUARD, Guarded, to_device

by_name = {"ids": lambda case: case.name}
ROUNDING = 1e-6
"""Each level is rounded to float32 when it is added."""


def run(
    kernels: ModuleType,
    targets: Levels,
    restored: Levels,
    *,
    size: int,
    sigma: float = 4.0,
    align_corners: bool = True,
) -> NDArray[np.float32]:
    """The kernels' map; nothing is written beside it or beside the workspace."""
    pairs = [
        (to_device(one), to_device(other)) for one, other in zip(targets, restored, strict=True)
    ]
    levels = [(one.data_ptr(), other.data_ptr(), *one.shape) for one, other in pairs]
    found = Guarded.make((size, size), torch.float32)
    workspace = Guarded.make((kernels.cosine_maps_workspace(levels, size),), torch.uint8)
    assert workspace.pointer % 8 == 0, f"GUARD is {GUARD}"
    kernels.cosine_maps(0, levels, size, sigma, align_corners, found.pointer, workspace.pointer, 0)
    workspace.read()
    return found.read()


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("sigma", [0, 4])
@pytest.mark.parametrize("case", CASES, **by_name)
def test_maps_equal_torch_and_scipy(
    cuda_kernels: ModuleType, case: MapCase, sigma: float, align_corners: bool
) -> None:
    levels = make_levels(case)
    options = {"size": case.size, "sigma": sigma, "align_corners": align_corners}
    found = run(cuda_kernels, *levels, **options)
    np.testing.assert_allclose(found, torch_map(*levels, **options), atol=ROUNDING)


@pytest.mark.parametrize("width", [31, 32, 33])
@pytest.mark.parametrize("channels", [1, 15, 16, 17])
def test_sizes_around_blocks(cuda_kernels: ModuleType, channels: int, width: int) -> None:
    """A block has 32 pixels, and 16 warps that share their channels."""
    levels = make_levels(MapCase("", ((channels, 1, width),), 11))
    found = run(cuda_kernels, *levels, size=11)
    np.testing.assert_allclose(found, torch_map(*levels, size=11), atol=ROUNDING)


def test_what_is_not_finite_reaches_the_map(cuda_kernels: ModuleType) -> None:
    targets, restored = make_levels(CASES[0])
    restored[0][3, 8, 8] = np.nan
    assert np.isnan(run(cuda_kernels, targets, restored, size=64)).any()


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="a device has no schedule to set")
def test_the_order_of_threads_does_not_matter(cuda_kernels: ModuleType) -> None:
    levels = make_levels(CASES[0])
    expected = run(cuda_kernels, *levels, size=64)
    for seed in (1, 2, 3):
        cuda_kernels.set_schedule(seed)
        try:
            found = run(cuda_kernels, *levels, size=64)
        finally:
            cuda_kernels.set_schedule(0)
        np.testing.assert_array_equal(found, expected)
