"""A plain folder of scans: rgb/*.png with xyz/*.tiff, or name.png beside name.tiff.

Pictures of surface normals may lie in normals/ beside rgb/ and xyz/. Nothing is known of the scans:
all are of split "test" and of no defect type.
"""

from __future__ import annotations

from pathlib import Path

from mmad_fast.data.pairing import PNG, TIFF, composed, files_by_stem, normals_of, pairs_of
from mmad_fast.data.scan_file import ScanFile, Split
from mmad_fast.errors import DataError

LAYOUT = "rgb/*.png with xyz/*.tiff, or <name>.png beside <name>.tiff (folder of pairs)"


def find_categories(root: Path) -> dict[str, Path]:
    """The folder's name -> the folder; empty if it holds no scans.

    A folder counts when it has rgb/ and xyz/, or both PNG and TIFF files.
    """
    if _has_rgb_and_xyz(root) or (files_by_stem(root, PNG) and files_by_stem(root, TIFF)):
        return {composed(root.resolve().name): root}
    return {}


def list_splits(folder: Path) -> tuple[Split, ...]:
    """Always ("test",)."""
    return ("test",)


def list_scans(category: str, folder: Path, split: Split) -> tuple[ScanFile, ...]:
    """The folder's scans by name, at least one; a file without partner is one with a problem.

    Args:
        category: The folder's name.
        folder: The folder.
        split: Must be "test".

    Raises:
        DataError: there is no scan, or another split is asked for.
    """
    if split != "test":
        raise DataError(
            f"{folder} is a plain folder of scans, which has no {split!r} split (all its scans are "
            f"'test'); for training use {'<category>/train/good/{rgb,xyz}'}"
        )
    nested = _has_rgb_and_xyz(folder)
    rgb_folder, xyz_folder = (folder / "rgb", folder / "xyz") if nested else (folder, folder)
    normals = normals_of(folder) if nested else {}
    return tuple(
        ScanFile(
            name=pair.stem,
            category=category,
            split="test",
            defect="",
            rgb_path=pair.rgb_path,
            xyz_path=pair.xyz_path,
            problem=pair.problem,
            normals_path=normals.get(pair.stem),
        )
        for pair in pairs_of(rgb_folder, xyz_folder)
    )


def _has_rgb_and_xyz(folder: Path) -> bool:
    return (folder / "rgb").is_dir() and (folder / "xyz").is_dir()
