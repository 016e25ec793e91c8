"""cosine_maps against plain torch and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.map_cases import CASES, MapCase, make_levels, torch_map

from mmad_fast import _kernels
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.ops.cosine_maps import cosine_maps

BACKENDS = ("cpu", "reference")
by_name = {"ids": lambda case: case.name}
ROUNDING = 3e-7
"""Of results up to 4 to float32."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("sigma", [0, 0.1, 1.5, 4, 30])
@pytest.mark.parametrize("case", CASES, **by_name)
def test_maps_equal_torch_and_scipy(
    case: MapCase, sigma: float, align_corners: bool, backend: str
) -> None:
    """Up to the one rounding to float32. Wide Gaussians are mirrored as often as it takes."""
    levels = make_levels(case)
    options = {"size": case.size, "sigma": sigma, "align_corners": align_corners}
    found = cosine_maps(*levels, backend=backend, **options)
    assert found.dtype == np.float32
    expected = torch_map(*levels, **options)
    assert (np.abs(found - expected) <= 0.51 * np.spacing(np.abs(found)) + 1e-14).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pixel_of_zeros_is_as_far_as_one_across(backend: str) -> None:
    target = np.zeros((2, 1, 3), np.float32)
    target[0] = 3e-5
    restored = np.stack([[[2.0, 0.0, 0.0]], [[0.0, 1e-30, 0.0]]]).astype(np.float32)
    found = cosine_maps([target], [restored], size=3, sigma=0, backend=backend)
    np.testing.assert_allclose(found, np.tile([0, 1, 1], (3, 1)), atol=1e-7)


@pytest.mark.parametrize("scale", [1e-6, 1e15, 3e37])
def test_the_scale_of_the_features_does_not_matter(scale: float) -> None:
    """Squares beyond float32's range, too."""
    targets, restored = make_levels(CASES[0])
    largest = max(float(np.abs(one).max()) for one in (*targets, *restored))
    expected = cosine_maps(targets, restored, size=64)
    scaled = [
        [(one / largest * scale).astype(np.float32) for one in maps] for maps in (targets, restored)
    ]
    np.testing.assert_allclose(cosine_maps(*scaled, size=64), expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 50),
    sigma=st.floats(0, 20),
    align_corners=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_level_that_is_everywhere_alike_stays_so(
    height: int, width: int, size: int, sigma: float, align_corners: bool, seed: int
) -> None:
    """Weights of every place sum to 1."""
    target, other = np.random.default_rng(seed).standard_normal((2, 5)).astype(np.float32)
    cosine = float(target @ other / np.linalg.norm(target) / np.linalg.norm(other))
    maps = [np.tile(one[:, None, None], (1, height, width)) for one in (target, other)]
    found = cosine_maps([maps[0]], [maps[1]], size=size, sigma=sigma, align_corners=align_corners)
    np.testing.assert_allclose(found, 1 - cosine, atol=1e-6)


def test_levels_add_up_in_any_order() -> None:
    targets, restored = make_levels(CASES[3])
    whole = cosine_maps(targets, restored, size=63)
    turned = cosine_maps(targets[::-1], restored[::-1], size=63)
    single = sum(
        cosine_maps([one], [other], size=63) for one, other in zip(targets, restored, strict=True)
    )
    np.testing.assert_allclose(turned, whole, atol=ROUNDING)
    np.testing.assert_allclose(single, whole, atol=3 * ROUNDING)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_read_only_and_float64_maps(backend: str) -> None:
    targets, restored = make_levels(CASES[0])
    expected = cosine_maps(targets, restored, size=64, backend=backend)
    views = []
    for one in targets:
        wide = np.full((*one.shape[:2], 2 * one.shape[2]), np.nan, np.float32)
        wide[..., ::2] = one
        wide.flags.writeable = False
        views.append(wide[..., ::2])
    exact = [one.astype(np.float64) for one in restored]
    np.testing.assert_array_equal(cosine_maps(views, exact, size=64, backend=backend), expected)


def test_every_value_is_written_and_nothing_beside() -> None:
    targets, restored = make_levels(CASES[3])
    whole = np.full(65 * 63, np.nan, np.float32)
    result = whole[63:-63].reshape(63, 63)
    _kernels.cosine_maps(targets, restored, 4.0, True, result)
    np.testing.assert_array_equal(result, cosine_maps(targets, restored, size=63))
    assert np.isnan(whole[:63]).all()
    assert np.isnan(whole[-63:]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["targets", "restored"])
def test_a_value_that_is_not_finite_is_named(name: str, value: float, backend: str) -> None:
    maps = dict(zip(("targets", "restored"), make_levels(CASES[0]), strict=True))
    maps[name][1][3, 2, 5] = value
    with pytest.raises(InvalidInputError, match=rf"{name}\[1\] has 1 values that are NaN or inf"):
        cosine_maps(**maps, size=64, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_value_is_named_that_no_place_of_the_map_reads(backend: str) -> None:
    target = np.ones((3, 16, 16), np.float32)
    restored = target.copy()
    restored[2, 5, 9] = np.nan
    for size in (1, 2):
        with pytest.raises(InvalidInputError, match=r"restored\[0\] has 1 values that are NaN"):
            cosine_maps([target], [restored], size=size, sigma=0, backend=backend)


MAP = np.ones((3, 4, 5), np.float32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": MAP}, r"targets is a ndarray; it must be a list of the maps \(C, H, W\)"),
        ({"restored": []}, "restored is empty"),
        ({"targets": [MAP, MAP]}, "there are 2 targets and 1 restored maps"),
        ({"targets": [MAP[0]]}, r"targets\[0\] has shape \(4, 5\); it must be \(C, H, W\)"),
        ({"targets": [MAP[:0]], "restored": [MAP[:0]]}, "not empty"),
        ({"restored": [MAP[:2]]}, r"restored\[0\] has shape \(2, 4, 5\) and targets\[0\] has"),
        ({"restored": [MAP.astype(np.float16)]}, r"dtype float16; it must be float32"),
        ({"targets": [torch.ones(3, 4, 5)]}, r"targets\[0\] is a torch.Tensor"),
        ({"targets": [np.ones((1, 1, 5000), "f4")]}, r"H and W in 1\.\.4096"),
        ({"size": 0}, "size is 0; it must be in 1..4096"),
        ({"size": 2.0}, "size is 2.0; it must be an integer"),
        ({"sigma": -1}, r"sigma is -1; it must be a number in 0\.\.64"),
        ({"sigma": np.nan}, "sigma is nan"),
        ({"sigma": "wide"}, "sigma is 'wide'"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], words: str) -> None:
    usual: dict[str, Any] = {"targets": [MAP], "restored": [MAP], "size": 8}
    with pytest.raises(InvalidInputError, match=words):
        cosine_maps(**usual | arguments)


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="triton"):
        cosine_maps([MAP], [MAP], size=8, backend="triton")
