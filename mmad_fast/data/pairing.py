"""Pairing the files of a scan by their names, and saying which have no partner."""

from __future__ import annotations

from pathlib import Path

from mmad_fast.errors import DataError

PNG = (".png",)
TIFF = (".tiff", ".tif")
_MAX_NAMES_SHOWN = 5


def require_folder(folder: Path) -> Path:
    """The folder itself, checked to exist.

    Raises:
        DataError: it does not exist or is a file.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is missing"
        raise DataError(f"{folder} {what}; a folder is needed there. Copy the data set again?")
    return folder


def subfolders(folder: Path) -> tuple[Path, ...]:
    """The folders inside a folder, by name, hidden ones left out."""
    return tuple(
        sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
    )


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The folder's files of some suffixes, by stem, in the order of their names.

    Args:
        folder: The folder.
        suffixes: In lower case with dot; the files' own case does not matter.

    Raises:
        DataError: the folder is missing, or two files have the same stem.
    """
    found: dict[str, Path] = {}
    for path in sorted(require_folder(folder).iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in found:
            raise DataError(f"{path} and {found[path.stem]} have the same stem; remove one")
        found[path.stem] = path
    return found


def paired_stems(
    first: dict[str, Path], second: dict[str, Path], *, first_at: str, second_at: str
) -> tuple[str, ...]:
    """The stems two sets of files share, checked to be all of both.

    Args:
        first: Stem -> path.
        second: Stem -> path.
        first_at: Where and what the first files are, for the message.
        second_at: Likewise.

    Raises:
        DataError: both are empty, or a file has no partner.
    """
    if not first and not second:
        raise DataError(f"no scans: neither {first_at} nor {second_at} has a file")
    for ours, theirs, where in ((first, second, second_at), (second, first, first_at)):
        alone = sorted(set(ours) - set(theirs))
        if alone:
            names = ", ".join(str(ours[stem]) for stem in alone[:_MAX_NAMES_SHOWN])
            more = (
                f" and {len(alone) - _MAX_NAMES_SHOWN} more"
                if len(alone) > _MAX_NAMES_SHOWN
                else ""
            )
            raise DataError(
                f"{names}{more}: no file of the same name in {where}; every scan needs both. "
                "Add the partner or remove the file"
            )
    return tuple(sorted(first))
