"""Foreground weights and bicubic upsampling against scipy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation

from mmad_fast.methods.ast.scoring import foreground_weights, upsample_bicubic


@pytest.mark.parametrize("size", [64, 192])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 1.0])
def test_weights_are_the_dilated_foreground_made_small(size: int, share: float) -> None:
    foreground = np.random.default_rng(0).random((size, size)) < share
    dilated = binary_dilation(foreground, np.ones((8, 8)))
    image = torch.from_numpy(dilated.astype(np.float32))[None, None]
    small = F.interpolate(image, size=(size // 8,) * 2, mode="bilinear", align_corners=False)
    found = foreground_weights(foreground, side=size // 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, small[0, 0].numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [1, 2, 5, 24])
def test_upsampling_is_torchs_bicubic(side: int) -> None:
    small = np.random.default_rng(side).random((side, side)).astype(np.float32)
    expected = F.interpolate(
        torch.from_numpy(small)[None, None], scale_factor=8, mode="bicubic", align_corners=False
    )[0, 0].numpy()
    found = upsample_bicubic(small, size=8 * side)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
