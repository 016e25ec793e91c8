"""A plain folder of scans: rgb/*.png with xyz/*.tiff, or name.png beside name.tiff.

Nothing is known of the scans: all are of split "test" and of no defect type.
"""

from __future__ import annotations

from pathlib import Path

from mmad_fast.data.pairing import PNG, TIFF, files_by_stem, paired_stems, require_folder
from mmad_fast.data.scan_file import ScanFile, Split
from mmad_fast.errors import DataError

LAYOUT = "rgb/*.png with xyz/*.tiff, or <name>.png beside <name>.tiff (folder of pairs)"


def find_categories(root: Path) -> dict[str, Path]:
    """The folder's name -> the folder; empty if it holds no scans.

    A folder counts when it has rgb/ and xyz/, or both PNG and TIFF files.
    """
    if _has_rgb_and_xyz(root) or (files_by_stem(root, PNG) and files_by_stem(root, TIFF)):
        return {root.resolve().name: root}
    return {}


def list_splits(folder: Path) -> tuple[Split, ...]:
    """Always ("test",)."""
    return ("test",)


def list_scans(category: str, folder: Path, split: Split) -> tuple[ScanFile, ...]:
    """The folder's scans by name, at least one.

    Args:
        category: The folder's name.
        folder: The folder.
        split: Must be "test".

    Raises:
        DataError: a file has no partner, there is no scan, or another split is asked for.
    """
    if split != "test":
        raise DataError(
            f"{folder} is a plain folder of scans, which has no {split!r} split (all its scans are "
            f"'test'); for training use {'<category>/train/good/{rgb,xyz}'}"
        )
    nested = _has_rgb_and_xyz(folder)
    rgb_folder, xyz_folder = (folder / "rgb", folder / "xyz") if nested else (folder, folder)
    rgb = files_by_stem(require_folder(rgb_folder), PNG)
    xyz = files_by_stem(xyz_folder, TIFF)
    stems = paired_stems(
        rgb, xyz, first_at=f"{rgb_folder} (*.png)", second_at=f"{xyz_folder} (*.tiff)"
    )
    return tuple(
        ScanFile(
            name=stem,
            category=category,
            split="test",
            defect="",
            rgb_path=rgb[stem],
            xyz_path=xyz[stem],
        )
        for stem in stems
    )


def _has_rgb_and_xyz(folder: Path) -> bool:
    return (folder / "rgb").is_dir() and (folder / "xyz").is_dir()
