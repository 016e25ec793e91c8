"""Hostile calls of every public op and of the compiled kernels' own functions.

A call is a valid one of which one or two arguments were replaced. Right are a result or a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from robustness.attack import ANSWER, REFUSAL, WRONG_EXCEPTION, Outcome, Work, run_guarded

from mmad_fast import _kernels
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.ops.cosine_maps import cosine_maps
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.fpfh import fpfh
from mmad_fast.ops.inverse_distance_interpolation import (
    InterpolationWeights,
    inverse_distance_interpolation,
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.k_center_greedy import k_center_greedy
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.nearest_neighbor_scoring import (
    PreparedBank,
    nearest_neighbor_scoring,
    nearest_rows,
)
from mmad_fast.ops.pixel_mapping import MappingNetwork, bilinear_rows, pixel_mapping
from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding
from mmad_fast.ops.point_embedding.weights import SHAPES
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.point_neighbors import PointNeighbors, find_neighbors
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.ops.surface_normals import surface_normals
from mmad_fast.preprocess.clean_up import density_clusters
from mmad_fast.threads import set_num_threads

Arguments = dict[str, Any]
SECONDS_PER_CALL = 20
COUNTS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    10**4,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
)
ODD_VALUES = (None, "3", b"3", 1.5, np.nan, np.inf, -np.inf, True, [], (), {}, object(), 3 + 4j)
NUMBERS = (0.0, -1.0, 1e-300, 1e-12, 1e30, 1e300, 5, *COUNTS)
DTYPES = ("?", "i1", "u1", "i2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "c8", ">f4", ">i8")


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 1, shape).astype(np.float32)


def sparse_arrays(rng: np.random.Generator, rows: int, columns: int) -> list[Any]:
    lengths = rng.integers(0, 4, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    chosen = rng.integers(0, columns, offsets[-1]).astype(np.int32)
    return [offsets, chosen, floats(rng, len(chosen)), columns]


def hostile_content(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """The array with some values that are out of any range."""
    array = array.copy()
    if array.size == 0:
        return array
    places = rng.integers(0, array.size, rng.integers(1, 4))
    if array.dtype.kind == "f":
        values = rng.choice([np.nan, np.inf, -np.inf, 3e38, -1e20, 1e-45, 1e18, 0], len(places))
    else:
        values = rng.choice([-1, -(2**31), 2**31 - 1, 10**6, array.size, 0], len(places))
    with np.errstate(all="ignore"):
        array.reshape(-1)[places] = values.astype(array.dtype, casting="unsafe")
    return array


def hostile_layout(rng: np.random.Generator, array: np.ndarray) -> Any:
    """The array in another type, shape or place."""
    with np.errstate(all="ignore"):
        changes: list[Callable[[], Any]] = [
            lambda: array.astype(rng.choice(DTYPES)),
            lambda: array.T,
            lambda: array[::-1],
            lambda: array[..., ::2],
            lambda: array[:0],
            lambda: array[..., :0],
            lambda: array[:-1],
            lambda: np.concatenate([array, array]) if array.ndim else array,
            lambda: array[None],
            lambda: array.reshape(-1),
            lambda: array.reshape(-1)[:1].reshape(()) if array.size else array,
            lambda: np.asfortranarray(array),
            lambda: array.tolist(),
            lambda: [array.tolist(), [1]],
            lambda: array.astype(object),
            lambda: array.astype(str),
            lambda: np.ma.masked_array(array),
            lambda: array.astype("M8[s]") if array.dtype.kind == "i" else array,
            lambda: array.reshape(-1).view(np.uint8)[1:][: 4 * (array.size - 1)].view(np.float32),
            lambda: memoryview(np.ascontiguousarray(array)),
            lambda: array.tobytes(),
        ]
        try:
            changed = changes[rng.integers(len(changes))]()
        except (ValueError, IndexError, TypeError):  # there is no such form of this array
            return array
    if isinstance(changed, np.ndarray) and rng.random() < 0.3:
        changed = changed.view()
        changed.flags.writeable = False
    return changed


def hostile(rng: np.random.Generator, value: Any) -> Any:
    """Something in the place of a valid argument."""
    if rng.random() < 0.1:
        return ODD_VALUES[rng.integers(len(ODD_VALUES))]
    if isinstance(value, np.ndarray):
        change = hostile_content if rng.random() < 0.5 else hostile_layout
        return change(rng, value)
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return ODD_VALUES[rng.integers(len(ODD_VALUES))]
    if isinstance(value, int):
        count = COUNTS[rng.integers(len(COUNTS))]
        return np.int64(count) if abs(count) < 2**63 and rng.random() < 0.3 else count
    if isinstance(value, float):
        return NUMBERS[rng.integers(len(NUMBERS))]
    if isinstance(value, (tuple, list)) and value:
        changed = list(value)
        place = rng.integers(len(changed))
        changed[place] = hostile(rng, changed[place])
        if rng.random() < 0.2:
            changed.pop()
        return type(value)(changed) if type(value) in (tuple, list) else tuple(changed)
    return ODD_VALUES[rng.integers(len(ODD_VALUES))]


SPARSE_NAMES = ("offsets", "columns", "values", "num_columns")


def named(prefix: str, arrays: list[Any]) -> Arguments:
    return {prefix + name: array for name, array in zip(SPARSE_NAMES, arrays, strict=True)}


def sparse_rows_in_use(*, chosen, features, **arrays) -> None:
    rows = SparseRows(**arrays)
    rows.select(chosen).apply(features)
    rows.apply(features)


def mapped_pixels(*, source, target, weights, biases, **arrays) -> None:
    rows = [SparseRows(*(arrays[prefix + name] for name in SPARSE_NAMES)) for prefix in "st"]
    pixel_mapping(source, rows[0], target, rows[1], MappingNetwork(weights, biases))


def changed_rows_in_use(*, place, value, chosen, features, **arrays) -> None:
    """A caller that breaks the contract, and changes rows after they were made."""
    rows = SparseRows(**arrays)
    which = (rows.offsets, rows.columns)[place % 2]
    if isinstance(which, np.ndarray) and which.flags.writeable:
        which[place % which.size if which.size else slice(None)] = value
    rows.select(chosen)
    rows.apply(features)


def neighbors_in_use(*, points, **arrays) -> None:
    neighbors = PointNeighbors(**arrays)
    surface_normals(points, max_neighbors=3, neighbors=neighbors)
    fpfh(points, normal_neighbors=3, max_neighbors=2, neighbors=neighbors)


def embedded(*, groups, **arrays) -> None:
    point_embedding(groups, EmbedderWeights(**arrays))


def cloud(rng: np.random.Generator) -> np.ndarray:
    return floats(rng, int(rng.integers(3, 40)), 3)


def public_calls(rng: np.random.Generator) -> list[tuple[Callable[..., Any], Arguments]]:
    points, centers = cloud(rng), floats(rng, 5, 3)
    pixels = np.sort(rng.choice(64, len(points), replace=False)) if len(points) < 64 else None
    weights = inverse_distance_weights(points, centers)
    rows, columns = 6, 5
    network = ((floats(rng, 8, 4), floats(rng, 3, 8)), (floats(rng, 8), floats(rng, 3)))
    embedder = {name: floats(rng, *shape) for name, shape in SHAPES.items()}
    backend = str(rng.choice(["auto", "cpu", "reference", "cuda", "abacus"]))
    return [
        (
            farthest_point_sampling,
            {
                "points": points,
                "num_samples": 4,
                "start_index": 1,
                "skip_near_origin": bool(rng.random() < 0.5),
                "index": None,
                "backend": backend,
            },
        ),
        (
            knn_grouping,
            {
                "points": points,
                "center_indices": np.array([0, 2]),
                "num_neighbors": 3,
                "index": None,
                "backend": backend,
            },
        ),
        (
            surface_normals,
            {
                "points": points,
                "max_neighbors": 5,
                "radius": 0.7,
                "orientation": "open3d",
                "neighbors": find_neighbors(points, 6),
                "index": None,
                "backend": backend,
            },
        ),
        (
            fpfh,
            {
                "points": points,
                "normals": None if rng.random() < 0.5 else surface_normals(points),
                "normal_neighbors": 4,
                "normal_radius": 0.9,
                "max_neighbors": 6,
                "radius": None,
                "orientation": "camera",
                "backend": backend,
            },
        ),
        (find_neighbors, {"points": points, "max_neighbors": 5, "radius": 0.7, "index": None}),
        (
            neighbors_in_use,
            {
                "points": points,
                "indices": np.tile(np.arange(3, dtype=np.int32), (len(points), 1)),
                "squared_distances": np.tile(np.arange(3, dtype=np.float32), (len(points), 1)),
                "counts": np.full(len(points), 3, np.int32),
                "max_neighbors": 3,
                "radius": None,
            },
        ),
        (inverse_distance_weights, {"points": points, "centers": centers, "backend": backend}),
        (
            inverse_distance_interpolation,
            {
                "features": floats(rng, 5, 7),
                "centers": centers,
                "points": points,
                "backend": backend,
            },
        ),
        (
            pooled_interpolation_rows,
            {
                "weights": InterpolationWeights(*weights),
                "pixel_indices": pixels,
                "num_centers": 5,
                "grid_size": 8,
                "output_size": 8,
                "backend": backend,
            },
        ),
        (
            nearest_neighbor_scoring,
            {"queries": floats(rng, 4, 6), "bank": floats(rng, 9, 6), "backend": backend},
        ),
        (
            lambda query, bank, **options: nearest_rows(query, PreparedBank(bank), **options),
            {
                "query": floats(rng, 6),
                "bank": floats(rng, 9, 6).astype(rng.choice(["f2", "f4"])),
                "count": 3,
                "exclude": 0,
                "backend": backend,
            },
        ),
        (nearest_rows, {"query": floats(rng, 6), "bank": floats(rng, 9, 6), "count": 3}),
        (k_center_greedy, {"rows": floats(rng, 20, 4), "num_samples": 5, "start": 3}),
        (
            cosine_maps,
            {
                "targets": [floats(rng, 4, 3, 5), floats(rng, 2, 1, 1)],
                "restored": [floats(rng, 4, 3, 5), floats(rng, 2, 1, 1)],
                "size": 6,
                "sigma": 1.5,
                "align_corners": bool(rng.random() < 0.5),
                "backend": backend,
            },
        ),
        (bilinear_rows, {"pixel_indices": np.arange(9), "token_grid": 3, "output_size": 8}),
        (
            mapped_pixels,
            {
                "source": floats(rng, columns, 4),
                "target": floats(rng, 9, 3),
                "weights": network[0],
                "biases": network[1],
                **named("s", sparse_arrays(rng, rows, columns)),
                **named("t", sparse_arrays(rng, rows, 9)),
            },
        ),
        (
            sparse_rows_in_use,
            {
                "chosen": np.array([1, 0, 5]),
                "features": floats(rng, columns, 3),
                **named("", sparse_arrays(rng, rows, columns)),
            },
        ),
        (
            lambda **arguments: changed_rows_in_use(
                place=int(rng.integers(20)), value=int(rng.integers(-(2**31), 2**31)), **arguments
            ),
            {
                "chosen": np.array([1, 0, 5]),
                "features": floats(rng, columns, 3),
                **named("", sparse_arrays(rng, rows, columns)),
            },
        ),
        (embedded, {"groups": floats(rng, 2, 4, 3), **embedder}),
        (PointIndex, {"points": points}),
        (density_clusters, {"points": points, "radius": 0.7, "min_points": 3}),
        (set_num_threads, {"count": 2}),
    ]


def kernel_calls(rng: np.random.Generator) -> list[tuple[Callable[..., Any], Arguments]]:
    """What a caller of the compiled module itself can get wrong: sizes and indices."""
    points, centers = cloud(rng), floats(rng, 5, 3)
    n = len(points)
    index = _kernels.PointIndex(points)
    rows_of_neighbors = [
        rng.integers(0, n, (n, 4)).astype(np.int32),
        floats(rng, n, 4),
        np.full(n, 4, np.int32),
    ]
    bank = _kernels.Bank(floats(rng, 9, 6), np.zeros(6), np.zeros((6, 0)))
    xyz, states = floats(rng, 6, 5, 3), np.ones(30, np.uint8)
    best = _kernels.best_instruction_set()
    packed = _kernels.PackedMatrix(floats(rng, 4, 6), best)
    layers = [(floats(rng, 8, 4), floats(rng, 8)), (floats(rng, 3, 8), floats(rng, 3))]
    network = _kernels.PackedNetwork(layers, floats(rng, 3, 3))
    embedder = [floats(rng, *shape) for shape in SHAPES.values()]
    kernel_embedder = _kernels.PackedEmbedder(embedder, best)
    source, target = sparse_arrays(rng, 6, 5), sparse_arrays(rng, 6, 9)
    rgb = np.zeros((6, 5, 3), np.uint8)
    calls: list[tuple[Callable[..., Any], list[Any]]] = [
        (_kernels.read_points, [xyz, 1.0, -1.0, np.zeros((6, 5, 3), np.float32)]),
        (_kernels.clear_marks, [xyz, [(1.0, None, 0.5)], 1.0, np.zeros((6, 5, 3), np.float32)]),
        (_kernels.mark_pixels, [xyz, np.zeros(4), 0.1, states]),
        (_kernels.keep_largest_cluster, [xyz, 0.7, 3, states]),
        (_kernels.density_clusters, [points, 0.7, 3, np.zeros(n, np.int32)]),
        (_kernels.resize_padded_rgb, [rgb, (0, 0, 0, 1), True, np.zeros((4, 4, 3), np.uint8)]),
        (_kernels.resize_padded_xyz, [xyz, states, (0, 0, 0, 1), np.zeros((4, 4, 3), np.float32)]),
        (_kernels.normalise_rgb, [rgb, (0.0,) * 3, (1.0,) * 3, np.zeros((3, 6, 5), np.float32)]),
        (_kernels.PointIndex, [points]),
        (_kernels.farthest_point_sampling, [index, 1, True, np.zeros(4, np.int64)]),
        (
            _kernels.knn_grouping,
            [index, np.array([0, 2]), 3, np.zeros((2, 3), np.int64), np.zeros((2, 3, 3), "f4")],
        ),
        (
            _kernels.point_neighbors,
            [index, 0.5, np.zeros((n, 3), np.int32), np.zeros((n, 3), "f4"), np.zeros(n, "i4")],
        ),
        (_kernels.surface_normals, [points, *rows_of_neighbors, 3, 0.5, True, np.zeros((n, 3))]),
        (
            _kernels.fpfh,
            [points, np.zeros((n, 3)), *rows_of_neighbors, 3, 0.5, np.zeros((n, 33), np.float32)],
        ),
        (
            _kernels.inverse_distance_weights,
            [index, centers, np.zeros((n, 3), np.int64), np.zeros((n, 3), np.float32)],
        ),
        (
            _kernels.inverse_distance_interpolation,
            [index, centers, floats(rng, 5, 7), np.zeros((n, 7), np.float32)],
        ),
        (
            _kernels.pooled_interpolation_rows,
            [rng.integers(0, 5, (n, 3)), floats(rng, n, 3), np.arange(n) % 64, 5, 8, 8],
        ),
        (_kernels.PackedMatrix, [floats(rng, 4, 6), best]),
        (_kernels.gemm, [floats(rng, 3, 6), packed, np.zeros((3, 4), np.float32)]),
        (_kernels.Bank, [floats(rng, 9, 6), np.zeros(6), np.zeros((6, 0))]),
        (
            _kernels.nearest_neighbor_scoring,
            [floats(rng, 4, 6), bank, np.zeros(4, np.float32), np.zeros(4, np.int64)],
        ),
        (
            _kernels.nearest_rows,
            [floats(rng, 6), bank, -1, np.zeros(3, np.float32), np.zeros(3, np.int64)],
        ),
        (
            _kernels.k_center_greedy,
            [
                floats(rng, 20, 4),
                np.zeros(4),
                np.zeros((4, 0)),
                3,
                np.zeros(5, np.int64),
                lambda _: None,
            ],
        ),
        (_kernels.bilinear_rows, [np.arange(9), 3, 8]),
        (_kernels.select_rows, [*source[:3], np.array([1, 0, 5])]),
        (
            _kernels.apply_sparse_rows,
            [*source[:3], floats(rng, 5, 3), np.zeros((6, 3), np.float32)],
        ),
        (_kernels.PackedNetwork, [layers, floats(rng, 3, 3)]),
        (
            _kernels.pixel_mapping,
            [
                floats(rng, 5, 4),
                *source[:3],
                floats(rng, 9, 3),
                *target[:3],
                network,
                np.zeros(6, np.float32),
            ],
        ),
        (
            _kernels.cosine_maps,
            [[floats(rng, 4, 3, 5)], [floats(rng, 4, 3, 5)], 1.5, True, np.zeros((6, 6), "f4")],
        ),
        (_kernels.gelu, [floats(rng, 9), np.zeros(9, np.float32)]),
        (_kernels.PackedEmbedder, [embedder, best]),
        (
            _kernels.point_embedding,
            [floats(rng, 2, 4, 3), kernel_embedder, np.zeros((2, 384), np.float32)],
        ),
        (_kernels.aggregate, ["sum", floats(rng, 9), floats(rng, 9), np.zeros(9, np.float32)]),
        (_kernels.representative_pixels, [np.arange(9), 8, 2]),
        (_kernels.smooth_map, ["boxes53", floats(rng, 40, 40)]),
        (_kernels.mean_of_nonzero, [floats(rng, 9)]),
    ]
    return [
        (function, {str(place): value for place, value in enumerate(arguments)})
        for function, arguments in calls
    ]


def run(count: int, seed: int) -> Iterator[Outcome]:
    """What became of `count` calls."""
    yield from run_guarded(caller, (seed,), range(count), limit_s=SECONDS_PER_CALL)


def caller(seed: int) -> Work:
    """Makes the call of a number."""

    def work(case: int) -> Outcome:
        rng = np.random.default_rng([seed, case])
        by_place = bool(rng.random() < 0.6)  # there are more kernels than ops
        calls = (kernel_calls if by_place else public_calls)(rng)
        function, arguments = calls[rng.integers(len(calls))]
        for name in rng.choice(list(arguments), rng.integers(1, 3)):
            arguments[name] = hostile(rng, arguments[name])
        outcome = call(function, arguments, by_place=by_place)
        return outcome._replace(case=f"{case}: {name_of(function)}")

    return work


def call(function: Callable[..., Any], arguments: Arguments, *, by_place: bool) -> Outcome:
    """What came of a call."""
    refusals: tuple[type[Exception], ...] = (InvalidInputError, BackendUnavailableError)
    if by_place:  # pybind11 answers arguments of other types and arrays that are read-only
        refusals = (InvalidInputError, TypeError, ValueError)
    try:
        function(*arguments.values()) if by_place else function(**arguments)
    except refusals:
        return Outcome(REFUSAL)
    except Exception as error:
        given = {name: repr(value)[:80] for name, value in arguments.items()}
        return Outcome(WRONG_EXCEPTION, what=f"{type(error).__name__}: {error}, of {given}")
    return Outcome(ANSWER)


def name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", str(function))
