"""The k nearest points by every library that finds them exactly: index built and queried anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from ops.case import Agreement, DisagreementError, RefusalError
from ops.inputs import Floats, Integers

Neighbors = tuple[NDArray, NDArray]
"""Squared distances (Q, K) and indices (Q, K), nearest first."""

Search = Callable[[Floats, Floats, int], Neighbors]
"""(points (N, 3), queries (Q, 3), K) -> neighbours."""

RELATIVE_TIE = 1e-5
MAX_TORCH_BYTES = 1 << 30


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
