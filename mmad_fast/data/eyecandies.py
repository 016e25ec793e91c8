"""Eyecandies: reading the raw download, and converting it to the MVTec 3D-AD layout.

    <root>/<class>/{train,val,test_public}/data/<index>_{image_0..5.png,depth.png,info_depth.yaml,
                                                         pose.txt,normals.png,mask.png,...}

Source: the published conversion that M3DM and CFM use (method facts 1.5). It differs here in two
things that the published loaders cannot see: a dropped point is (0, 0, 0) instead of (0, y, z) with
x exactly 0, and coordinates are stored as float32 instead of float64. Validation scans are
converted as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmad_fast.data.image_files import read_depth_png, read_mask_png, read_rgb_png
from mmad_fast.data.mvtec3d import write_scan
from mmad_fast.data.new_folder import new_folder
from mmad_fast.data.pairing import composed, require_folder, subfolders
from mmad_fast.data.scan_file import GOOD, SPLITS, ScanFile, Split, without_problems
from mmad_fast.errors import DataError, InvalidInputError

LAYOUT = "<class>/{train,val,test_public}/data/<index>_{image_4.png,depth.png,...} (raw Eyecandies)"
RAW_SPLITS: dict[Split, str] = {"train": "train", "validation": "val", "test": "test_public"}
BAD = "bad"
FOCAL_LENGTH = 711.11
"""Pixels; the same camera took every image."""
DEFAULT_LIGHT = 4
"""image_4, the left spotlight: the one the published conversion takes."""
SCALE = 0.1
MIN_HEIGHT, MAX_RANGE, MAX_SIDE = 0.02, 1.8, 1.0
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:[,}#\n]|$)"


def find_categories(root: Path) -> dict[str, Path]:
    """Class name -> folder; empty if this is not raw Eyecandies.

    Args:
        root: The data set, or the folder of one class.
    """
    if list_splits(root):
        return {composed(root.resolve().name): root}
    return {composed(folder.name): folder for folder in subfolders(root) if list_splits(folder)}


def list_splits(folder: Path) -> tuple[Split, ...]:
    """The splits a class folder has: some of train, validation, test."""
    return tuple(split for split in SPLITS if (folder / RAW_SPLITS[split] / "data").is_dir())


def list_scans(
    category: str, folder: Path, split: Split, *, light: int = DEFAULT_LIGHT
) -> tuple[ScanFile, ...]:
    """The scans of one split, at least one: good ones first, then by index.

    Masks of the test split are read; where one cannot be, nobody knows the defect. A sample that
    lacks another of its files is a scan with a problem.

    Args:
        category: The class's name.
        folder: The class's folder.
        split: Which split; "test" is test_public.
        light: Which image_<light>.png to take, 0-5.

    Raises:
        DataError: a folder is missing or empty.
        InvalidInputError: no such light.
    """
    if light not in range(6):
        raise InvalidInputError(f"light is {light!r}; Eyecandies has image_0 to image_5")
    data = require_folder(folder / RAW_SPLITS[split] / "data")
    stems = {_stem(path) for path in data.glob("*_depth.png")}
    stems |= {_stem(path) for path in data.glob(f"*_image_{light}.png")}
    if not stems:
        raise DataError(f"no scans: {data} has no *_depth.png and no *_image_{light}.png")
    scans = [_scan(category, split, data, stem, light) for stem in stems]
    scans.sort(key=lambda scan: (scan.defect != GOOD, _order(scan.xyz_path)))
    return tuple(scans)


def read_eyecandies_xyz(depth_path: Path) -> NDArray[np.float32]:
    """(H, W, 3) float32: the points of one raw sample, background removed, a tenth of its size.

    Args:
        depth_path: <index>_depth.png; <index>_info_depth.yaml and <index>_pose.txt lie beside it.

    Returns:
        World coordinates (x, -z, y) times 0.1, as published; (0, 0, 0) is background or missing.

    Raises:
        DataError: a file is missing or unreadable, or holds something else than expected, or the
            background at the top and bottom of the image gives no tilt.
    """
    stored = read_depth_png(depth_path)
    beside = str(depth_path)[: -len("_depth.png")]
    nearest, farthest = _read_depth_range(Path(f"{beside}_info_depth.yaml"))
    pose = _read_pose(Path(f"{beside}_pose.txt"))
    depth = stored / 65535.0 * (farthest - nearest) + nearest
    points = depth_to_world(depth, pose)
    usable = depth > 0.0
    try:
        foreground = usable & foreground_mask(points, usable)
    except InvalidInputError as error:
        raise DataError(f"{depth_path}: {error}") from error
    swapped = points[..., [0, 2, 1]] * [SCALE, -SCALE, SCALE]
    return np.where(foreground[..., None], swapped, 0.0).astype(np.float32)


def depth_to_world(
    depth: NDArray[np.float64], pose: NDArray[np.float64], *, focal_length: float = FOCAL_LENGTH
) -> NDArray[np.float64]:
    """(H, W, 3) float64: each pixel's point in the world frame.

    Args:
        depth: (H, W) float64, along the optical axis; 0 is missing (gives the camera's centre).
        pose: (4, 4) float64, from world to camera.
        focal_length: In pixels; the principal point is (W / 2, H / 2), pixels count from 0.

    Returns:
        inv(K pose) (u d, v d, d, 1), without the last coordinate.
    """
    height, width = depth.shape
    intrinsics = np.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = focal_length
    intrinsics[:2, 2] = width / 2, height / 2
    unproject = np.linalg.inv(intrinsics @ pose)[:3]  # (3, 4)
    v, u = np.indices(depth.shape)
    pixels = np.stack([u * depth, v * depth, depth, np.ones_like(depth)], axis=-1)  # (H, W, 4)
    return np.einsum("hwk,ck->hwc", pixels, unproject)


def foreground_mask(
    points: NDArray[np.float64], usable: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels that do not belong to the ground.

    The ground's tilt in the y-z plane comes from the middle pixels of the top and the bottom row.

    Args:
        points: (H, W, 3) float64, world frame.
        usable: (H, W) bool, where there is a measurement; None means everywhere.

    Returns:
        True where, in the frame that stands on the ground at the bottom pixel, y <= -0.02, z <= 1.8
        and |x| <= 1.

    Raises:
        InvalidInputError: one of the two pixels has no measurement, or both have the same place.
    """
    height, width = points.shape[:2]
    top_at, bottom_at = (0, width // 2), (height - 1, width - width // 2)
    if (
        height < 2
        or width < 2
        or (usable is not None and not (usable[top_at] and usable[bottom_at]))
    ):
        raise InvalidInputError(
            f"no depth at the middle of the top or bottom row (pixels {top_at}, {bottom_at}), from "
            "which the ground's tilt is taken"
        )
    top, bottom = points[top_at], points[bottom_at]
    rise, run = top[1] - bottom[1], top[2] - bottom[2]
    norm = float(np.hypot(rise, run))
    if norm == 0.0:
        raise InvalidInputError(
            f"the pixels {top_at} and {bottom_at} have the same place in the y-z plane, so the "
            "ground's tilt is undefined; depth is constant or the pose is wrong"
        )
    cos, sin = run / norm, rise / norm
    y, z = points[..., 1] - bottom[1], points[..., 2] - bottom[2]
    upright_y, upright_z = cos * y - sin * z, sin * y + cos * z
    return (
        (upright_y <= -MIN_HEIGHT) & (upright_z <= MAX_RANGE) & (np.abs(points[..., 0]) <= MAX_SIDE)
    )


def convert_eyecandies(
    root: Path,
    out: Path,
    *,
    light: int = DEFAULT_LIGHT,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder written: raw Eyecandies in the MVTec 3D-AD layout.

    Train, val and test_public become train/good, validation/good and test/good or test/bad. The
    folder appears when it is complete.

    Args:
        root: Raw Eyecandies, or one class of it.
        out: A folder that does not exist or is empty.
        light: Which image_<light>.png becomes the colour image, 0-5.
        progress: Called with (scans done, scans in total) after each scan.

    Raises:
        DataError: `root` is not raw Eyecandies, a file is missing or unreadable, or `out` is not
            empty.
        InvalidInputError: no such light.
    """
    folders = find_categories(require_folder(Path(root)))
    if not folders:
        raise DataError(f"{root} is not raw Eyecandies; looked for {LAYOUT}")
    with new_folder(Path(out)) as temporary:
        scans = [
            scan
            for category, folder in sorted(folders.items())
            for split in list_splits(folder)
            for scan in without_problems(list_scans(category, folder, split, light=light))
        ]
        for done, scan in enumerate(scans, start=1):
            write_scan(
                temporary / scan.category / scan.split / scan.defect,
                _stem(scan.xyz_path).zfill(3),
                read_rgb_png(scan.rgb_path),
                read_eyecandies_xyz(scan.xyz_path),
                ground_truth=scan.load_ground_truth() if scan.split == "test" else None,
                normals=None if scan.normals_path is None else read_rgb_png(scan.normals_path),
            )
            if progress is not None:
                progress(done, len(scans))
    return Path(out)


def _scan(category: str, split: Split, data: Path, stem: str, light: int) -> ScanFile:
    names = [f"image_{light}.png", "depth.png", "info_depth.yaml", "pose.txt"]
    missing = [name for name in names if not (data / f"{stem}_{name}").is_file()]
    problem = ""
    if missing:
        problem = (
            f"{data / f'{stem}_{missing[0]}'} is missing; sample {stem} needs {', '.join(names)}. "
            "Unpack the download again"
        )
    mask = data / f"{stem}_mask.png" if split == "test" else None
    normals = data / f"{stem}_normals.png"
    defect = GOOD if mask is None else _defect(mask)
    return ScanFile(
        name="/".join(filter(None, (category, split, defect, stem))),
        category=category,
        split=split,
        defect=defect,
        rgb_path=data / f"{stem}_image_{light}.png",
        xyz_path=data / f"{stem}_depth.png",
        ground_truth_path=None if defect == GOOD else mask,
        read_xyz=read_eyecandies_xyz,
        problem=problem,
        normals_path=normals if normals.is_file() else None,
    )


def _defect(mask: Path) -> str:
    """Good or bad; "" where the mask does not say, which matters to those who read it."""
    try:
        return BAD if read_mask_png(mask).any() else GOOD
    except DataError:
        return ""


def _stem(path: Path) -> str:
    return path.name.split("_", 1)[0]


def _order(path: Path) -> tuple[int, str]:
    """Indices by number: the splits pad them differently."""
    stem = _stem(path)
    return (int(stem) if stem.isdecimal() else -1, stem)


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path} is missing; unpack the download again")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}); unpack it again") from error


def _read_depth_range(path: Path) -> tuple[float, float]:
    """normalization.min and .max of an info_depth.yaml: two numbers do not need a YAML parser."""
    text = _read_text(path)
    section = text[text.find("normalization") :] if "normalization" in text else ""
    found = [re.search(rf"\b{name}['\"]?\s*:\s*{_NUMBER}", section) for name in ("min", "max")]
    if found[0] is None or found[1] is None:
        raise DataError(
            f"{path} has no numbers normalization.min and normalization.max (got {text[:80]!r}); "
            "unpack the download again"
        )
    nearest, farthest = float(found[0][1]), float(found[1][1])
    if not nearest < farthest:
        raise DataError(f"{path} has min {nearest:g} and max {farthest:g}; min must be below max")
    return nearest, farthest


def _read_pose(path: Path) -> NDArray[np.float64]:
    text = _read_text(path)
    try:
        pose = np.array([[float(word) for word in row.split()] for row in text.splitlines() if row])
    except ValueError as error:
        raise DataError(f"{path} is no 4x4 matrix of numbers ({error})") from error
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise DataError(f"{path} has shape {pose.shape}; a pose is a 4x4 matrix of numbers")
    if abs(float(np.linalg.det(pose))) < 1e-9:
        raise DataError(f"{path} holds a matrix that cannot be inverted; unpack the download again")
    return pose
