"""Times farthest_point_sampling against the reference and a float32 NumPy loop in the same run.

python bench/ops/bench_farthest_point_sampling.py [--threads 2] [--runs 15]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from op_rows import parse_options, print_rows
from ops.cases import depth_frame, float32_squared_distances

CASES = [(224, 0.28, 1024), (224, 0.9, 1024), (448, 0.28, 1024)]  # grid side, coverage, G


def numpy_loop(points: NDArray[np.float32], num_samples: int) -> NDArray[np.int64]:
    nearest = np.full(len(points), np.inf, np.float32)
    indices = np.zeros(num_samples, np.int64)
    for s in range(1, num_samples):
        squared = float32_squared_distances(points, points[indices[s - 1]])
        np.minimum(nearest, squared, out=nearest)
        indices[s] = nearest.argmax()
    return indices


def main() -> None:
    options = parse_options(__doc__)
    for grid_size, coverage, num_samples in CASES:
        points = depth_frame(grid_size, coverage=coverage).points
        truth = numpy_loop(points, num_samples)
        print_rows(
            "farthest_point_sampling",
            {
                "cpu": lambda p=points, g=num_samples: farthest_point_sampling(p, g),
                "numpy float32 (slow)": lambda p=points, g=num_samples: numpy_loop(p, g),
            },
            lambda got, expected=truth: float(np.count_nonzero(got != expected)),
            shapes={"N": len(points), "G": num_samples},
            options=options,
            max_error=0,
        )


if __name__ == "__main__":
    main()
