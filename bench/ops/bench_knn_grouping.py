"""Times knn_grouping against the reference and scipy's k-d tree in the same run.

python bench/ops/bench_knn_grouping.py [--threads 2] [--runs 15]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import KnnGroups, knn_grouping

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from op_rows import parse_options, print_rows
from ops.cases import depth_frame

CASES = [(0.28, 1024, 128), (0.28, 1024, 32), (0.9, 1024, 128)]  # coverage, G, K


def scipy_tree(
    points: NDArray[np.float32], centers: NDArray[np.int64], num_neighbors: int, workers: int
) -> KnnGroups:
    _, indices = cKDTree(points).query(points[centers], num_neighbors, workers=workers)
    return KnnGroups(indices, points[indices] - points[centers][:, None])


def main() -> None:
    options = parse_options(__doc__)
    for coverage, num_centers, num_neighbors in CASES:
        points = depth_frame(coverage=coverage).points
        centers = farthest_point_sampling(points, num_centers)
        arguments = (points, centers, num_neighbors)
        truth = np.linalg.norm(knn_grouping(*arguments, backend="reference").groups, axis=-1)
        print_rows(
            "knn_grouping",
            {
                "cpu": lambda a=arguments: knn_grouping(*a),
                "scipy cKDTree": lambda a=arguments: scipy_tree(*a, options.threads),
                "reference": lambda a=arguments: knn_grouping(*a, backend="reference"),
            },
            lambda got, expected=truth: float(
                np.abs(np.linalg.norm(got.groups, axis=-1) - expected).max()
            ),
            shapes={"N": len(points), "G": num_centers, "K": num_neighbors},
            options=options,
            max_error=1e-8,
        )


if __name__ == "__main__":
    main()
