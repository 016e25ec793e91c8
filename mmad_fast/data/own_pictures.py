"""Knowing the pictures that were written of scans, where they lie among the scans."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PICTURE_MARK = "mmad-fast picture"
"""Stands at the head of each picture, as the name of the software that wrote it."""
OVERLAY_ENDING, MAP_ENDING = "_overlay.png", "_map.tiff"
_HEAD_BYTES = 1024


def is_own_picture(path: Path) -> bool:
    """Whether a file is a heat map of `infer`: by its name, and by the mark at its head.

    The name alone would take a scan that somebody called `part_map` for a picture.
    """
    if not path.name.endswith((OVERLAY_ENDING, MAP_ENDING)):
        return False
    try:
        if not path.is_file():  # to open a pipe would wait for its writer
            return False
        with path.open("rb") as file:
            return PICTURE_MARK.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def own_pictures(folders: Iterable[Path]) -> tuple[Path, ...]:
    """The heat maps that lie in some folders, sorted; a folder that cannot be read has none."""
    found: list[Path] = []
    for folder in set(folders):
        try:
            found += [path for path in folder.iterdir() if is_own_picture(path)]
        except OSError:
            continue
    return tuple(sorted(found))
