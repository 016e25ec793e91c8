"""One scan of a data set: where its files are and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmad_fast.data.image_files import image_size, read_mask_png, read_rgb_png, read_xyz_tiff
from mmad_fast.errors import DataError
from mmad_fast.scan import Scan, Unit

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
GOOD = "good"
GOOD_NAMES = (GOOD, "ok", "nominal", "normal")
"""What a folder of good parts may be called, in capitals or not."""


@dataclass(frozen=True)
class ScanFile:
    """The files of one scan; nothing is read before `load`.

    Attributes:
        name: Unique in its data set, e.g. "cookie/test/crack/003".
        category: The category's name.
        split: "train", "validation" or "test".
        defect: "good", the defect type, or "" where that is unknown.
        rgb_path: 8-bit PNG.
        xyz_path: XYZ TIFF, or what `read_xyz` reads instead.
        ground_truth_path: Mask PNG, None if there is none.
        read_xyz: (H, W, 3) coordinates of `xyz_path`; differs for raw Eyecandies.
        problem: Why it cannot be loaded, known from the names alone, e.g. that a partner is
            missing; "" if it may be tried.
        normals_path: 8-bit PNG of the surface normals, None if there is none.
    """

    name: str
    category: str
    split: Split
    defect: str
    rgb_path: Path
    xyz_path: Path
    ground_truth_path: Path | None = None
    read_xyz: Callable[[Path], NDArray[np.floating]] = read_xyz_tiff
    problem: str = ""
    normals_path: Path | None = None

    def load(
        self, unit: Unit = "m", missing: float | None = None, *, with_normals: bool = False
    ) -> Scan:
        """The scan, read and checked.

        Args:
            unit: The unit of the file's coordinates, "m" or "mm".
            missing: Number that stands for no measurement in the file; see `Scan.from_arrays`.
            with_normals: Read the picture of the normals, too, if there is one: for detectors that
                need it (`Detector.reads_normals`).

        Raises:
            DataError: a file is missing, unreadable or of the wrong kind, or they differ in size.
            InvalidInputError: the coordinates cannot be in that unit.
        """
        if self.problem:
            raise DataError(self.problem)
        rgb, xyz = read_rgb_png(self.rgb_path), self.read_xyz(self.xyz_path)
        if rgb.shape[:2] != xyz.shape[:2]:
            raise DataError(
                f"{self.rgb_path} is {_by(rgb.shape)} and {self.xyz_path} is {_by(xyz.shape)}; "
                "colour and points must be registered pixel by pixel (height x width)"
            )
        normals = None
        if with_normals and self.normals_path is not None:
            normals = read_rgb_png(self.normals_path)
            if normals.shape != rgb.shape:
                raise DataError(
                    f"{self.rgb_path} is {_by(rgb.shape)} and {self.normals_path} is "
                    f"{_by(normals.shape)}; colour and normals must be registered pixel by pixel "
                    "(height x width)"
                )
        return Scan.from_arrays(
            rgb, xyz, unit=unit, missing=missing, name=self.name, normals=normals
        )

    def load_ground_truth(self) -> NDArray[np.bool_] | None:
        """(H, W) bool, True where anomalous; None if nobody knows.

        A good scan has no anomalous pixel, whatever mask lies beside it (as the published loaders
        do).

        Raises:
            DataError: the mask is missing, unreadable, or of another size than the image.
        """
        size = image_size(self.rgb_path)
        if self.defect == GOOD:
            return np.zeros(size, dtype=np.bool_)
        if self.ground_truth_path is None:
            return None
        mask = read_mask_png(self.ground_truth_path)
        if mask.shape != size:
            raise DataError(
                f"{self.ground_truth_path} is {_by(mask.shape)} and {self.rgb_path} is "
                f"{_by(size)}; a mask must have the image's size (height x width)"
            )
        return mask


def is_good(name: str) -> bool:
    """Whether a folder of that name holds scans of good parts."""
    return name.casefold() in GOOD_NAMES


def without_problems(scans: Sequence[ScanFile]) -> tuple[ScanFile, ...]:
    """The scans themselves.

    Raises:
        DataError: one has a problem.
    """
    problems = [scan.problem for scan in scans if scan.problem]
    if problems:
        more = f" ({len(problems) - 1} more cannot be read)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")
    return tuple(scans)


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
