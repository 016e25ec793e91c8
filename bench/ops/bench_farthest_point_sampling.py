"""Times farthest_point_sampling against the reference and a float32 NumPy loop in the same run.

python bench/ops/bench_farthest_point_sampling.py [--threads 2] [--runs 15] [--data FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.point_index import PointIndex

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from bench_clouds import bench_clouds
from op_rows import parse_options, print_rows
from ops.plain_float32 import sample_in_float32

NUM_SAMPLES = 1024


def main() -> None:
    options = parse_options(__doc__)
    for name, points in bench_clouds(options.data):
        truth = sample_in_float32(points, NUM_SAMPLES)
        index = PointIndex(points)
        print_rows(
            "farthest_point_sampling",
            {
                "cpu": lambda p=points: farthest_point_sampling(p, NUM_SAMPLES),
                "cpu, index given": lambda p=points, i=index: farthest_point_sampling(
                    p, NUM_SAMPLES, index=i
                ),
                "numpy float32 (slow)": lambda p=points: sample_in_float32(p, NUM_SAMPLES),
            },
            lambda got, expected=truth: float(np.count_nonzero(got != expected)),
            shapes={"cloud": name, "N": len(points), "G": NUM_SAMPLES},
            options=options,
            max_error=0,
        )


if __name__ == "__main__":
    main()
