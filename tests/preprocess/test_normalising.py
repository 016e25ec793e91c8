from __future__ import annotations

import numpy as np

from mmad_fast.methods.family import get_recipe
from mmad_fast.preprocess.normalising import normalise_rgb


def test_every_level_is_normalised_as_by_imagenet_statistics() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = np.stack([levels, levels[::-1], levels.T], axis=-1)
    normalised = normalise_rgb(rgb, get_recipe("cfm"))
    assert normalised.shape == (3, 16, 16)
    assert normalised.dtype == np.float32
    assert normalised.flags.c_contiguous
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((rgb / 255.0 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(normalised, expected, atol=5e-7)
