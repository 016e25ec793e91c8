"""Opening a data set: which layout it has, its categories and scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from mmad_fast.data import eyecandies, folder, mvtec3d
from mmad_fast.data.pairing import subfolders
from mmad_fast.data.scan_file import SPLITS, ScanFile, Split
from mmad_fast.errors import DataError, InvalidInputError

Layout = Literal["mvtec3d", "eyecandies", "folder"]
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
        if split not in SPLITS:
            raise InvalidInputError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        scans: tuple[ScanFile, ...] = _LAYOUTS[self.layout].list_scans(
            category, self._folder(category), split
        )
        return scans

    def _folder(self, category: str) -> Path:
        if category not in self.folders:
            raise DataError(
                f"no category {category!r} in {self.root}; there is {', '.join(self.categories())}"
            )
        return self.folders[category]


def open_dataset(root: Path) -> Dataset:
    """The data set in a folder, its layout recognised by what the folder holds.

    Args:
        root: A data set in the layout of MVTec 3D-AD or of raw Eyecandies, one category of it, or
            a plain folder of rgb/xyz pairs.

    Raises:
        DataError: the folder does not exist, is a file, is empty, or has none of the layouts.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root} does not exist; give the folder of a data set")
    if not root.is_dir():
        raise DataError(f"{root} is a file; give the folder of a data set")
    if not any(root.iterdir()):
        raise DataError(f"{root} is empty; give the folder of a data set")
    for layout, module in _LAYOUTS.items():
        folders: dict[str, Path] = module.find_categories(root)
        if folders:
            return Dataset(layout, root, folders)
    looked_for = "; ".join(module.LAYOUT for module in _LAYOUTS.values())
    inside = ", ".join(path.name for path in subfolders(root)[:8]) or "no folders"
    raise DataError(
        f"{root} is not a data set of a known layout. Looked for: {looked_for}. Found: {inside}. "
        "Give the folder that holds the categories, or one category"
    )
