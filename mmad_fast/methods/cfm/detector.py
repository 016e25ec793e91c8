"""The run half of CFM: prepared scan in, anomaly map and score out. Needs no torch.

Read `FeatureExtractor.extract` and `CfmPipeline.score_features` from top to bottom: that is the
data flow. The published pipeline computes the same densely, see reference.py; README.md has the
algebra that allows the short way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine, open_graph
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import ArtifactError, EmptyScanError
from mmad_fast.methods.cfm import scoring
from mmad_fast.methods.cfm.parameters import EMBEDDER_PREFIX, CfmParameters
from mmad_fast.ops.farthest_point_sampling import OP as SAMPLING_OP
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import OP as INTERPOLATION_OP
from mmad_fast.ops.inverse_distance_interpolation import (
    POOLED_ROWS_OP,
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.knn_grouping import OP as GROUPING_OP
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.pixel_mapping import OP as MAPPING_OP
from mmad_fast.ops.pixel_mapping import (
    MappingNetwork,
    PackedMappingNetwork,
    bilinear_rows,
    pixel_mapping,
)
from mmad_fast.ops.point_embedding import OP as EMBEDDING_OP
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS as POINT_TOKEN_CHANNELS
from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

RGB_GRAPH = "rgb"
POINT_GRAPH = "points"


@dataclass(frozen=True)
class CfmFeatures:
    """The features of one scan: few tokens and groups, and how each pixel mixes them.

    Attributes:
        tokens: (T, C2) float32 RGB tokens, row-major on the token grid.
        token_rows: (P x T) bilinear weights of each foreground pixel.
        point_features: (G, C3) float32 features of the point groups.
        point_rows: (P x G) interpolation and pooling weights of each foreground pixel.
        pixel_indices: (P,) int64 row-major index on the S x S grid, ascending.
    """

    tokens: NDArray[np.float32]
    token_rows: SparseRows
    point_features: NDArray[np.float32]
    point_rows: SparseRows
    pixel_indices: NDArray[np.int64]

    def select(self, pixels: NDArray[np.int64]) -> CfmFeatures:
        """The same scan with the pixels at these positions (R,) only."""
        return replace(
            self,
            token_rows=self.token_rows.select(pixels),
            point_rows=self.point_rows.select(pixels),
            pixel_indices=self.pixel_indices[pixels],
        )


@dataclass(frozen=True)
class CfmScores:
    """What CFM says of one scan.

    Attributes:
        anomaly_map: (S, S) float32, >= 0, exactly 0 far from the object.
        image_score: The maximum of the anomaly map.
    """

    anomaly_map: NDArray[np.float32]
    image_score: float


@dataclass(frozen=True)
class OpBackends:
    """The backend of each op by name: chosen when a detector is made, not anew for every scan."""

    sampling: str
    grouping: str
    embedding: str
    interpolation: str
    pooled_rows: str
    mapping: str

    @classmethod
    def resolve(cls, *, device: str = "cpu") -> OpBackends:
        """The first of each op that can run on the device ("cpu" or "cuda").

        Raises:
            BackendUnavailableError: an op has none.
        """
        return cls(
            sampling=SAMPLING_OP.resolve(device=device).name,
            grouping=GROUPING_OP.resolve(device=device).name,
            embedding=EMBEDDING_OP.resolve(device=device).name,
            interpolation=INTERPOLATION_OP.resolve(device=device).name,
            pooled_rows=POOLED_ROWS_OP.resolve(device=device).name,
            mapping=MAPPING_OP.resolve(device=device).name,
        )


class FeatureExtractor:
    """Both frozen backbones and the geometry between them. `extract` is thread-safe."""

    def __init__(
        self, rgb: Engine, points: Engine, embedder: EmbedderWeights, parameters: CfmParameters
    ) -> None:
        """Takes the graph "rgb" (image (1, 3, R, R) -> tokens (1, T, C2)), the graph "points"
        (tokens (1, G, 384), centers (1, G, 3) -> features (1, G, C3)), and the embedder that makes
        the latter's tokens."""
        self._rgb = rgb
        self._points = points
        self._embedder = embedder
        self._parameters = parameters
        self.backends = OpBackends.resolve()

    def with_engines(self, wrap: Callable[[str, Engine], Engine]) -> FeatureExtractor:
        """The same extractor, each engine replaced by what `wrap` makes of its graph's name and
        it."""
        rgb, points = wrap(RGB_GRAPH, self._rgb), wrap(POINT_GRAPH, self._points)
        return FeatureExtractor(rgb, points, self._embedder, self._parameters)

    def extract(self, prepared: PreparedScan, clock: StageClock) -> CfmFeatures:
        """The features of a prepared scan.

        Raises:
            EmptyScanError: fewer foreground points than one group holds.
        """
        parameters, points, backends = self._parameters, prepared.points, self.backends
        require_points(prepared, parameters.group_size)
        with clock.stage("rgb_tokens"):
            tokens = self._rgb.run({"image": prepared.rgb[None]})["tokens"][0]  # (T, C2)
        with clock.stage("sampling"):
            index = PointIndex(points)
            center_indices = farthest_point_sampling(
                points,
                parameters.num_groups,
                skip_near_origin=parameters.skip_near_origin,
                index=index,
                backend=backends.sampling,
            )
            centers = points[center_indices]  # (G, 3)
        with clock.stage("grouping"):
            groups = knn_grouping(
                points,
                center_indices,
                parameters.group_size,
                index=index,
                backend=backends.grouping,
            ).groups
        with clock.stage("point_embedding"):
            group_tokens = point_embedding(groups, self._embedder, backend=backends.embedding)
        with clock.stage("point_features"):
            inputs = {"tokens": group_tokens[None], "centers": centers[None]}
            point_features = self._points.run(inputs)["features"][0]  # (G, C3)
        with clock.stage("interpolation"):
            point_rows, pixel_indices = pooled_interpolation_rows(
                inverse_distance_weights(
                    points, centers, index=index, backend=backends.interpolation
                ),
                prepared.pixel_indices,
                num_centers=parameters.num_groups,
                grid_size=prepared.grid_size,
                output_size=prepared.grid_size,
                backend=backends.pooled_rows,
            )
            token_rows = bilinear_rows(
                pixel_indices, token_grid=parameters.token_grid, output_size=prepared.grid_size
            )
        return CfmFeatures(tokens, token_rows, point_features, point_rows, pixel_indices)


class CfmPipeline:
    """A fitted CFM detector. `score` is thread-safe."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        networks: Mapping[str, MappingNetwork | PackedMappingNetwork],
        parameters: CfmParameters,
    ) -> None:
        """Takes the mapping networks by name, see parameters.MAPPINGS; use `from_artifact`."""
        self.extractor = extractor
        self.parameters = parameters
        self._networks = {name: networks[name] for name in parameters.networks.values()}

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, *, engine: EngineChoice, num_threads: int | None = None
    ) -> CfmPipeline:
        """The pipeline in an artifact, its graphs run by the engine from the files of the choice.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine.
        """
        parameters = CfmParameters.from_dict(artifact.manifest.parameters)
        rgb, points = (
            open_graph(engine.files[name], engine=engine.engine, num_threads=num_threads)
            for name in (RGB_GRAPH, POINT_GRAPH)
        )
        check_shapes(artifact, rgb, points, parameters)
        tensors = artifact.tensors()
        embedder = EmbedderWeights.from_tensors(tensors, EMBEDDER_PREFIX)
        extractor = FeatureExtractor(rgb, points, embedder, parameters)
        plain = mapping_networks(tensors, parameters)
        if extractor.backends.mapping != "cpu":
            return cls(extractor, plain, parameters)
        packed = {name: network.packed for name, network in plain.items()}
        return cls(extractor, packed, parameters)

    def with_engines(self, wrap: Callable[[str, Engine], Engine]) -> CfmPipeline:
        """The same pipeline, each engine replaced by what `wrap` makes of its graph's name and
        it."""
        return CfmPipeline(self.extractor.with_engines(wrap), self._networks, self.parameters)

    @property
    def is_exact(self) -> bool:
        """The answer is the published pipeline's, up to rounding."""
        return self.parameters.is_exact

    def score(self, prepared: PreparedScan, clock: StageClock) -> CfmScores:
        """The anomaly map and image score of a prepared scan.

        Raises:
            EmptyScanError: fewer foreground points than one group holds.
        """
        return self.score_features(self.extractor.extract(prepared, clock), clock)

    def score_features(self, features: CfmFeatures, clock: StageClock) -> CfmScores:
        """The anomaly map and image score of extracted features."""
        with clock.stage("mapping"):
            chosen, owner = evaluated_pixels(features.pixel_indices, self.parameters)
            evaluated = features if isinstance(chosen, slice) else features.select(chosen)
            psi = {
                name: self._discrepancy(evaluated, network)[owner]
                for name, network in self.parameters.networks.items()
            }
        with clock.stage("scoring"):
            return score_pixels(psi, features.pixel_indices, self.parameters)

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC) as the public code scales them per image."""
        return published_evaluation_maps(anomaly_map, self.parameters)

    def _discrepancy(self, features: CfmFeatures, network: str) -> NDArray[np.float32]:
        """(P,) distance of unit vectors: the target's features and their prediction."""
        sides = {
            "rgb": (features.tokens, features.token_rows),
            "point": (features.point_features, features.point_rows),
        }
        source, target = network.split("_to_")
        return pixel_mapping(
            *sides[source],
            *sides[target],
            self._networks[network],
            backend=self.extractor.backends.mapping,
        )


def evaluated_pixels(
    pixel_indices: NDArray[np.int64], parameters: CfmParameters
) -> tuple[NDArray[np.int64] | slice, NDArray[np.int64] | slice]:
    """(positions (R,) of the pixels whose discrepancy is computed, where each of the P pixels finds
    its own among them); slices of everything where all are computed."""
    if parameters.pixel_stride == 1:
        return slice(None), slice(None)
    return scoring.representative_pixels(
        pixel_indices, grid_size=parameters.grid_size, stride=parameters.pixel_stride
    )


def score_pixels(
    psi: Mapping[str, NDArray[np.float32]],
    pixel_indices: NDArray[np.int64],
    parameters: CfmParameters,
) -> CfmScores:
    """The anomaly map and image score from the discrepancies psi (P,) by name, at pixel_indices."""
    psi_pixels = scoring.aggregate(psi, aggregation=parameters.aggregation)  # (P,)
    psi_map = scoring.scatter_to_map(psi_pixels, pixel_indices, grid_size=parameters.grid_size)
    smoothed = scoring.smooth(psi_map, smoothing=parameters.smoothing)
    anomaly_map = scoring.normalize(smoothed, score_norm=parameters.score_norm)
    return CfmScores(anomaly_map, float(anomaly_map.max()))


def published_evaluation_maps(
    anomaly_map: NDArray[np.float32], parameters: CfmParameters
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(map for AUPRO, map for pixel AUROC) as the public code scales them per image."""
    if parameters.score_norm == "raw":
        return anomaly_map, anomaly_map
    return scoring.published_evaluation_maps(anomaly_map)


def check_shapes(
    artifact: Artifact, rgb: Engine, points: Engine, parameters: CfmParameters
) -> None:
    """Raises ArtifactError where a graph does not fit the manifest's parameters."""
    side, num_groups = parameters.rgb_size, parameters.num_groups
    wanted = {
        "image": (1, 3, side, side),
        "tokens": (1, num_groups, POINT_TOKEN_CHANNELS),
        "centers": (1, num_groups, 3),
    }
    found = {**rgb.input_shapes, **points.input_shapes}
    for name, shape in wanted.items():
        if found.get(name) != shape:
            raise ArtifactError(
                f"{artifact.path}: graph input {name!r} has shape {found.get(name)}, the "
                f"manifest's parameters need {shape}; fit the detector again"
            )


def mapping_networks(
    tensors: Mapping[str, NDArray], parameters: CfmParameters
) -> dict[str, MappingNetwork]:
    """The networks that the detector's aggregation reads, from tensors named "NETWORK.KEY"."""
    return {
        name: MappingNetwork.from_tensors(tensors, f"{name}.")
        for name in parameters.networks.values()
    }


def require_points(prepared: PreparedScan, group_size: int) -> None:
    num_points = len(prepared.points)
    if num_points >= group_size:
        return
    label = f"scan {prepared.name!r}" if prepared.name else "the scan"
    raise EmptyScanError(
        f"{label} has {num_points} foreground points on the {prepared.grid_size}x"
        f"{prepared.grid_size} grid, the detector needs at least {group_size}; check that the part "
        "is in view (an empty fixture is no scan), that the unit is right (unit='mm' for "
        "millimetres), and that the background plane is not the part itself"
    )
