"""Pairing the files of a scan by their names, and saying which have no partner."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mmad_fast.data.own_pictures import is_own_picture
from mmad_fast.errors import DataError

PNG = (".png",)
TIFF = (".tiff", ".tif")
_MAX_KINDS_SHOWN = 4


@dataclass(frozen=True)
class Pair:
    """The two files of a scan.

    Attributes:
        stem: What both are called, composed (NFC).
        rgb_path: The colour image; where it should be if there is none.
        xyz_path: Likewise of the points.
        problem: Why they are no scan, e.g. that one is missing; "" if they are.
    """

    stem: str
    rgb_path: Path
    xyz_path: Path
    problem: str = ""


def composed(name: str) -> str:
    """A file's name in one spelling: archives made on macOS write accents as signs of their own."""
    return unicodedata.normalize("NFC", name)


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


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, tuple[Path, ...]]:
    """The folder's files of some suffixes by composed stem: one each, unless names clash.

    Hidden files and the pictures that `infer` wrote are left out.

    Args:
        folder: The folder.
        suffixes: In lower case with dot; the files' own case does not matter.

    Raises:
        DataError: the folder is missing or cannot be read.
    """
    try:
        paths = sorted(require_folder(folder).iterdir())
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror or error}); check that you may read it and "
            "that its disk is there"
        ) from error
    found: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if not is_own_picture(path):
            stem = composed(path.stem)
            found[stem] = (*found.get(stem, ()), path)
    return found


def pairs_of(rgb_folder: Path, xyz_folder: Path) -> tuple[Pair, ...]:
    """The pairs of one folder's PNG files and another's TIFF files, at least one, by stem.

    A file without partner is a pair with a problem, and so are two files of one name.

    Raises:
        DataError: a folder is missing or cannot be read, or has no file of its kind at all.
    """
    rgb, xyz = files_by_stem(rgb_folder, PNG), files_by_stem(xyz_folder, TIFF)
    if not rgb or not xyz:
        raise DataError(_nothing_to_pair(rgb_folder, xyz_folder, bool(rgb), bool(xyz)))
    partners = () if rgb_folder != xyz_folder else (*PNG, *TIFF)
    rgb_names, xyz_names = (
        _names_by_stem(folder, without=partners) for folder in (rgb_folder, xyz_folder)
    )
    pairs = []
    for stem in sorted({*rgb, *xyz}):
        rgb_files, xyz_files = rgb.get(stem, ()), xyz.get(stem, ())
        rgb_path = rgb_files[0] if rgb_files else rgb_folder / f"{stem}.png"
        xyz_path = xyz_files[0] if xyz_files else xyz_folder / f"{stem}.tiff"
        problem = ""
        if not rgb_files:
            problem = _alone(xyz_path, rgb_folder, "*.png", rgb_names.get(stem))
        elif not xyz_files:
            problem = _alone(rgb_path, xyz_folder, "*.tiff", xyz_names.get(stem))
        for files in (rgb_files, xyz_files):
            if len(files) > 1:
                problem = f"{files[1]} and {files[0]} have the same stem; remove one"
        pairs.append(Pair(stem, rgb_path, xyz_path, problem))
    return tuple(pairs)


def normals_of(folder: Path) -> dict[str, Path]:
    """By stem the pictures of surface normals that lie in normals/ of a folder of scans, if any."""
    normals = folder / "normals"
    if not normals.is_dir():
        return {}
    return {stem: files[0] for stem, files in files_by_stem(normals, PNG).items()}


def kinds_of_files(folder: Path) -> str:
    """What a folder holds, e.g. "40 files .jpg, 1 file .txt"; "no files" where there are none."""
    counts = Counter(
        path.suffix.lower() or "without suffix"
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and not is_own_picture(path)
    )
    kinds = [
        f"{count} file{'s' * (count > 1)} {suffix}"
        for suffix, count in counts.most_common(_MAX_KINDS_SHOWN)
    ]
    return ", ".join(kinds) or "no files"


def _names_by_stem(folder: Path, *, without: tuple[str, ...]) -> dict[str, str]:
    return {
        composed(path.stem): path.name
        for path in folder.iterdir()
        if path.suffix.lower() not in without
    }


def _alone(path: Path, other_folder: Path, other_kind: str, namesake: str | None) -> str:
    hint = "" if namesake is None else f" ({namesake} is none)"
    return (
        f"{path}: no file of the same name in {other_folder} ({other_kind}){hint}; every scan "
        "needs both. Add the partner or remove the file"
    )


def _nothing_to_pair(rgb_folder: Path, xyz_folder: Path, has_rgb: bool, has_xyz: bool) -> str:
    if not has_rgb and not has_xyz:
        return (
            f"no scans: neither {rgb_folder} (*.png) nor {xyz_folder} (*.tiff) has a file; found "
            f"{kinds_of_files(rgb_folder)} and {kinds_of_files(xyz_folder)}"
        )
    folder, kind, advice = (
        (xyz_folder, "*.tiff", "points are read from float TIFF (H, W, 3)")
        if has_rgb
        else (
            rgb_folder,
            "*.png",
            "colour is read from 8-bit PNG. Have the camera write PNG, or convert the files (JPEG "
            "has lost detail already: then convert what the detector is fitted on in the same way)",
        )
    )
    return f"no scans: {folder} has no {kind}, it has {kinds_of_files(folder)}; {advice}"
