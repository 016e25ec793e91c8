"""Opening a data set: which layout it has, its categories and scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from mmad_fast.data import eyecandies, folder, mvtec3d
from mmad_fast.data.own_pictures import own_pictures
from mmad_fast.data.pairing import (
    PNG,
    TIFF,
    composed,
    files_by_stem,
    kinds_of_files,
    pairs_of,
    subfolders,
)
from mmad_fast.data.scan_file import SPLITS, ScanFile, Split, without_problems
from mmad_fast.errors import DataError, InvalidInputError
from mmad_fast.whole_folder import MANIFEST_FILE, is_archive

Layout = Literal["mvtec3d", "eyecandies", "folder"]
_PARTS_OF_A_PAIR = ("rgb", "xyz", "gt", "ground_truth", "normals")
# In the order they are tried: raw Eyecandies also has a train/ folder.
_LAYOUTS: dict[Layout, ModuleType] = {
    "eyecandies": eyecandies,
    "mvtec3d": mvtec3d,
    "folder": folder,
}


@dataclass(frozen=True)
class Dataset:
    """A recognised data set. Make it with `open_dataset`.

    Attributes:
        layout: "mvtec3d", "eyecandies" (raw) or "folder".
        root: The folder that was opened.
        folders: Category name -> its folder.
    """

    layout: Layout
    root: Path
    folders: Mapping[str, Path]

    def categories(self) -> tuple[str, ...]:
        """The names of the categories, at least one, sorted."""
        return tuple(sorted(self.folders))

    def splits(self, category: str) -> tuple[Split, ...]:
        """The splits that a category has: some of "train", "validation", "test", in that order.

        Args:
            category: One of `categories()`.

        Raises:
            DataError: no such category.
        """
        splits: tuple[Split, ...] = _LAYOUTS[self.layout].list_splits(self._folder(category))
        return splits

    def scans(self, category: str, split: Split) -> tuple[ScanFile, ...]:
        """The scans of one split, at least one: good ones first, then by defect and file name.

        Args:
            category: One of `categories()`.
            split: "train", "validation" or "test".

        Raises:
            DataError: no such category, a missing or empty folder, or a file without partner.
            InvalidInputError: no such split.
        """
        return without_problems(self.scans_as_found(category, split))

    def scans_as_found(self, category: str, split: Split) -> tuple[ScanFile, ...]:
        """As `scans`, with those that cannot be loaded: their `problem` says why.

        Args:
            category: One of `categories()`.
            split: "train", "validation" or "test".

        Raises:
            DataError: no such category, or a missing or empty folder.
            InvalidInputError: no such split.
        """
        if split not in SPLITS:
            raise InvalidInputError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        scans: tuple[ScanFile, ...] = _LAYOUTS[self.layout].list_scans(
            category, self._folder(category), split
        )
        return scans

    def _folder(self, category: str) -> Path:
        if composed(category) not in self.folders:
            raise DataError(
                f"no category {category!r} in {self.root}; there is {', '.join(self.categories())}"
            )
        return self.folders[composed(category)]


def open_dataset(root: Path, *, wanted: str = "the folder of a data set") -> Dataset:
    """The data set in a folder, its layout recognised by what the folder holds.

    Args:
        root: A data set in the layout of MVTec 3D-AD or of raw Eyecandies, one category of it, or
            a plain folder of rgb/xyz pairs.
        wanted: What to give instead, for the messages.

    Raises:
        DataError: the folder does not exist, is a file, is empty, or has none of the layouts.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root} does not exist; give {wanted}")
    if is_archive(root):
        raise DataError(f"{root} is an archive; unpack it first, then give {wanted}")
    if not root.is_dir():
        raise DataError(f"{root} is a file; give {wanted}")
    if not any(root.iterdir()):
        raise DataError(f"{root} is empty; give {wanted}")
    for layout, module in _LAYOUTS.items():
        folders: dict[str, Path] = module.find_categories(root)
        if folders:
            return Dataset(layout, root, folders)
    looked_for = "; ".join(module.LAYOUT for module in _LAYOUTS.values())
    _check_for_mistakes(root)
    inside = ", ".join(path.name for path in subfolders(root)[:8]) or "no folders"
    raise DataError(
        f"{root} is not a data set of a known layout. Looked for: {looked_for}. Found: {inside}; "
        f"{kinds_of_files(root)}. Give the folder that holds the categories, or one category; "
        "colour is read from PNG, points from TIFF"
    )


def _check_for_mistakes(root: Path) -> None:
    """Raises if a folder that is no data set is something that is easily taken for one.

    Raises:
        DataError: says what it is.
    """
    folders = subfolders(root)
    if root.name in _PARTS_OF_A_PAIR and (root.parent / "rgb").is_dir():
        raise DataError(
            f"{root} is one part of a folder of scans; give the folder that holds rgb and xyz: "
            f"{root.parent}"
        )
    if inner := [path.name for path in folders if (path / "rgb").is_dir()]:
        raise DataError(
            f"{root} holds folders of scans ({', '.join(inner[:8])}); give one of them, or the "
            "category that holds train and test"
        )
    if (root / MANIFEST_FILE).is_file():
        raise DataError(
            f"{root} holds no scans, it is a detector artifact ({MANIFEST_FILE}). The artifact "
            "comes first: mmad-fast infer ARTIFACT SCANS, mmad-fast eval ARTIFACT --data DATA"
        )
    archives = sorted(path.name for path in root.iterdir() if is_archive(path))
    if archives:
        raise DataError(f"{root} holds no scans, but the archive {archives[0]}; unpack it first")
    if pictures := own_pictures((root,)):
        raise DataError(
            f"{root} holds no scans, but {len(pictures)} pictures that infer wrote; give the "
            "folder of the scans themselves"
        )
    if not folders and (files_by_stem(root, PNG) or files_by_stem(root, TIFF)):
        pairs_of(root, root)
