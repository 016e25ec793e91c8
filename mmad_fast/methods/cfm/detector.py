"""The run half of CFM: prepared scan in, anomaly map and score out. Needs no torch.

Read `FeatureExtractor.extract` and `CfmPipeline.score_features` from top to bottom: that is the
data flow; its first steps, which other methods share, are in methods/branches. The
published pipeline computes the same densely, see reference.py; README.md has the algebra that
allows the short way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import ArtifactError
from mmad_fast.methods.branches.branch import HOST, Place, require_points
from mmad_fast.methods.branches.point_groups.extractor import (
    PointExtractor,
    PointGroups,
    point_channels,
)
from mmad_fast.methods.branches.vit_tokens.extractor import RgbExtractor, tokens_shape
from mmad_fast.methods.cfm import scoring
from mmad_fast.methods.cfm.features import CfmFeatures
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.cfm.token_features import (
    FPFH_CHANNELS,
    FpfhTokens,
    GeometryTokens,
    NormalsTokens,
    TokenFeatureExtractor,
)
from mmad_fast.ops.inverse_distance_interpolation import (
    POOLED_ROWS_OP,
    PooledRows,
    pooled_interpolation_rows,
)
from mmad_fast.ops.pixel_mapping import OP as MAPPING_OP
from mmad_fast.ops.pixel_mapping import (
    MappingNetwork,
    PackedMappingNetwork,
    bilinear_rows,
    pixel_mapping,
)
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class CfmScores:
    """What CFM says of one scan.

    Attributes:
        anomaly_map: (S, S) float32, >= 0, exactly 0 far from the object.
        image_score: The maximum of the anomaly map.
    """

    anomaly_map: NDArray[np.float32]
    image_score: float


class FeatureExtractor:
    """Both frozen backbones, and how the pixels mix their features. `extract` is thread-safe."""

    def __init__(
        self, rgb: RgbExtractor, point: PointExtractor, options: CfmOptions, place: Place = HOST
    ) -> None:
        """Takes the branches, which run in the place."""
        self.place = place
        self._rows_backend = POOLED_ROWS_OP.resolve(device=place.device_kind).name
        self._rgb = rgb
        self._point = point
        self._options = options

    def extract(self, prepared: PreparedScan, clock: StageClock) -> CfmFeatures:
        """The features of a prepared scan.

        Raises:
            EmptyScanError: fewer foreground points than one group holds.
        """
        tokens, groups = self._run_branches(prepared, clock)
        with clock.stage("interpolation"):
            point_rows, pixel_indices = self._point_rows(groups, prepared)
            token_rows = self._token_rows(pixel_indices, prepared)
        return CfmFeatures(tokens, token_rows, groups.features, point_rows, pixel_indices)

    def _run_branches(
        self, prepared: PreparedScan, clock: StageClock
    ) -> tuple[NDArray[np.float32], PointGroups]:
        """(tokens (T, C2), groups with features (G, C3) and weights (N, 3))."""
        require_points(prepared, self._options.group_size)  # before a backbone is run for nothing
        image, points = self.place.upload_scan(prepared, clock)
        return self._rgb.tokens(image, clock), self._point.groups(points, clock)

    def _point_rows(self, groups: PointGroups, prepared: PreparedScan) -> PooledRows:
        """How the pixels of the map mix the groups, and which pixels have points."""
        return pooled_interpolation_rows(
            groups.weights,
            prepared.pixel_indices,
            num_centers=self._options.num_groups,
            grid_size=prepared.grid_size,
            output_size=prepared.grid_size,
            backend=self._rows_backend,
        )

    def _token_rows(self, pixel_indices: NDArray[np.int64], prepared: PreparedScan) -> SparseRows:
        """How the pixels (P,) mix the tokens."""
        token_grid, size = self._options.token_grid, prepared.grid_size
        return bilinear_rows(pixel_indices, token_grid=token_grid, output_size=size)


class CfmPipeline:
    """A fitted CFM detector. `score` is thread-safe."""

    def __init__(
        self,
        extractor: FeatureExtractor | TokenFeatureExtractor,
        networks: Mapping[str, MappingNetwork | PackedMappingNetwork],
        options: CfmOptions,
    ) -> None:
        """Takes the mapping networks by name, see options.MAPPINGS; use `from_artifact`."""
        self.extractor = extractor
        self.options = options
        self._mapping_backend = MAPPING_OP.resolve(device=extractor.place.device_kind).name
        self._networks = {name: networks[name] for name in options.networks.values()}

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> CfmPipeline:
        """The pipeline in an artifact, its graphs run as the choice says.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine.
        """
        options = CfmOptions.from_manifest(artifact.manifest.parameters)
        rgb = RgbExtractor.from_artifact(artifact, choice, options)
        extractor: FeatureExtractor | TokenFeatureExtractor
        if options.geometry == "point":
            point = PointExtractor.from_artifact(artifact, choice, options)
            extractor = FeatureExtractor(rgb, point, options)
        else:
            extractor = TokenFeatureExtractor(rgb, geometry_tokens(rgb, options), options)
        plain = read_networks(artifact, options)
        if MAPPING_OP.resolve().name != "cpu":
            return cls(extractor, plain, options)
        packed = {name: network.packed for name, network in plain.items()}
        return cls(extractor, packed, options)

    def score(self, prepared: PreparedScan, clock: StageClock) -> CfmScores:
        """The anomaly map and image score of a prepared scan.

        Raises:
            EmptyScanError: fewer foreground points than one group holds.
        """
        with self.extractor.place.current():
            return self.score_features(self.extractor.extract(prepared, clock), clock)

    def score_features(self, features: CfmFeatures, clock: StageClock) -> CfmScores:
        """The anomaly map and image score of extracted features."""
        with clock.stage("mapping"):
            chosen, owner = evaluated_pixels(features.pixel_indices, self.options)
            evaluated = features if isinstance(chosen, slice) else features.select(chosen)
            psi = {
                name: self.discrepancy(evaluated, network)[owner]
                for name, network in self.options.networks.items()
            }
        with clock.stage("scoring"):
            return score_pixels(psi, features.pixel_indices, self.options, features.pixel_rows)

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC) as the public code scales them per image."""
        if self.options.score_norm == "raw":
            return anomaly_map, anomaly_map
        return scoring.published_evaluation_maps(anomaly_map)

    def discrepancy(self, features: CfmFeatures, network: str) -> NDArray[np.float32]:
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
            backend=self._mapping_backend,
        )


def evaluated_pixels(
    pixel_indices: NDArray[np.int64], options: CfmOptions
) -> tuple[NDArray[np.int64] | slice, NDArray[np.int64] | slice]:
    """(positions (R,) of the pixels whose discrepancy is computed, where each of the P pixels finds
    its own among them); slices of everything where all are computed."""
    if options.pixel_stride == 1 or options.geometry != "point":
        return slice(None), slice(None)
    return scoring.representative_pixels(
        pixel_indices, grid_size=options.grid_size, stride=options.pixel_stride
    )


def score_pixels(
    psi: Mapping[str, NDArray[np.float32]],
    pixel_indices: NDArray[np.int64],
    options: CfmOptions,
    pixel_rows: SparseRows | None = None,
) -> CfmScores:
    """The anomaly map and image score from the discrepancies psi (P,) by name, at pixel_indices; or
    (R,), where pixel_rows (P x R) spread them."""
    psi_pixels = scoring.aggregate(psi, aggregation=options.aggregation)  # (P,)
    if pixel_rows is not None:
        psi_pixels = pixel_rows.apply(psi_pixels[:, None])[:, 0]
    psi_map = scoring.scatter_to_map(psi_pixels, pixel_indices, grid_size=options.grid_size)
    smoothed = scoring.smooth(psi_map, smoothing=options.smoothing)
    anomaly_map = scoring.normalize(smoothed, score_norm=options.score_norm)
    return CfmScores(anomaly_map, float(anomaly_map.max()))


def geometry_tokens(rgb: RgbExtractor, options: CfmOptions, place: Place = HOST) -> GeometryTokens:
    """The second modality of the variants without Point-MAE."""
    if options.geometry == "normals":
        return NormalsTokens(rgb, options, place)
    return FpfhTokens(options, place)


def mapping_networks(
    tensors: Mapping[str, NDArray], options: CfmOptions
) -> dict[str, MappingNetwork]:
    """The networks that the detector's aggregation reads, from tensors named "NETWORK.KEY"."""
    return {
        name: MappingNetwork.from_tensors(tensors, f"{name}.") for name in options.networks.values()
    }


def read_networks(artifact: Artifact, options: CfmOptions) -> dict[str, MappingNetwork]:
    """The mapping networks in an artifact.

    Raises:
        InvalidInputError: a tensor is missing or does not fit the others.
        ArtifactError: a network does not fit the features.
    """
    networks = mapping_networks(artifact.tensors(), options)
    num_channels = tokens_shape(artifact)[2]
    of_geometry = {"normals": num_channels, "fpfh": FPFH_CHANNELS}
    widths = {
        "rgb": num_channels,
        "point": of_geometry.get(options.geometry) or point_channels(artifact),
    }
    for name, network in networks.items():
        wanted = tuple(widths[side] for side in name.split("_to_"))
        if (network.in_channels, network.out_channels) != wanted:
            raise ArtifactError(
                f"{artifact.path}: the network {name!r} maps {network.in_channels} to "
                f"{network.out_channels} channels, the features have {wanted}; fit the detector "
                "again"
            )
    return networks
