"""What the geometric ops are compared on and with: point clouds (parts, a real depth frame, noise),
and the k nearest points by every library that finds them exactly, built and queried anew."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from ops.case import FOLDER, RELATIVE_TIE, Agreement, DisagreementError, RefusalError
from ops.inputs import Floats, Integers, depth_frame, uniform_cloud
from settings import read_toml

from mmad_fast.data import open_dataset
from mmad_fast.methods.family import get_recipe
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.preprocess import prepare

PARTS = ("part", "frame", "uniform")
SIZES = (5_000, 13_000, 50_000, 200_000)
SURFACE_SIDE = 640  # of the synthetic frame that stands in: as many points as a real one
Neighbors = tuple[NDArray, NDArray]
"""Squared distances (Q, K) and indices (Q, K), nearest first."""

Search = Callable[[Floats, Floats, int], Neighbors]
"""(points (N, 3), queries (Q, 3), K) -> neighbours."""

MAX_TORCH_BYTES = 1 << 30


def clouds(
    options: argparse.Namespace, *, sizes: tuple[int, ...] = SIZES
) -> Iterator[tuple[str, Floats]]:
    """What it is and points (N, 3) float32 metres, of every size that the data has; none where the
    piece that is asked for is another.

    "part" is the foreground of a prepared scan of --data, "frame" the valid points of a frame of
    --frames, each drawn without replacement and in the order of the pixels. Without the option a
    synthetic surface takes the place, and the name says so.
    """
    sources: dict[str, Callable[[], tuple[str, Floats]]] = {
        "part": lambda: _part(options.data),
        "frame": lambda: _frame(options.frames),
        "uniform": lambda: ("uniform noise", uniform_cloud(max(sizes))),
    }
    if options.only in sources:
        name, points = sources[options.only]()
        for size in sizes:
            if size <= len(points):
                kept = np.random.default_rng(0).choice(len(points), size, replace=False)
                yield name, points[np.sort(kept)]


def _part(data: Path | None) -> tuple[str, Floats]:
    if data is None:
        return "synthetic part", depth_frame(224, coverage=0.28).points
    dataset = open_dataset(data)
    category = dataset.categories()[0]
    scan = dataset.scans(category, "train")[0].load()
    recipe = get_recipe(read_toml(FOLDER / "sizes.toml")["recipe"])
    return f"{data.resolve().name} {category}", prepare(scan, recipe).points


def _frame(frames: Path | None) -> tuple[str, Floats]:
    if frames is None:
        return "synthetic frame", depth_frame(SURFACE_SIDE, coverage=0.6).points
    file = sorted(frames.glob("*.tif*"))[0]
    xyz = tifffile.imread(file).reshape(-1, 3)
    is_valid = np.isfinite(xyz).all(axis=1) & (xyz != 0).any(axis=1)
    return f"real frame {file.stem}", np.ascontiguousarray(xyz[is_valid], dtype=np.float32)


def sampled_index(points: Floats, num_samples: int) -> PointIndex:
    """The index of points after a sampling, which has made it."""
    index = PointIndex(points)
    farthest_point_sampling(points, num_samples, index=index)
    return index


def neighbor_searches(num_threads: int) -> dict[str, Callable[[], Search]]:
    """By peer, what imports it and returns its search."""
    return {
        "scipy cKDTree": lambda: _scipy(num_threads, balanced=True),
        "scipy cKDTree, unbalanced": lambda: _scipy(num_threads, balanced=False),
        "pykdtree": _pykdtree,
        "open3d": _open3d,
        "faiss flat": _faiss,
        "scikit-learn kd_tree": lambda: _sklearn("kd_tree", num_threads),
        "scikit-learn brute": lambda: _sklearn("brute", num_threads),
        "torch.cdist + topk": _torch,
    }


def neighbor_agreement(
    got: NDArray, wanted: Integers, points: Floats, queries: Floats
) -> Agreement:
    """How neighbours (Q, K) agree with ours: of equally near points a peer may take any.

    Raises:
        DisagreementError: a neighbour is not as near as ours.
    """
    num_differing = int(np.count_nonzero(got != wanted))
    if num_differing == 0:
        return Agreement("same indices")
    distances, ours = (
        np.linalg.norm(points[indices].astype(np.float64) - queries[:, None], axis=-1)
        for indices in (got.astype(np.int64), wanted)
    )
    excess = np.abs(distances - ours) / np.maximum(ours, ours.max() * 1e-6)
    if excess.max() > RELATIVE_TIE:
        raise DisagreementError(f"a neighbour's distance differs by {excess.max():.2g} of ours")
    return Agreement(
        "same distances; of equally near points others",
        f"{num_differing} of {got.size} indices differ",
    )


def _scipy(num_threads: int, *, balanced: bool) -> Search:
    from scipy.spatial import cKDTree

    def search(points: NDArray, queries: NDArray, k: int) -> Neighbors:
        tree = cKDTree(points, balanced_tree=balanced, compact_nodes=balanced)
        distances, indices = tree.query(queries, k, workers=num_threads)
        return distances**2, indices

    return search


def _pykdtree() -> Search:
    from pykdtree.kdtree import KDTree

    return lambda points, queries, k: KDTree(points).query(queries, k, sqr_dists=True)


def _open3d() -> Search:
    from mmad_fast.preprocess.reference import import_open3d

    core = import_open3d().core

    def search(points: NDArray, queries: NDArray, k: int) -> Neighbors:
        index = core.nns.NearestNeighborSearch(core.Tensor.from_numpy(points))
        index.knn_index()
        indices, squared = index.knn_search(core.Tensor.from_numpy(queries), k)
        return squared.numpy(), indices.numpy()

    return search


def _faiss() -> Search:
    import faiss

    # Else many queries go through the expanded form, whose rounding is larger than the distances.
    faiss.cvar.distance_compute_blas_threshold = 1 << 30

    def search(points: NDArray, queries: NDArray, k: int) -> Neighbors:
        index = faiss.IndexFlatL2(points.shape[1])
        index.add(points)
        return index.search(queries, k)

    return search


def _sklearn(algorithm: str, num_threads: int) -> Search:
    from sklearn.neighbors import NearestNeighbors

    def search(points: NDArray, queries: NDArray, k: int) -> Neighbors:
        index = NearestNeighbors(n_neighbors=k, algorithm=algorithm, n_jobs=num_threads)
        distances, indices = index.fit(points).kneighbors(queries)
        return distances**2, indices

    return search


def _torch() -> Search:
    import torch

    def search(points: NDArray, queries: NDArray, k: int) -> Neighbors:
        num_bytes = 4 * len(points) * len(queries)
        if num_bytes > MAX_TORCH_BYTES:
            raise RefusalError(f"the matrix of distances takes {num_bytes / 2**30:.1f} GiB")
        mode = "donot_use_mm_for_euclid_dist"
        centers, xyz = torch.from_numpy(queries), torch.from_numpy(points)
        nearest, indices = torch.cdist(centers, xyz, compute_mode=mode).topk(k, largest=False)
        return (nearest**2).numpy(), indices.numpy()

    return search
