"""Times knn_grouping against scipy's k-d tree in the same run.

python bench/ops/bench_knn_grouping.py [--threads 2] [--runs 15] [--data FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import KnnGroups, knn_grouping
from mmad_fast.ops.point_index import PointIndex

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from bench_clouds import bench_clouds
from op_rows import parse_options, print_rows

NUM_CENTERS = 1024


def scipy_tree(
    points: NDArray[np.float32], centers: NDArray[np.int64], num_neighbors: int, workers: int
) -> KnnGroups:
    _, indices = cKDTree(points).query(points[centers], num_neighbors, workers=workers)
    return KnnGroups(indices, points[indices] - points[centers][:, None])


def nearest_distances(
    points: NDArray[np.float32], centers: NDArray[np.int64], num_neighbors: int
) -> NDArray[np.float64]:
    """(G, K) the smallest distances, by brute force."""
    exact = points.astype(np.float64)
    smallest = np.empty((len(centers), num_neighbors))
    for g, center in enumerate(exact[centers]):
        squared = ((exact - center) ** 2).sum(axis=1)
        smallest[g] = np.sort(np.partition(squared, num_neighbors - 1)[:num_neighbors])
    return np.sqrt(smallest)


def main() -> None:
    options = parse_options(__doc__)
    for name, points in bench_clouds(options.data):
        index = PointIndex(points)
        centers = farthest_point_sampling(points, NUM_CENTERS, index=index)
        truth = nearest_distances(points, centers, 128)
        for num_neighbors in (128, 32):
            arguments = (points, centers, num_neighbors)
            print_rows(
                "knn_grouping",
                {
                    "cpu": lambda a=arguments: knn_grouping(*a),
                    "cpu, index given": lambda a=arguments, i=index: knn_grouping(*a, index=i),
                    "scipy cKDTree": lambda a=arguments: scipy_tree(*a, options.threads),
                },
                lambda got, expected=truth[:, :num_neighbors]: float(
                    np.abs(np.linalg.norm(got.groups, axis=-1) - expected).max() / expected.max()
                ),
                shapes={"cloud": name, "N": len(points), "G": NUM_CENTERS, "K": num_neighbors},
                options=options,
                max_error=1e-6,
            )


if __name__ == "__main__":
    main()
