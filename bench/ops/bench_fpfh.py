"""fpfh with its normals against Open3D, and on a GPU beside the same in torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ops import case as bench
from ops.bench_knn_grouping import work as work_of_search
from ops.bench_surface_normals import COVARIANCE_FLOP, EIGEN_FLOP, RowError
from ops.clouds import PARTS, clouds
from ops.inputs import Floats, depth_frame
from ops.neighbors_in_torch import torch_fpfh, torch_neighbors, torch_normals

from mmad_fast.ops.fpfh import NUM_CHANNELS, fpfh
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.point_neighbors import find_neighbors

if TYPE_CHECKING:
    from gpu.device import Device

NORMAL_NEIGHBORS = 30
MAX_NEIGHBORS = 100
SUM_OF_A_HISTOGRAM = 200
PAIR_FLOP = 100
"""Roughly: three products of vectors across and five along each other, two roots, ten edges."""

PIECES = PARTS
TIE, OTHER = 1e-4, 1e-2
"""Of a histogram's sum. What differs by more than the first sees a tie: a normal or a histogram of
other equally near neighbours, or a pair at the edge of a bin; the tests show that there is nothing
else. Few see so much of it that they differ by more than the second."""
MAX_DIFFERING = 0.05


def open3d_fpfh(points: Floats) -> Callable[[], NDArray]:
    from mmad_fast.preprocess.reference import import_open3d

    open3d = import_open3d()
    nearest = open3d.geometry.KDTreeSearchParamKNN

    def describe() -> NDArray:
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(float)))
        cloud.estimate_normals(nearest(NORMAL_NEIGHBORS))
        registration = open3d.pipelines.registration
        return registration.compute_fpfh_feature(cloud, nearest(MAX_NEIGHBORS)).data.T

    return describe


def without_search(points: Floats) -> Callable[[], NDArray]:
    neighbors = find_neighbors(points, MAX_NEIGHBORS)
    return partial(fpfh, points, neighbors=neighbors)


def agreement(got: NDArray, wanted: NDArray) -> bench.Agreement:
    """How features (N, 33) agree with ours.

    Raises:
        DisagreementError: too many are others.
    """
    if got.shape != wanted.shape:
        raise bench.DisagreementError(f"{got.shape} instead of {wanted.shape}")
    errors = np.abs(got - wanted).max(axis=1) / SUM_OF_A_HISTOGRAM
    ties, others = (float((~(errors <= bound)).mean()) for bound in (TIE, OTHER))
    if not others <= MAX_DIFFERING:
        raise bench.DisagreementError(f"{others:.1%} of the features are others")
    return bench.Agreement(
        "same features but at ties",
        f"{ties:.2%} differ by more than {TIE:g} of the sum, {others:.2%} by {OTHER:g}",
    )


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """Every cloud."""
    for name, points in clouds(options):
        index = PointIndex(points)
        _ = index.kernel_index  # made here, where no time is taken
        makes: dict[str, bench.Make] = {
            "mmad-fast": partial(partial, fpfh, points, orientation="open3d"),
            "mmad-fast, shared index": partial(
                partial, fpfh, points, orientation="open3d", index=index
            ),
            "open3d": partial(open3d_fpfh, points),
            "mmad-fast, search alone": partial(partial, find_neighbors, points, MAX_NEIGHBORS),
            "mmad-fast, without search": partial(without_search, points),
        }
        yield bench.Case(
            "fpfh",
            {"N": len(points), "K": MAX_NEIGHBORS},
            bench.contenders("fpfh", makes),
            data=name,
            check=partial(agreement, wanted=fpfh(points, orientation="open3d")),
        )


def work(num_points: int, num_neighbors: int) -> bench.Work:
    """One search, as of grouping, the normals, the pairs, and a multiply-add per neighbour and
    channel; what lies between stays on the chip."""
    search = work_of_search(num_points, num_points, num_neighbors)
    normals = NORMAL_NEIGHBORS * COVARIANCE_FLOP + EIGEN_FLOP
    pairs = num_neighbors * (PAIR_FLOP + 2 * NUM_CHANNELS)
    return bench.Work(
        plain_flop=search.plain_flop + num_points * (normals + pairs),
        device_bytes=num_points * (3 + NUM_CHANNELS) * bench.FLOAT_BYTES,
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    for frame in sizes.frames:
        yield bench.one(gpu_case, *frame, device)


def gpu_case(side: int, coverage: float, device: Device) -> bench.Case:
    points = depth_frame(side, coverage=coverage).points
    k = min(MAX_NEIGHBORS, len(points))
    cloud, tensor = device.array(points), device.tensor(points)
    backend = bench.public_backend(device, "cuda")

    def in_torch() -> Any:
        indices, squared_distances = torch_neighbors(tensor, k)
        normals = torch_normals(tensor, indices[:, :NORMAL_NEIGHBORS])
        return torch_fpfh(tensor, normals, indices, squared_distances)

    return bench.Case(
        "fpfh",
        {"N": len(points), "K": k},
        [
            bench.ours("cuda", lambda: fpfh(cloud, max_neighbors=k, backend=backend)),
            bench.baseline("cdist, topk, eigh and scatter", in_torch),
        ],
        work=work(len(points), k),
        error_of=RowError(
            lambda: fpfh(points, max_neighbors=k, backend="reference"), scale=SUM_OF_A_HISTOGRAM
        ),
        max_error=bench.TINY_ERROR,
    )
