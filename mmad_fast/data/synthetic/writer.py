"""Writing the procedural set in the layout of MVTec 3D-AD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mmad_fast.data.mvtec3d import write_scan
from mmad_fast.data.new_folder import new_folder
from mmad_fast.data.scan_file import GOOD, Split
from mmad_fast.data.synthetic.render import CATEGORIES, DEFECTS, render_scan
from mmad_fast.errors import InvalidInputError


def write_synthetic(
    root: Path,
    *,
    categories: Sequence[str] = CATEGORIES,
    num_train: int = 24,
    num_validation: int = 4,
    num_good: int = 8,
    num_per_defect: int = 5,
    size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder written: a procedural data set in the layout of MVTec 3D-AD.

    The folder appears when it is complete. A larger set begins with the scans of a smaller one.

    Args:
        root: A folder that does not exist or is empty.
        categories: Some of CATEGORIES.
        num_train: Good scans per category to fit on.
        num_validation: Good scans per category to set the threshold on.
        num_good: Good test scans per category.
        num_per_defect: Test scans per category and defect type.
        size: The images' side in pixels, at least 64.
        seed: Of the whole set, not negative.
        progress: Called with (scans done, scans in total) after each scan.

    Raises:
        DataError: `root` is a file, or has something in it.
        InvalidInputError: no such category, or a number out of range.
    """
    counts: list[tuple[Split, str, int]] = [
        ("train", GOOD, num_train),
        ("validation", GOOD, num_validation),
        ("test", GOOD, num_good),
        *(("test", defect, num_per_defect) for defect in DEFECTS),
    ]
    if isinstance(categories, str) or not categories:
        raise InvalidInputError(
            f"categories is {categories!r}; give a list with some of {', '.join(CATEGORIES)}"
        )
    if min(count for _, _, count in counts) < 0:
        raise InvalidInputError(
            f"a number of scans is negative: train {num_train}, validation {num_validation}, "
            f"good {num_good}, per defect {num_per_defect}"
        )
    total, done = len(categories) * sum(count for _, _, count in counts), 0
    if total == 0:
        raise InvalidInputError("all numbers of scans are 0; ask for at least one scan")
    with new_folder(Path(root)) as temporary:
        for category in categories:
            for split, defect, count in counts:
                for index in range(count):
                    scan = render_scan(category, split, defect, index, size=size, seed=seed)
                    write_scan(
                        temporary / category / split / defect,
                        f"{index:03d}",
                        scan.rgb,
                        scan.xyz,
                        ground_truth=scan.ground_truth if split == "test" else None,
                    )
                    done += 1
                    if progress is not None:
                        progress(done, total)
    return Path(root)
