from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import ndimage

from mmad_fast.methods.memory_bank import scoring


def bumps(side: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 2, (side, side)).astype(np.float32)


@pytest.mark.parametrize(("side", "size"), [(28, 224), (56, 224), (4, 56), (7, 13), (1, 5), (5, 5)])
def test_upsampling_is_that_of_torch(side: int, size: int) -> None:
    given = bumps(side)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(given)[None, None], size=(size, size), mode="bilinear"
    )[0, 0].numpy()
    got = scoring.upsample(given, size)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=5e-7)


def test_blur_in_8_bits_is_that_of_the_public_code() -> None:
    given = bumps(224)
    largest = torch.from_numpy(given).max()
    levels = (torch.from_numpy(given) / largest).mul(255).byte().numpy()
    blurred = Image.fromarray(levels, mode=None).filter(ImageFilter.GaussianBlur(radius=4))
    expected = torch.from_numpy(np.array(blurred)).to(torch.float32).div(255) * largest
    np.testing.assert_array_equal(scoring.blur_8bit(given), expected.numpy())


def test_blur_in_8_bits_of_nothing_is_nothing() -> None:
    np.testing.assert_array_equal(scoring.blur_8bit(np.zeros((9, 9), np.float32)), 0)


def test_float_blur_is_a_gaussian_with_replicated_edges() -> None:
    given = bumps(60)
    expected = ndimage.gaussian_filter(
        given.astype(np.float64), sigma=4, truncate=4, mode="nearest"
    )
    got = scoring.blur(given, blur="float")
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_both_blurs_are_nearly_one() -> None:
    """Pillow's three boxes and 8 bits against the Gaussian: within a few levels off the edges."""
    given = ndimage.gaussian_filter(bumps(224), 3).astype(np.float32)
    difference = scoring.blur(given, blur="pil8bit") - scoring.blur(given, blur="float")
    assert np.abs(difference[20:-20, 20:-20]).max() < 3 / 255 * given.max()


def test_reweighting_by_definition() -> None:
    largest, neighbors, width = 1.5, np.array([1.7, 2.5]), 16
    code = 1 - math.exp(1.5 / 4) / (math.exp(1.7 / 4) + math.exp(2.5 / 4))
    with_epsilon = 1 - math.exp(1.5 / 4) / (math.exp(1.7 / 4) + math.exp(2.5 / 4) + 0.01)
    divided = 1 - math.exp(0.015 / 4) / (math.exp(0.017 / 4) + math.exp(0.025 / 4))
    paper = 1 - math.exp(1.5) / (math.exp(1.5) + math.exp(1.7) + math.exp(2.5))

    def reweight(reweighting: str, **options: float) -> float:
        return scoring.reweight(
            largest, neighbors, num_channels=width, reweighting=reweighting, **options
        )

    assert reweight("code") == pytest.approx(code * 1.5, rel=1e-12)
    assert reweight("code", weight_epsilon=0.01) == pytest.approx(with_epsilon * 1.5, rel=1e-12)
    assert reweight("code", distance_divisor=100) == pytest.approx(divided * 0.015, rel=1e-12)
    assert reweight("paper") == pytest.approx(paper * 1.5, rel=1e-12)
    assert reweight("none") == 1.5


@pytest.mark.parametrize("reweighting", ["code", "paper", "none"])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4, 1e15])
def test_no_distance_is_too_large(reweighting: str, scale: float) -> None:
    score = scoring.reweight(
        1.0 * scale,
        np.array([1.0, 3.0]) * scale,
        num_channels=1152,
        reweighting=reweighting,
        weight_epsilon=1e-5,
    )
    assert 0 <= score <= scale


@pytest.mark.parametrize("reweighting", ["code", "paper", "none"])
def test_a_bank_without_other_rows_does_not_reweight(reweighting: str) -> None:
    score = scoring.reweight(2.0, np.empty(0), num_channels=4, reweighting=reweighting)
    assert score == 2.0


def test_distances_to_half_precision_rows() -> None:
    rows = np.array([[0, 3], [4, 0]], np.float16)
    query = np.array([4, 3], np.float32)
    np.testing.assert_array_equal(scoring.distances_to(query, rows), [4, 3])
