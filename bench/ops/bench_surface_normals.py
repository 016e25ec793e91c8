"""surface_normals against everybody who has them, and on a GPU beside the same in torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ops import case as bench
from ops.bench_knn_grouping import work as work_of_search
from ops.clouds import PARTS, clouds
from ops.inputs import Floats, depth_frame
from ops.neighbors_in_torch import torch_neighbors, torch_normals

from mmad_fast.ops.surface_normals import surface_normals

if TYPE_CHECKING:
    from gpu.device import Device

MAX_NEIGHBORS = 30
COVARIANCE_FLOP = 15
"""Of a neighbour: three sums, six products and their sums."""
EIGEN_FLOP = 200
"""Of a point, roughly: less than a hundredth of the whole."""

PIECES = PARTS
MAX_ANGLE = 1e-3
"""Radians: normals of others are float32, or of other equally near neighbours."""
MAX_DIFFERING = 0.03
"""Of all points: noise has some whose plane is not fixed, frames some with other neighbours."""


def open3d_normals(points: Floats) -> Callable[[], NDArray]:
    from mmad_fast.preprocess.reference import import_open3d

    open3d = import_open3d()
    search = open3d.geometry.KDTreeSearchParamKNN(MAX_NEIGHBORS)

    def estimate() -> NDArray:
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(float)))
        cloud.estimate_normals(search)
        return np.asarray(cloud.normals)

    return estimate


def small_gicp_normals(points: Floats, num_threads: int) -> Callable[[], NDArray]:
    import small_gicp

    def estimate() -> NDArray:
        cloud = small_gicp.PointCloud(points.astype(np.float64))
        small_gicp.estimate_normals(cloud, num_neighbors=MAX_NEIGHBORS, num_threads=num_threads)
        return np.asarray(cloud.normals())[:, :3]

    return estimate


def scipy_normals(points: Floats, num_threads: int) -> Callable[[], NDArray]:
    from scipy.spatial import cKDTree

    def estimate() -> NDArray:
        _, indices = cKDTree(points).query(points, MAX_NEIGHBORS, workers=num_threads)
        offsets = points[indices] - points[indices].mean(axis=1, keepdims=True)
        return np.linalg.eigh(offsets.transpose(0, 2, 1) @ offsets)[1][:, :, 0]

    return estimate


def agreement(got: NDArray, wanted: NDArray) -> bench.Agreement:
    """How normals (N, 3) agree with ours up to their sign.

    Raises:
        DisagreementError: too many are others.
    """
    if got.shape != wanted.shape:
        raise bench.DisagreementError(f"{got.shape} instead of {wanted.shape}")
    sines = np.linalg.norm(np.cross(got.astype(np.float64), wanted), axis=1)
    share = float((~(sines <= MAX_ANGLE)).mean())
    if not share <= MAX_DIFFERING:
        raise bench.DisagreementError(f"{share:.1%} of the directions are others")
    return bench.Agreement("same directions", f"{share:.2%} differ by more than {MAX_ANGLE:g} rad")


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """Every cloud."""
    for name, points in clouds(options):
        makes: dict[str, bench.Make] = {
            "mmad-fast": partial(partial, surface_normals, points),
            "small_gicp": partial(small_gicp_normals, points, options.threads),
            "open3d": partial(open3d_normals, points),
            "scipy cKDTree + NumPy eigh": partial(scipy_normals, points, options.threads),
        }
        yield bench.Case(
            "surface_normals",
            {"N": len(points), "K": MAX_NEIGHBORS},
            bench.contenders("surface_normals", makes),
            data=name,
            check=partial(agreement, wanted=surface_normals(points)),
        )


def work(num_points: int, num_neighbors: int) -> bench.Work:
    """The search, as of grouping, and the sums; lists of neighbours stay on the chip."""
    search = work_of_search(num_points, num_points, num_neighbors)
    per_point = num_neighbors * COVARIANCE_FLOP + EIGEN_FLOP
    return bench.Work(
        plain_flop=search.plain_flop + num_points * per_point,
        device_bytes=num_points * 6 * bench.FLOAT_BYTES,
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    for frame in sizes.frames:
        yield bench.one(gpu_case, *frame, device)


def gpu_case(side: int, coverage: float, device: Device) -> bench.Case:
    points = depth_frame(side, coverage=coverage).points
    k = min(MAX_NEIGHBORS, len(points))
    cloud, tensor = device.array(points), device.tensor(points)
    backend = bench.public_backend(device, "cuda")
    return bench.Case(
        "surface_normals",
        {"N": len(points), "K": k},
        [
            bench.ours("cuda", lambda: surface_normals(cloud, max_neighbors=k, backend=backend)),
            bench.baseline(
                "cdist, topk and eigh",
                lambda: torch_normals(tensor, torch_neighbors(tensor, k)[0]),
            ),
        ],
        work=work(len(points), k),
        error_of=RowError(
            lambda: surface_normals(points, max_neighbors=k, backend="reference"), scale=1
        ),
        max_error=bench.TINY_ERROR,
    )


class RowError:
    """The largest error of a row, but for one in a thousand: there rounding may decide a sign, or
    the bin of a pair.

    The truth is computed when it is first asked for.
    """

    def __init__(self, truth: Any, *, scale: float) -> None:
        self._make, self._scale = truth, scale
        self._truth: Floats | None = None

    def __call__(self, found: Any) -> float:
        if self._truth is None:
            self._truth = self._make()
        errors = np.abs(bench.host(found) - self._truth).max(axis=1)
        return float(np.quantile(errors, 0.999, method="lower") / self._scale)
