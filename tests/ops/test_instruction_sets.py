"""What holds across the instruction sets that the kernels are compiled for.

`.ci/other_processors` runs this file on several processors with MMAD_FAST_RECORDED_OUTPUTS naming
one file: the first one writes it, the others must agree with it.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.cases import depth_frame, integer_cloud, uniform_cloud
from ops.feature_cases import mapping_case, queries_and_bank
from ops.map_cases import CASES, make_levels

from mmad_fast import _kernels
from mmad_fast.ops.cosine_maps import cosine_maps
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.fpfh import fpfh
from mmad_fast.ops.inverse_distance_interpolation import (
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.k_center_greedy import k_center_greedy
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.nearest_neighbor_scoring import nearest_neighbor_scoring
from mmad_fast.ops.pixel_mapping import pixel_mapping
from mmad_fast.ops.surface_normals import surface_normals

RECORD = os.environ.get("MMAD_FAST_RECORDED_OUTPUTS")
RELATIVE_ROUNDING = 1e-5
"""Of sums of some hundred float32 products, with and without fused multiply-add."""


def clouds() -> dict[str, NDArray[np.float32]]:
    """The inputs by name; the frame's cosines depend on the processor, so inputs are recorded."""
    return {
        "frame": depth_frame(96, seed=3).points,
        "uniform": uniform_cloud(4001, seed=4),
        "ties": integer_cloud(1500, high=12, seed=5),
    }


def point_outputs(name: str, points: NDArray[np.float32]) -> dict[str, NDArray]:
    """The outputs of the point operations by name: comparisons and rounded single operations."""
    samples = farthest_point_sampling(points, 150)
    groups = knn_grouping(points, samples, 33)
    weights = inverse_distance_weights(points, points[samples[:70]])
    pixels = np.sort(np.random.default_rng(6).choice(96 * 96, len(points), replace=False))
    pooled = pooled_interpolation_rows(
        weights, pixels, num_centers=70, grid_size=96, output_size=40
    )
    outputs = {
        "samples": samples,
        "neighbours": groups.indices,
        "groups": groups.groups,
        "nearest centres": weights.indices,
        "weights": weights.weights,
        "normals": surface_normals(points),
        "fpfh": fpfh(points, max_neighbors=40, orientation="open3d"),
        "pooled pixels": pooled.pixel_indices,
        "pooled columns": pooled.rows.columns,
        "pooled values": pooled.rows.values,
    }
    return {f"{name}: {key}": value for key, value in outputs.items()}


def feature_outputs() -> dict[str, NDArray]:
    """The outputs of the feature operations by name: long sums, in whatever order."""
    nearest = nearest_neighbor_scoring(*queries_and_bank(130, 257, 300))
    return {
        "distances": nearest.distances,
        "coreset": k_center_greedy(queries_and_bank(1, 2500, 100)[1], 300),
        "cosine map": cosine_maps(*make_levels(CASES[0]), size=64),
        "psi": pixel_mapping(*mapping_case(300, sizes=(48, 65, 33, 40)).arguments),
    }


@pytest.mark.skipif(
    RECORD is None,
    reason="compares processors: .ci/other_processors sets MMAD_FAST_RECORDED_OUTPUTS",
)
def test_another_processor_gives_the_same() -> None:
    file = Path(str(RECORD))
    if not file.exists():
        inputs = clouds()
        outputs = feature_outputs()
        for name, points in inputs.items():
            outputs |= point_outputs(name, points)
        np.savez(file, **inputs, **outputs)
    with np.load(file) as recorded:
        for name in clouds():
            for key, got in point_outputs(name, recorded[name]).items():
                np.testing.assert_array_equal(got, recorded[key], err_msg=key)
        for key, got in feature_outputs().items():
            np.testing.assert_allclose(got, recorded[key], rtol=RELATIVE_ROUNDING, err_msg=key)


def test_the_best_instruction_set_is_the_widest_there_is() -> None:
    ordered = [getattr(_kernels.InstructionSet, name) for name in ("BASELINE", "AVX2", "AVX512")]
    there = [chosen for chosen in ordered if _kernels.has_instruction_set(chosen)]
    assert there[0] == _kernels.InstructionSet.BASELINE
    assert _kernels.best_instruction_set() == there[-1]


@pytest.mark.skipif(
    platform.machine() in ("x86_64", "AMD64", "i686"), reason="this is an x86 processor"
)
def test_other_processors_than_x86_have_one_instruction_set() -> None:
    assert not _kernels.has_instruction_set(_kernels.InstructionSet.AVX2)
    assert not _kernels.has_instruction_set(_kernels.InstructionSet.AVX512)
