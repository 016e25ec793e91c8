"""A data set that the tests of the measurements share."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile
from conftest import make_arrays
from PIL import Image

from mmad_fast.data.dataset import Dataset, open_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Category "disc" with 2 scans in each of train and test."""
    for split in ("train", "test"):
        folder = tmp_path / "discs" / "disc" / split / "good"
        for index in range(2):
            rgb, xyz = make_arrays(index)
            for kind in ("rgb", "xyz"):
                (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(folder / "rgb" / f"{index:03d}.png")
            tifffile.imwrite(folder / "xyz" / f"{index:03d}.tiff", xyz, photometric="rgb")
    return open_dataset(tmp_path / "discs")
