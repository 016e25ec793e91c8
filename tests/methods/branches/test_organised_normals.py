"""Normals of a pixel grid: the kernel against their definition, and what has no surface."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmad_fast.methods.branches.organised_normals.extractor import (
    normals_picture,
    organised_surface,
)
from mmad_fast.methods.branches.organised_normals.reference import (
    reference_picture,
    reference_surface,
)
from mmad_fast.threads import get_num_threads, set_num_threads

AWAY = (0.0, 0.0, -1.0)
"""Of a surface that faces the camera, and of a point without one: z points away from the camera."""
SPACING_M = 6e-4


def grid_points(size: int, depth: NDArray[np.float64] | float) -> NDArray[np.float32]:
    """(size, size, 3) points half a metre away, some of them left and some right of the axis."""
    rows, columns = np.mgrid[:size, :size] - size / 3
    z = np.broadcast_to(0.5 + np.asarray(depth), (size, size))
    return np.stack([columns * SPACING_M, rows * SPACING_M, z], axis=-1).astype(np.float32)


def rough_points(size: int = 63, seed: int = 0) -> NDArray[np.float32]:
    """Noise on waves that reach the image's rim, with holes and single points."""
    rng = np.random.default_rng(seed)
    waves = 0.002 * np.sin(np.arange(size) / 5)[:, None] * np.cos(np.arange(size) / 7)
    xyz = grid_points(size, waves + rng.normal(0, 1e-4, (size, size)))
    xyz[rng.random((size, size)) < 0.1] = 0
    xyz[20:30, 5:25] = 0
    xyz[25, 15] = (0.001, 0.002, 0.5)  # alone
    return xyz


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.2, 4.0])
@pytest.mark.parametrize("size", [7, 63])
def test_equals_its_definition(size: int, sigma: float) -> None:
    xyz = rough_points() if size == 63 else rough_points()[:7, :7].copy()
    surface = organised_surface(xyz, sigma=sigma)
    points, normals = reference_surface(xyz, sigma)
    np.testing.assert_allclose(surface.points, points, rtol=0, atol=4e-8)  # float32 at 0.5 m
    np.testing.assert_allclose(surface.normals, normals, rtol=0, atol=2e-6)
    is_point = xyz[..., 2] != 0
    assert (surface.points[~is_point] == 0).all()
    assert (surface.normals[~is_point] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(surface.normals[is_point], axis=1), 1, rtol=1e-6)
    assert ((surface.normals * surface.points).sum(axis=-1)[is_point] < 0).all()  # to the camera


@pytest.mark.parametrize("sigma", [0.0, 1.2])
def test_a_plane_has_one_normal_also_at_rims_and_holes(sigma: float) -> None:
    columns, rows = np.meshgrid(np.arange(40), np.arange(40))
    xyz = grid_points(40, (0.3 * columns - 0.2 * rows) * SPACING_M)
    xyz[10:14, 8:20] = 0
    xyz[30:, 35:] = 0
    wanted = np.array([0.3, -0.2, -1]) / np.linalg.norm([0.3, -0.2, -1])
    normals = organised_surface(xyz, sigma=sigma).normals
    np.testing.assert_allclose(
        normals[xyz[..., 2] != 0], np.broadcast_to(wanted, ((xyz[..., 2] != 0).sum(), 3)), atol=3e-4
    )  # float32 depths


@pytest.mark.parametrize("sigma", [0.0, 1.2])
@pytest.mark.parametrize(
    "pixels", [[(3, 4)], [(3, 4), (3, 5)], [(3, 4), (9, 9)], [(5, i) for i in range(8)]],
    ids=["one", "two beside each other", "two apart", "a line"],
)  # fmt: skip
def test_too_few_points_for_a_surface_face_the_camera(
    pixels: list[tuple[int, int]], sigma: float
) -> None:
    xyz, whole = np.zeros((12, 12, 3), np.float32), grid_points(12, 0)
    for pixel in pixels:
        xyz[pixel] = whole[pixel]
    normals = organised_surface(xyz, sigma=sigma).normals
    for pixel in pixels:
        np.testing.assert_array_equal(normals[pixel], AWAY)
    assert np.count_nonzero(normals) == len(pixels)


@pytest.mark.parametrize("sigma", [0.0, 1.2])
def test_constant_depth_and_no_points(sigma: float) -> None:
    flat = organised_surface(grid_points(16, 0), sigma=sigma).normals
    np.testing.assert_allclose(flat, np.broadcast_to(AWAY, flat.shape), atol=1e-6)
    nothing = organised_surface(np.zeros((16, 16, 3), np.float32), sigma=sigma)
    assert not nothing.points.any()
    assert not nothing.normals.any()


def test_points_in_one_place_face_the_camera() -> None:
    xyz = np.full((8, 8, 3), 0.5, np.float32)
    normals = organised_surface(xyz, sigma=1.2).normals
    np.testing.assert_array_equal(normals, np.broadcast_to(np.float32(AWAY), normals.shape))


def test_threads_change_nothing() -> None:
    xyz, before = rough_points(224), get_num_threads()
    try:
        found = []
        for count in (1, 3):
            set_num_threads(count)
            surface = organised_surface(xyz, sigma=1.2)
            found.append(
                (surface.points, surface.normals, normals_picture(surface.normals, size=9))
            )
    finally:
        set_num_threads(before)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [9, 40, 63, 111])
def test_the_picture_is_resized_as_torch_does(size: int) -> None:
    normals = organised_surface(rough_points(), sigma=1.2).normals
    picture = normals_picture(normals, size=size)
    wanted = reference_picture(normals.astype(np.float64), size)[0]
    torch.testing.assert_close(torch.from_numpy(picture), wanted, rtol=0, atol=2e-5)
    assert picture.max() > 1.5  # faces the camera: the third channel, turned round


def test_the_kernel_refuses_other_shapes() -> None:
    from mmad_fast import _kernels

    good, other = np.zeros((8, 8, 3), np.float32), np.zeros((8, 7, 3), np.float32)
    for arrays in ((other, good, good), (good, other, good), (good, good, other)):
        with pytest.raises(ValueError, match=r"\(S, S, 3\)"):
            _kernels.organised_normals(arrays[0], 1.0, arrays[1].copy(), arrays[2].copy())
    for sigma in (-1.0, 9.0, np.nan):
        with pytest.raises(ValueError, match="sigma out of range"):
            _kernels.organised_normals(good, sigma, good.copy(), good.copy())
    zero = (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"\(3, R, R\)"):
        _kernels.stretch_picture(good, zero, zero, np.zeros((3, 4, 5), np.float32))
