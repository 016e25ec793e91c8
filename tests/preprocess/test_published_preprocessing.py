"""The foreground against the published recipe, on rendered scans kept beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mmad_fast.errors import MissingDependencyError
from mmad_fast.methods.family import get_recipe
from mmad_fast.preprocess import segment_foreground
from mmad_fast.preprocess.background_plane import PIXEL_FOREGROUND
from mmad_fast.preprocess.reference import import_open3d, published_clean_up, published_foreground

SHARED = Path(os.environ.get("MMAD_FAST_SHARED", Path(__file__).parents[2] / ".." / "shared"))
RENDERED = SHARED / "data" / "rendered3d"


@pytest.fixture(scope="module", autouse=True)
def _open3d() -> None:
    try:
        import_open3d()
    except MissingDependencyError as error:
        pytest.skip(str(error))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.skipif(not RENDERED.is_dir(), reason=f"no rendered scans at {RENDERED}")
@pytest.mark.parametrize("category", ["cookie", "gear", "potato"])
def test_the_foreground_is_that_of_the_published_recipe(category: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    paths = sorted((RENDERED / category).glob("*/*/xyz/*.tiff"))
    assert len(paths) >= 40, "the set is incomplete"
    for path in paths[::15]:
        xyz = tifffile.imread(path)
        states = segment_foreground(xyz, get_recipe("cfm")).states
        agreement = iou(states == PIXEL_FOREGROUND, published_foreground(xyz))
        assert agreement >= 0.99, f"{path.parent.parent.name}/{path.name}: IoU {agreement:.4f}"


def test_the_foreground_of_a_made_up_scan_is_that_of_the_published_recipe(make_table_scan) -> None:
    xyz = make_table_scan().xyz.copy()
    xyz[14:22, 14:22, 2] = 0.44  # a second, smaller object
    states = segment_foreground(xyz, get_recipe("cfm")).states
    assert iou(states == PIXEL_FOREGROUND, published_foreground(xyz)) >= 0.99


def test_the_published_clean_up_of_nothing_is_nothing() -> None:
    nothing = np.zeros((4, 4), bool)
    assert not published_clean_up(np.ones((4, 4, 3), np.float32), nothing).any()
