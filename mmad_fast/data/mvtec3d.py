"""The folder layout of MVTec 3D-AD: reading it and writing it.

    <root>/<category>/{train,validation}/good/{rgb,xyz}/<name>.{png,tiff}
    <root>/<category>/test/<defect>|good/{rgb,xyz,gt}/<name>.{png,tiff,png}

The category's `calibration` folder is not read: XYZ is registered with RGB pixel by pixel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mmad_fast.data.pairing import (
    PNG,
    TIFF,
    files_by_stem,
    paired_stems,
    require_folder,
    subfolders,
)
from mmad_fast.data.scan_file import GOOD, SPLITS, ScanFile, Split
from mmad_fast.errors import DataError

LAYOUT = "<category>/{train,validation,test}/<good or defect>/{rgb,xyz,gt} (MVTec 3D-AD)"


def find_categories(root: Path) -> dict[str, Path]:
    """Category name -> folder; empty if this is not the layout.

    Args:
        root: The data set, or the folder of one category (it has train/ or test/ in it).
    """
    if _is_category(root):
        return {root.resolve().name: root}
    return {folder.name: folder for folder in subfolders(root) if _is_category(folder)}


def list_splits(folder: Path) -> tuple[Split, ...]:
    """The splits a category folder has: some of train, validation, test."""
    return tuple(split for split in SPLITS if (folder / split).is_dir())


def list_scans(category: str, folder: Path, split: Split) -> tuple[ScanFile, ...]:
    """The scans of one split, at least one: good ones first, then by defect and name.

    Args:
        category: The category's name.
        folder: The category's folder.
        split: Which split; train and validation hold good scans only.

    Raises:
        DataError: a folder is missing or empty, or a file has no partner of the same stem.
    """
    split_folder = require_folder(folder / split)
    if split != "test":
        return _scans_of_folder(category, split, split_folder / GOOD)
    folders = sorted(subfolders(split_folder), key=lambda path: (path.name != GOOD, path.name))
    if not folders:
        raise DataError(
            f"{split_folder} is empty; it needs a folder per defect type, and one named {GOOD!r}"
        )
    return tuple(scan for path in folders for scan in _scans_of_folder(category, split, path))


def write_scan(
    folder: Path,
    stem: str,
    rgb: NDArray[np.uint8],
    xyz: NDArray[np.float32],
    *,
    ground_truth: NDArray[np.bool_] | None = None,
) -> None:
    """Nothing; writes one scan into `folder`/{rgb,xyz,gt}.

    Args:
        folder: E.g. <root>/cookie/test/crack; made if needed.
        stem: The files' name without suffix, e.g. "003".
        rgb: (H, W, 3) uint8.
        xyz: (H, W, 3) float32 metres; (0, 0, 0) is missing.
        ground_truth: (H, W) bool, True where anomalous; None writes no mask.
    """
    for name in ("rgb", "xyz", "gt")[: 2 if ground_truth is None else 3]:
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(folder / "rgb" / f"{stem}.png", compress_level=1)
    # Not compressed: zlib saves a third of the space and takes a third more time to write a scan.
    tifffile.imwrite(folder / "xyz" / f"{stem}.tiff", xyz, photometric="rgb", metadata=None)
    if ground_truth is not None:
        mask = ground_truth.astype(np.uint8) * np.uint8(255)
        Image.fromarray(mask).save(folder / "gt" / f"{stem}.png", compress_level=1)


def _is_category(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def _scans_of_folder(category: str, split: Split, folder: Path) -> tuple[ScanFile, ...]:
    defect = require_folder(folder).name
    rgb = files_by_stem(folder / "rgb", PNG)
    xyz = files_by_stem(folder / "xyz", TIFF)
    rgb_at = f"{folder / 'rgb'} (*.png)"
    stems = paired_stems(rgb, xyz, first_at=rgb_at, second_at=f"{folder / 'xyz'} (*.tiff)")
    masks: dict[str, Path] = {}
    if defect != GOOD:
        masks = files_by_stem(folder / "gt", PNG)
        paired_stems(rgb, masks, first_at=rgb_at, second_at=f"{folder / 'gt'} (*.png)")
    return tuple(
        ScanFile(
            name=f"{category}/{split}/{defect}/{stem}",
            category=category,
            split=split,
            defect=defect,
            rgb_path=rgb[stem],
            xyz_path=xyz[stem],
            ground_truth_path=masks.get(stem),
        )
        for stem in stems
    )
