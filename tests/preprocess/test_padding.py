from __future__ import annotations

import numpy as np
import pytest

from mmad_fast.preprocess.padding import pad_image, square_padding


@pytest.mark.parametrize(
    ("size", "padding"),
    [
        ((800, 800), (0, 0, 0, 0)),
        ((900, 400), (0, 0, 250, 250)),  # rope
        ((600, 800), (100, 100, 0, 0)),  # tire
        ((256, 256), (0, 0, 0, 0)),
        ((5, 8), (1, 2, 0, 0)),  # the odd pixel goes to the bottom
        ((8, 3), (0, 0, 2, 3)),
        ((1, 1), (0, 0, 0, 0)),
    ],
)
def test_the_scan_becomes_a_centred_square(size, padding) -> None:
    assert square_padding(size) == padding


@pytest.mark.parametrize("size", [(900, 400), (600, 800), (500, 500), (300, 700)])
def test_multiples_of_100_are_padded_as_published(size: tuple[int, int]) -> None:
    height, width = size
    side = max(-(-height // 100) * 100, -(-width // 100) * 100)
    top, left = (side - height) // 2, (side - width) // 2
    assert square_padding(size) == (top, side - height - top, left, side - width - left)


def test_edge_repeats_the_outermost_pixels_and_zero_is_zero() -> None:
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    assert pad_image(image, (1, 2, 0, 0), "zero").tolist() == [
        [0, 0, 0],
        [1, 2, 3],
        [4, 5, 6],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert pad_image(image, (1, 1, 1, 0), "edge").tolist() == [
        [1, 1, 2, 3],
        [1, 1, 2, 3],
        [4, 4, 5, 6],
        [4, 4, 5, 6],
    ]


def test_channels_are_not_padded() -> None:
    image = np.ones((2, 4, 3), np.uint8)
    assert pad_image(image, (1, 1, 0, 0), "zero").sum(axis=(0, 1)).tolist() == [8, 8, 8]
