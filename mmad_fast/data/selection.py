"""What a command line names: one category of a data set, one scan, or a folder of scans."""

from __future__ import annotations

from pathlib import Path

from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.data.pairing import TIFF, files_by_stem
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.errors import DataError


def pick_category(dataset: Dataset, category: str | None) -> str:
    """The category that was asked for; without a name, the only one there is.

    Raises:
        DataError: no such category, or none was named and there are several.
    """
    names = dataset.categories()
    if category is None and len(names) == 1:
        return names[0]
    if category is None:
        raise DataError(
            f"{dataset.root} has {len(names)} categories; choose one with --category: "
            f"{', '.join(names)}"
        )
    if category not in names:
        raise DataError(f"{dataset.root} has no category {category!r}; it has: {', '.join(names)}")
    return category


def find_scan_files(path: Path, *, xyz_path: Path | None = None) -> tuple[ScanFile, ...]:
    """The scans at a path: the one whose RGB file it is, or those of a folder.

    Args:
        path: An RGB PNG, a folder of pairs, one category, or a data set (its test scans).
        xyz_path: XYZ TIFF of the one scan; None: the file of the same stem beside it, or in the
            folder xyz beside the folder rgb.

    Raises:
        DataError: nothing there, no XYZ file, or a folder in no known layout.
    """
    if path.is_file():
        return (_one_scan(path, xyz_path),)
    if xyz_path is not None:
        raise DataError(f"--xyz names the partner of one RGB file, but {path} is no file")
    dataset = open_dataset(path)
    return tuple(
        scan for category in dataset.categories() for scan in dataset.scans(category, "test")
    )


def _one_scan(rgb_path: Path, xyz_path: Path | None) -> ScanFile:
    return ScanFile(
        name=rgb_path.stem,
        category="",
        split="test",
        defect="",
        rgb_path=rgb_path,
        xyz_path=_partner(rgb_path) if xyz_path is None else xyz_path,
    )


def _partner(rgb_path: Path) -> Path:
    """The XYZ file that belongs to an RGB file, found as in a folder of scans."""
    parent = rgb_path.absolute().parent
    folders = [folder for folder in (parent, parent.parent / "xyz") if folder.is_dir()]
    for folder in folders:
        if path := files_by_stem(folder, TIFF).get(rgb_path.stem):
            return path
    raise DataError(
        f"{rgb_path}: no XYZ file found (looked for {rgb_path.stem}.tiff in "
        f"{', '.join(map(str, folders))}); name it with --xyz"
    )
