"""The folder layout of MVTec 3D-AD: reading it and writing it.

    <root>/<category>/{train,validation}/good/{rgb,xyz}/<name>.{png,tiff}
    <root>/<category>/test/<defect>|good/{rgb,xyz,gt}/<name>.{png,tiff,png}

Pictures of surface normals may lie in normals/ beside rgb/ and xyz/.
Masks are looked for in gt/ and ground_truth/, and as in MVTec AD in
<category>/ground_truth/<defect>/<name>_mask.png; a scan may have none. Good parts may lie in ok/,
nominal/ or normal/ too, in capitals or not: they never count as a defect.
The category's `calibration` folder is not read: XYZ is registered with RGB pixel by pixel.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mmad_fast.data.own_pictures import own_pictures
from mmad_fast.data.pairing import (
    PNG,
    composed,
    files_by_stem,
    normals_of,
    pairs_of,
    require_folder,
    subfolders,
)
from mmad_fast.data.scan_file import GOOD, GOOD_NAMES, SPLITS, ScanFile, Split, is_good
from mmad_fast.errors import DataError

LAYOUT = "<category>/{train,validation,test}/<good or defect>/{rgb,xyz,gt} (MVTec 3D-AD)"


def find_categories(root: Path) -> dict[str, Path]:
    """Category name -> folder; empty if this is not the layout.

    Args:
        root: The data set, or the folder of one category (it has train/ or test/ in it).
    """
    if _is_category(root):
        return {composed(root.resolve().name): root}
    return {composed(folder.name): folder for folder in subfolders(root) if _is_category(folder)}


def list_splits(folder: Path) -> tuple[Split, ...]:
    """The splits a category folder has: some of train, validation, test."""
    return tuple(split for split in SPLITS if (folder / split).is_dir())


def list_scans(category: str, folder: Path, split: Split) -> tuple[ScanFile, ...]:
    """The scans of one split, at least one: good ones first, then by defect and name.

    A file without partner is a scan with a problem, and so is a test folder that cannot be listed.

    Args:
        category: The category's name.
        folder: The category's folder.
        split: Which split; train and validation hold good scans only.

    Raises:
        DataError: the split's folder, or that of its good scans, is missing or empty.
    """
    split_folder = require_folder(folder / split)
    if split != "test":
        good = _good_folders(split_folder)
        return tuple(scan for path in good for scan in _scans_of_folder(category, split, path))
    lost = [path for path in split_folder.iterdir() if path.is_symlink() and not path.exists()]
    folders = [path for path in subfolders(split_folder) if not _holds_pictures_alone(path)] + lost
    if not folders:
        raise DataError(
            f"{split_folder} is empty; it needs a folder per defect type, and one named {GOOD!r}"
        )
    by_kind = sorted(folders, key=lambda path: (not is_good(path.name), path.name))
    return tuple(scan for path in by_kind for scan in _test_scans(category, path))


def write_scan(
    folder: Path,
    stem: str,
    rgb: NDArray[np.uint8],
    xyz: NDArray[np.float32],
    *,
    ground_truth: NDArray[np.bool_] | None = None,
    normals: NDArray[np.uint8] | None = None,
) -> None:
    """Nothing; writes one scan into `folder`/{rgb,xyz,gt,normals}.

    Args:
        folder: E.g. <root>/cookie/test/crack; made if needed.
        stem: The files' name without suffix, e.g. "003".
        rgb: (H, W, 3) uint8.
        xyz: (H, W, 3) float32 metres; (0, 0, 0) is missing.
        ground_truth: (H, W) bool, True where anomalous; None writes no mask.
        normals: (H, W, 3) uint8 picture of the surface normals; None writes none.
    """
    for name, image in (("rgb", rgb), ("xyz", xyz), ("gt", ground_truth), ("normals", normals)):
        if image is not None:
            (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(folder / "rgb" / f"{stem}.png", compress_level=1)
    if normals is not None:
        Image.fromarray(normals).save(folder / "normals" / f"{stem}.png", compress_level=1)
    # Not compressed: zlib saves a third of the space and takes a third more time to write a scan.
    tifffile.imwrite(folder / "xyz" / f"{stem}.tiff", xyz, photometric="rgb", metadata=None)
    if ground_truth is not None:
        mask = ground_truth.astype(np.uint8) * np.uint8(255)
        Image.fromarray(mask).save(folder / "gt" / f"{stem}.png", compress_level=1)


def _is_category(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def _good_folders(split_folder: Path) -> list[Path]:
    """The folders of good parts' scans, at least one.

    Raises:
        DataError: there is none; says what is there instead.
    """
    folders = subfolders(split_folder)
    good = [path for path in folders if is_good(path.name)]
    if not good:
        there = ", ".join(path.name for path in folders) or "no folders"
        raise DataError(
            f"{split_folder / GOOD} is missing; scans of good parts belong there (also read: "
            f"{', '.join(GOOD_NAMES[1:])}). Found: {there}"
        )
    return good


def _holds_pictures_alone(folder: Path) -> bool:
    """Whether `infer` wrote its pictures there: they are no defect type."""
    return bool(own_pictures((folder,))) and not any(
        (folder / kind).exists() for kind in ("rgb", "xyz")
    )


def _test_scans(category: str, folder: Path) -> tuple[ScanFile, ...]:
    """The scans of a test folder; one that cannot be listed is a scan with a problem."""
    try:
        return _scans_of_folder(category, "test", folder)
    except DataError as error:
        return (
            ScanFile(
                name=f"{category}/test/{composed(folder.name)}",
                category=category,
                split="test",
                defect=GOOD if is_good(folder.name) else composed(folder.name),
                rgb_path=folder / "rgb",
                xyz_path=folder / "xyz",
                problem=str(error),
            ),
        )


def _scans_of_folder(category: str, split: Split, folder: Path) -> tuple[ScanFile, ...]:
    name = composed(folder.name)
    pairs = pairs_of(folder / "rgb", folder / "xyz")
    masks = {} if is_good(name) else _masks(folder)
    normals = normals_of(folder)
    return tuple(
        ScanFile(
            name=f"{category}/{split}/{name}/{pair.stem}",
            category=category,
            split=split,
            defect=GOOD if is_good(name) else name,
            rgb_path=pair.rgb_path,
            xyz_path=pair.xyz_path,
            ground_truth_path=masks.get(pair.stem, masks.get(f"{pair.stem}_mask")),
            problem=pair.problem,
            normals_path=normals.get(pair.stem),
        )
        for pair in pairs
    )


def _masks(folder: Path) -> dict[str, Path]:
    """The masks of a test folder by stem; those nearest to the scans go before the others.

    A folder of masks that cannot be read has none: who scores scans does not need them.
    """
    of_category = folder.parent.parent / "ground_truth"
    siblings = subfolders(of_category) if of_category.is_dir() else ()
    same_name = [path for path in siblings if composed(path.name) == composed(folder.name)]
    masks: dict[str, Path] = {}
    for place in (*same_name, folder / "ground_truth", folder / "gt"):
        with suppress(DataError):
            masks |= {stem: files[0] for stem, files in files_by_stem(place, PNG).items()}
    return masks
