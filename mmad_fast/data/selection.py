"""What a command line names: one category of a data set, one scan, or a folder of scans."""

from __future__ import annotations

from pathlib import Path

from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.data.pairing import PNG, TIFF, composed, files_by_stem, normals_of
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.errors import DataError
from mmad_fast.whole_folder import is_archive

WANTED = (
    "the PNG file of one scan, a folder of scans (rgb/*.png with xyz/*.tiff, or NAME.png beside "
    "NAME.tiff), or a data set with test scans"
)
"""What `infer` takes."""
_POINT_FILES = (*TIFF, ".ply", ".pcd", ".xyz", ".stl", ".npy", ".npz")


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
    if composed(category) not in names:
        raise DataError(f"{dataset.root} has no category {category!r}; it has: {', '.join(names)}")
    return composed(category)


def find_scan_files(
    path: Path, *, xyz_path: Path | None = None, normals_path: Path | None = None
) -> tuple[ScanFile, ...]:
    """The scans at a path: the one whose RGB file it is, or those of a folder.

    Those of a folder may have a `problem`: one that cannot be read does not cost the others.

    Args:
        path: An RGB PNG, a folder of pairs, one category, or a data set (its test scans).
        xyz_path: XYZ TIFF of the one scan; None: the file of the same stem beside it, or in the
            folder xyz beside the folder rgb.
        normals_path: PNG of the one scan's surface normals; None: the file of the same stem in the
            folder normals beside the folder rgb, if there is one.

    Raises:
        DataError: nothing there, no XYZ file, or a folder in no known layout.
    """
    if path.is_file() and not is_archive(path):
        return (_one_scan(path, xyz_path, normals_path),)
    for name, partner in (("--xyz", xyz_path), ("--normals", normals_path)):
        if partner is not None and path.exists():
            raise DataError(f"{name} names the partner of one RGB file, but {path} is no file")
    dataset = open_dataset(path, wanted=WANTED)
    with_test = [name for name in dataset.categories() if "test" in dataset.splits(name)]
    if not with_test:
        raise DataError(
            f"{path} has no test scans ({', '.join(dataset.categories())}: no folder test); to "
            "score its other scans, give their folder, such as train/good"
        )
    return tuple(scan for name in with_test for scan in _scans_of_category(dataset, name))


def _scans_of_category(dataset: Dataset, category: str) -> tuple[ScanFile, ...]:
    """Its test scans; where several categories are scored, one without scans is a problem."""
    try:
        return dataset.scans_as_found(category, "test")
    except DataError as error:
        if len(dataset.categories()) == 1:
            raise
        folder = dataset.folders[category] / "test"
        return (
            ScanFile(f"{category}/test", category, "test", "", folder, folder, problem=str(error)),
        )


def _one_scan(rgb_path: Path, xyz_path: Path | None, normals_path: Path | None) -> ScanFile:
    if rgb_path.suffix.lower() not in PNG and rgb_path.suffix.lower() in _POINT_FILES:
        raise DataError(
            f"{rgb_path} is named as a file of points; give the PNG file of the colour image, and "
            "the XYZ TIFF is found beside it, or with --xyz"
        )
    return ScanFile(
        name=composed(rgb_path.stem),
        category="",
        split="test",
        defect="",
        rgb_path=rgb_path,
        xyz_path=_partner(rgb_path) if xyz_path is None else xyz_path,
        normals_path=_normals(rgb_path) if normals_path is None else normals_path,
    )


def _normals(rgb_path: Path) -> Path | None:
    """The picture of the normals that belongs to an RGB file, as in a folder of scans."""
    folder = rgb_path.absolute().parent
    return normals_of(folder.parent).get(composed(rgb_path.stem)) if folder.name == "rgb" else None


def _partner(rgb_path: Path) -> Path:
    """The XYZ file that belongs to an RGB file, found as in a folder of scans."""
    parent = rgb_path.absolute().parent
    folders = [folder for folder in (parent, parent.parent / "xyz") if folder.is_dir()]
    for folder in folders:
        if paths := files_by_stem(folder, TIFF).get(composed(rgb_path.stem)):
            return paths[0]
    raise DataError(
        f"{rgb_path}: no XYZ file found (looked for {rgb_path.stem}.tiff in "
        f"{', '.join(map(str, folders))}); name it with --xyz"
    )
