from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.family import get_recipe
from mmad_fast.preprocess import prepare_ground_truth
from mmad_fast.preprocess.background_plane import PIXEL_FOREGROUND, PIXEL_MISSING, PIXEL_REMOVED
from mmad_fast.preprocess.padding import pad_image, square_padding
from mmad_fast.preprocess.resizing import resize_map_to_native, resize_rgb, resize_xyz

SIZES = [(1, 1), (5, 7), (7, 5), (63, 40), (223, 224), (224, 224), (225, 225), (256, 256)]
SIZES += [(320, 320), (400, 900), (448, 448), (600, 800), (672, 100)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fill", ["edge", "zero"])
def test_rgb_is_pillows_bicubic_of_the_padded_image(size: tuple[int, int], fill: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    padding = square_padding(size)
    recipe = get_recipe("cfm" if fill == "edge" else "m3dm")
    square = np.pad(
        rgb, (padding[:2], padding[2:], (0, 0)), mode="edge" if fill == "edge" else "constant"
    )
    expected = Image.fromarray(square).resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_rgb(rgb, padding, recipe, size=224), np.asarray(expected))


def padded_xyz(xyz: np.ndarray) -> np.ndarray:
    return pad_image(xyz, square_padding(xyz.shape[:2]), "zero")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid_size", [1, 28, 192, 224])
def test_xyz_is_torchs_nearest_of_the_padded_scan(size: tuple[int, int], grid_size: int) -> None:
    torch = pytest.importorskip("torch", reason="torch (extra 'fit') is the oracle")
    xyz = np.random.default_rng(1).uniform(0.1, 1, (*size, 3)).astype(np.float32)
    square = torch.from_numpy(padded_xyz(xyz)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(square, size=(grid_size, grid_size), mode="nearest")
    resized = resize_xyz(xyz, None, square_padding(size), size=grid_size)
    np.testing.assert_array_equal(resized, expected[0].permute(1, 2, 0).numpy())


def test_nearest_indices_are_torchs_at_every_side_up_to_1200() -> None:
    torch = pytest.importorskip("torch", reason="torch (extra 'fit') is the oracle")
    for side in range(1, 1201):
        row = np.arange(1, side + 1, dtype=np.float32)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(row)[None, None], size=224, mode="nearest"
        )[0, 0].numpy()
        xyz = np.ones((side, 1, 3), np.float32) * row[:, None, None]
        padding = (0, 0, 0, side - 1)
        np.testing.assert_array_equal(resize_xyz(xyz, None, padding, size=224)[:, 0, 0], expected)


def test_only_foreground_is_taken() -> None:
    xyz = np.full((2, 2, 3), 0.5, np.float32)
    states = np.array(
        [[PIXEL_FOREGROUND, PIXEL_REMOVED], [PIXEL_MISSING, PIXEL_FOREGROUND]], np.uint8
    )
    resized = resize_xyz(xyz, states, (0, 0, 0, 0), size=2)
    assert (resized[..., 0] != 0).tolist() == [[True, False], [False, True]]
    assert (xyz == 0.5).all(), "the scan must be left as it is"


def test_a_partly_zero_pixel_is_not_taken() -> None:
    xyz = np.array([[[0.0, 1, 1], [1, 1, 1]]], np.float32)
    resized = resize_xyz(xyz, None, (0, 1, 0, 0), size=2)
    assert resized.tolist() == [[[0, 0, 0], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["cfm", "m3dm"])
@pytest.mark.parametrize("grid_size", [7, 224])
def test_ground_truth_is_pillows_nearest_of_the_padded_mask(
    size: tuple[int, int], name: str, grid_size: int
) -> None:
    mask = np.random.default_rng(2).random(size) > 0.5
    fill = "edge" if name == "cfm" else "zero"
    square = pad_image(mask, square_padding(size), fill).astype(np.uint8) * 255
    expected = Image.fromarray(square).resize((grid_size, grid_size), Image.Resampling.NEAREST)
    prepared = prepare_ground_truth(mask, get_recipe(name), grid_size=grid_size)
    assert prepared.dtype == np.bool_
    np.testing.assert_array_equal(prepared, np.asarray(expected) / 255 > 0.5)


@pytest.mark.parametrize(
    "mask", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), bool), np.zeros((0, 4), bool)]
)
def test_a_mask_of_another_kind_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match=r"must be bool \(H, W\)"):
        prepare_ground_truth(mask, get_recipe("cfm"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid_size", [1, 28, 224])
def test_a_map_goes_back_as_by_torchs_bilinear(size: tuple[int, int], grid_size: int) -> None:
    torch = pytest.importorskip("torch", reason="torch (extra 'fit') is the oracle")
    anomaly_map = np.random.default_rng(3).random((grid_size, grid_size)).astype(np.float32)
    top, bottom, left, right = padding = square_padding(size)
    side = max(size)
    square = torch.nn.functional.interpolate(
        torch.from_numpy(anomaly_map)[None, None],
        size=(side, side),
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    expected = square[top : side - bottom, left : side - right]
    native = resize_map_to_native(anomaly_map, size, padding)
    assert native.dtype == np.float32
    np.testing.assert_allclose(native, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_map_of_a_stretched_scan_is_stretched_back(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch", reason="torch (extra 'fit') is the oracle")
    anomaly_map = np.random.default_rng(3).random((28, 28)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(anomaly_map)[None, None], size=size, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    native = resize_map_to_native(anomaly_map, size, (0, 0, 0, 0))
    np.testing.assert_allclose(native, expected, rtol=0, atol=1e-5)


def test_a_map_is_not_brought_to_a_size_that_is_not_its_own() -> None:
    with pytest.raises(InvalidInputError, match="must be square"):
        resize_map_to_native(np.zeros((8, 8), np.float32), (4, 6), (1, 0, 0, 0))
    with pytest.raises(InvalidInputError, match=r"must be \(S, S\)"):
        resize_map_to_native(np.zeros((8, 9), np.float32), (4, 4), (0, 0, 0, 0))
