import collections.abc
import typing
from typing import ClassVar, overload

import numpy
import numpy.typing

MAX_CENTERS: int
MAX_PLAUSIBLE_METRES: float
MAX_SIDE: int
MIN_PLAUSIBLE_METRES: float

class Bank:
    @overload
    def __init__(
        self,
        rows: numpy.typing.NDArray[numpy.float32],
        mean: numpy.typing.NDArray[numpy.float64],
        basis: numpy.typing.NDArray[numpy.float64],
    ) -> None: ...
    @overload
    def __init__(
        self,
        rows: numpy.typing.NDArray[numpy.uint16],
        mean: numpy.typing.NDArray[numpy.float64],
        basis: numpy.typing.NDArray[numpy.float64],
    ) -> None: ...

class InstructionSet:
    __members__: ClassVar[dict] = ...  # read-only
    AVX2: ClassVar[InstructionSet] = ...
    AVX512: ClassVar[InstructionSet] = ...
    BASELINE: ClassVar[InstructionSet] = ...
    __entries: ClassVar[dict] = ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __int__(self) -> int: ...
    def __ne__(self, other: object) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class PackedEmbedder:
    def __init__(
        self,
        arrays: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float32]],
        instruction_set: InstructionSet,
    ) -> None: ...

class PackedMatrix:
    def __init__(
        self, b: numpy.typing.NDArray[numpy.float32], instruction_set: InstructionSet
    ) -> None: ...

class PackedNetwork:
    def __init__(
        self,
        layers: collections.abc.Sequence[
            tuple[
                typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
                typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
            ]
        ],
        rotation: numpy.typing.NDArray[numpy.float32],
    ) -> None: ...

class PlaneRecipe:
    def __init__(
        self,
        rim_width_px: typing.SupportsInt | typing.SupportsIndex,
        min_rim_points: typing.SupportsInt | typing.SupportsIndex,
        min_inlier_fraction: typing.SupportsFloat | typing.SupportsIndex,
        min_rim_coverage: typing.SupportsFloat | typing.SupportsIndex,
        plane_inlier_m: typing.SupportsFloat | typing.SupportsIndex,
        seed: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

class PointIndex:
    def __init__(self, points: numpy.typing.NDArray[numpy.float32]) -> None: ...

class ScoringStatistics:
    @property
    def measured_rows(self) -> int: ...
    @property
    def opened_groups(self) -> int: ...
    @property
    def plain_queries(self) -> int: ...

class SelectionStatistics:
    @property
    def bounded_pairs(self) -> int: ...
    @property
    def measured_pairs(self) -> int: ...
    @property
    def num_selected(self) -> int: ...
    @property
    def phases(self) -> int: ...
    @property
    def stepped_pairs(self) -> int: ...

def aggregate(
    aggregation: str,
    psi_2d: numpy.typing.NDArray[numpy.float32],
    psi_3d: numpy.typing.NDArray[numpy.float32],
    combined: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def apply_sparse_rows(
    offsets: numpy.typing.NDArray[numpy.int64],
    columns: numpy.typing.NDArray[numpy.int32],
    values: numpy.typing.NDArray[numpy.float32],
    features: numpy.typing.NDArray[numpy.float32],
    dense: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def best_instruction_set() -> InstructionSet: ...
def bilinear_rows(
    pixel_indices: numpy.typing.NDArray[numpy.int64],
    token_grid: typing.SupportsInt | typing.SupportsIndex,
    output_size: typing.SupportsInt | typing.SupportsIndex,
) -> tuple: ...
def cgroup_cores(root: str) -> int: ...
def clear_marks(
    metres: numpy.typing.NDArray[numpy.float32],
    marks: collections.abc.Sequence[
        tuple[
            typing.SupportsFloat | typing.SupportsIndex | None,
            typing.SupportsFloat | typing.SupportsIndex | None,
            typing.SupportsFloat | typing.SupportsIndex | None,
        ]
    ],
    units_per_metre: typing.SupportsFloat | typing.SupportsIndex,
    cleared: numpy.typing.NDArray[numpy.float32] | None,
) -> int: ...
def close_mask(mask: numpy.typing.NDArray[numpy.uint8]) -> None: ...
def cosine_maps(
    targets: list[numpy.typing.NDArray[numpy.float32]],
    restored: list[numpy.typing.NDArray[numpy.float32]],
    sigma: typing.SupportsFloat | typing.SupportsIndex,
    align_corners: bool,
    map: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def density_clusters(
    points: numpy.typing.NDArray[numpy.float32],
    radius: typing.SupportsFloat | typing.SupportsIndex,
    min_points: typing.SupportsInt | typing.SupportsIndex,
    labels: numpy.typing.NDArray[numpy.int32],
) -> None: ...
def draw_depth(
    xyz: numpy.typing.NDArray[numpy.float32],
    plane_removal: typing.SupportsFloat | typing.SupportsIndex,
    picture: numpy.typing.NDArray[numpy.float32],
    foreground: numpy.typing.NDArray[numpy.uint8],
    is_object: numpy.typing.NDArray[numpy.uint8],
) -> tuple[int, bool]: ...
def farthest_point_sampling(
    index: PointIndex,
    start_index: typing.SupportsInt | typing.SupportsIndex,
    skip_near_origin: bool,
    indices: numpy.typing.NDArray[numpy.int64],
) -> None: ...
def find_background_plane(
    xyz: numpy.typing.NDArray[numpy.float32], recipe: PlaneRecipe
) -> tuple[tuple[float, float, float, float] | None, int, int, str]: ...
def fpfh(
    points: numpy.typing.NDArray[numpy.float32],
    normals: numpy.typing.NDArray[numpy.float64],
    indices: numpy.typing.NDArray[numpy.int32],
    squared_distances: numpy.typing.NDArray[numpy.float32],
    counts: numpy.typing.NDArray[numpy.int32],
    max_neighbors: typing.SupportsInt | typing.SupportsIndex,
    squared_radius: typing.SupportsFloat | typing.SupportsIndex,
    features: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def gelu(
    values: numpy.typing.NDArray[numpy.float32], result: numpy.typing.NDArray[numpy.float32]
) -> None: ...
def gemm(
    a: numpy.typing.NDArray[numpy.float32], b: PackedMatrix, c: numpy.typing.NDArray[numpy.float32]
) -> None: ...
def has_instruction_set(instruction_set: InstructionSet) -> bool: ...
def inverse_distance_interpolation(
    index: PointIndex,
    centers: numpy.typing.NDArray[numpy.float32],
    features: numpy.typing.NDArray[numpy.float32],
    dense: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def inverse_distance_weights(
    index: PointIndex,
    centers: numpy.typing.NDArray[numpy.float32],
    indices: numpy.typing.NDArray[numpy.int64],
    weights: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def k_center_greedy(
    rows: numpy.typing.NDArray[numpy.float32],
    mean: numpy.typing.NDArray[numpy.float64],
    basis: numpy.typing.NDArray[numpy.float64],
    start: typing.SupportsInt | typing.SupportsIndex,
    indices: numpy.typing.NDArray[numpy.int64],
    report: collections.abc.Callable,
) -> SelectionStatistics: ...
def keep_largest_cluster(
    xyz: numpy.typing.NDArray[numpy.float32],
    radius: typing.SupportsFloat | typing.SupportsIndex,
    min_points: typing.SupportsInt | typing.SupportsIndex,
    states: numpy.typing.NDArray[numpy.uint8],
) -> int: ...
def knn_grouping(
    index: PointIndex,
    center_indices: numpy.typing.NDArray[numpy.int64],
    num_neighbors: typing.SupportsInt | typing.SupportsIndex,
    indices: numpy.typing.NDArray[numpy.int64],
    groups: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def mark_object(
    xyz: numpy.typing.NDArray[numpy.float32],
    padding: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    plane_removal: typing.SupportsFloat | typing.SupportsIndex,
    is_object: numpy.typing.NDArray[numpy.uint8],
) -> bool: ...
def mark_pixels(
    xyz: numpy.typing.NDArray[numpy.float32],
    plane: numpy.typing.NDArray[numpy.float64],
    removal_distance: typing.SupportsFloat | typing.SupportsIndex,
    states: numpy.typing.NDArray[numpy.uint8],
) -> int: ...
def mean_of_nonzero(values: numpy.typing.NDArray[numpy.float32]) -> float: ...
def nearest_neighbor_scoring(
    queries: numpy.typing.NDArray[numpy.float32],
    bank: Bank,
    distances: numpy.typing.NDArray[numpy.float32],
    indices: numpy.typing.NDArray[numpy.int64],
) -> ScoringStatistics: ...
def nearest_rows(
    query: numpy.typing.NDArray[numpy.float32],
    bank: Bank,
    exclude: typing.SupportsInt | typing.SupportsIndex,
    distances: numpy.typing.NDArray[numpy.float32],
    indices: numpy.typing.NDArray[numpy.int64],
) -> int: ...
def normalise_rgb(
    rgb: numpy.typing.NDArray[numpy.uint8],
    mean: tuple[
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsFloat | typing.SupportsIndex,
    ],
    std: tuple[
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsFloat | typing.SupportsIndex,
    ],
    image: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def num_threads() -> int: ...
def organised_normals(
    xyz: numpy.typing.NDArray[numpy.float32],
    sigma: typing.SupportsFloat | typing.SupportsIndex,
    smoothed: numpy.typing.NDArray[numpy.float32],
    normals: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def pixel_mapping(
    source_features: numpy.typing.NDArray[numpy.float32],
    source_offsets: numpy.typing.NDArray[numpy.int64],
    source_columns: numpy.typing.NDArray[numpy.int32],
    source_values: numpy.typing.NDArray[numpy.float32],
    target_features: numpy.typing.NDArray[numpy.float32],
    target_offsets: numpy.typing.NDArray[numpy.int64],
    target_columns: numpy.typing.NDArray[numpy.int32],
    target_values: numpy.typing.NDArray[numpy.float32],
    network: PackedNetwork,
    psi: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def point_embedding(
    groups: numpy.typing.NDArray[numpy.float32],
    embedder: PackedEmbedder,
    tokens: numpy.typing.NDArray[numpy.float32],
) -> bool: ...
def point_neighbors(
    index: PointIndex,
    squared_radius: typing.SupportsFloat | typing.SupportsIndex,
    indices: numpy.typing.NDArray[numpy.int32],
    squared_distances: numpy.typing.NDArray[numpy.float32],
    counts: numpy.typing.NDArray[numpy.int32],
) -> None: ...
def pooled_interpolation_rows(
    indices: numpy.typing.NDArray[numpy.int64],
    weights: numpy.typing.NDArray[numpy.float32],
    pixel_indices: numpy.typing.NDArray[numpy.int64],
    num_centers: typing.SupportsInt | typing.SupportsIndex,
    grid_size: typing.SupportsInt | typing.SupportsIndex,
    output_size: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[numpy.typing.NDArray[numpy.int64], tuple]: ...
@overload
def read_points(
    raw: numpy.typing.NDArray[numpy.float32],
    units_per_metre: typing.SupportsFloat | typing.SupportsIndex,
    missing: typing.SupportsFloat | typing.SupportsIndex | None,
    metres: numpy.typing.NDArray[numpy.float32],
) -> tuple[list[tuple[tuple[float | None, float | None, float | None], int]], float]: ...
@overload
def read_points(
    raw: numpy.typing.NDArray[numpy.float64],
    units_per_metre: typing.SupportsFloat | typing.SupportsIndex,
    missing: typing.SupportsFloat | typing.SupportsIndex | None,
    metres: numpy.typing.NDArray[numpy.float32],
) -> tuple[list[tuple[tuple[float | None, float | None, float | None], int]], float]: ...
def representative_pixels(
    pixel_indices: numpy.typing.NDArray[numpy.int64],
    grid_size: typing.SupportsInt | typing.SupportsIndex,
    stride: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64]]: ...
def resize_padded_rgb(
    rgb: numpy.typing.NDArray[numpy.uint8],
    padding: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    repeats_edge: bool,
    target: numpy.typing.NDArray[numpy.uint8],
    filter: str = ...,
) -> None: ...
def resize_padded_xyz(
    xyz: numpy.typing.NDArray[numpy.float32],
    states: numpy.typing.NDArray[numpy.uint8],
    padding: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    grid: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def scale_depth(
    xyz: numpy.typing.NDArray[numpy.float32],
    is_object: numpy.typing.NDArray[numpy.uint8],
    low: typing.SupportsFloat | typing.SupportsIndex,
    span: typing.SupportsFloat | typing.SupportsIndex,
    depth: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def select_rows(
    offsets: numpy.typing.NDArray[numpy.int64],
    columns: numpy.typing.NDArray[numpy.int32],
    values: numpy.typing.NDArray[numpy.float32],
    chosen: numpy.typing.NDArray[numpy.int64],
) -> tuple: ...
def set_num_threads(count: typing.SupportsInt | typing.SupportsIndex) -> None: ...
def smooth_map(smoothing: str, map: numpy.typing.NDArray[numpy.float32]) -> None: ...
def sobel_normals(
    depth: numpy.typing.NDArray[numpy.float32],
    is_object: numpy.typing.NDArray[numpy.uint8],
    sobel_size: typing.SupportsInt | typing.SupportsIndex,
    picture: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def stretch_picture(
    image: numpy.typing.NDArray[numpy.float32],
    scale: tuple[
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsFloat | typing.SupportsIndex,
    ],
    shift: tuple[
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsFloat | typing.SupportsIndex,
    ],
    picture: numpy.typing.NDArray[numpy.float32],
) -> None: ...
def surface_normals(
    points: numpy.typing.NDArray[numpy.float32],
    indices: numpy.typing.NDArray[numpy.int32],
    squared_distances: numpy.typing.NDArray[numpy.float32],
    counts: numpy.typing.NDArray[numpy.int32],
    max_neighbors: typing.SupportsInt | typing.SupportsIndex,
    squared_radius: typing.SupportsFloat | typing.SupportsIndex,
    faces_camera: bool,
    normals: numpy.typing.NDArray[numpy.float64],
) -> None: ...
