"""The published CFM pipeline in plain torch: dense, slow, obvious. The truth that the detector is
compared with, and the baseline of its speed. Imports nothing from the fast code.

Read `reference_infer` from top to bottom. Where the paper and its public code differ, the switches
of `ReferenceOptions` choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.artifact import Artifact
from mmad_fast.methods.branches.branch import require_points
from mmad_fast.methods.branches.point_groups import network as point_groups
from mmad_fast.methods.branches.point_groups.reference import (
    DTYPES,
    DenseOptions,
    group_features,
    in_dtype,
    interpolate,
    load_point_statistics,
    point_feature_map,
)
from mmad_fast.methods.branches.vit_tokens import network as vit_tokens
from mmad_fast.methods.cfm.networks import from_tensors
from mmad_fast.methods.cfm.options import MAPPINGS, PSI_MAPS, CfmOptions
from mmad_fast.methods.cfm.token_reference import spread_over_pixels, token_discrepancies
from mmad_fast.methods.family import Reference
from mmad_fast.methods.fit_request import Weights
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

if TYPE_CHECKING:
    from mmad_fast.backbones.point_mae import PointMae


MIN_SURFACE_POINTS = 3
"""That span a plane: of fewer there is no surface to describe."""


@dataclass(frozen=True)
class ReferenceOptions(DenseOptions):
    """The switches of the published pipeline. The defaults are what the fast detector computes.

    Attributes:
        mask: "all_zero": background is where all smoothed point channels are 0; "sum": where their
            sum is 0, as in the code, which also drops foreground pixels whose channels cancel.
        aggregation: As in CfmOptions; also smoothing, score_norm and mapping.
    """

    mask: str = "all_zero"
    aggregation: str = "product"
    mapping: str = "crossmodal"
    smoothing: str = "boxes53"
    score_norm: str = "cfm"

    @classmethod
    def of(cls, options: CfmOptions, *, dtype: str = "float32") -> ReferenceOptions:
        """The options that compute what a detector with these parameters computes."""
        return cls(
            num_groups=options.num_groups,
            group_size=options.group_size,
            skip_near_origin=options.skip_near_origin,
            aggregation=options.aggregation,
            mapping=options.mapping,
            smoothing=options.smoothing,
            score_norm=options.score_norm,
            dtype=dtype,
        )


@dataclass(frozen=True)
class ReferenceNetworks:
    """The networks of the pipeline, in eval mode as far as torch is concerned.

    Attributes:
        rgb: (1, 3, R, R) image -> (1, T, C2) tokens.
        point: Point-MAE; only its layers are used, in the published order of work, not its own
            forward.
        mappings: Mapping networks by name, see options.MAPPINGS.
    """

    rgb: nn.Module
    point: PointMae
    mappings: Mapping[str, nn.Module]

    @classmethod
    def of_tensors(
        cls, rgb: nn.Module, point: PointMae, tensors: Mapping[str, NDArray]
    ) -> ReferenceNetworks:
        """The networks of an artifact: its tensors, and backbones built with the same weights."""
        load_point_statistics(point, tensors)
        return cls(rgb.eval(), point.eval(), mapping_networks(tensors))

    def cast(self, dtype: torch.dtype) -> ReferenceNetworks:
        """Copies of the networks in dtype; itself where they are."""
        return ReferenceNetworks(
            in_dtype(self.rgb, dtype),
            in_dtype(self.point, dtype),
            {name: in_dtype(network, dtype) for name, network in self.mappings.items()},
        )


@dataclass(frozen=True)
class ReferenceScores:
    """What the reference says of one scan.

    Attributes:
        psi_2d: (S, S) discrepancy of the RGB features, 0 on background; zeros if not computed.
        psi_3d: (S, S) likewise of the point features.
        anomaly_map: (S, S) smoothed and normalised.
        image_score: Its maximum.
    """

    psi_2d: NDArray
    psi_3d: NDArray
    anomaly_map: NDArray
    image_score: float


@torch.inference_mode()
def reference_infer(
    prepared: PreparedScan,
    networks: ReferenceNetworks,
    options: ReferenceOptions,
    clock: StageClock | None = None,
) -> ReferenceScores:
    """The anomaly map and score of a prepared scan by the published dense pipeline.

    Args:
        prepared: The scan.
        networks: Backbones and mapping networks; cast to the options' dtype.
        options: The switches.
        clock: Gets the time of each stage if given.

    Raises:
        EmptyScanError: fewer foreground points than one group holds, where the published code
            crashes.

    Source: CFM section 3; the public CFM code where it differs (README.md of this folder).
    """
    clock = StageClock() if clock is None else clock
    dtype = DTYPES[options.dtype]
    networks = networks.cast(dtype)
    side = prepared.grid_size
    with clock.stage("rgb_tokens"):
        tokens = networks.rgb(torch.from_numpy(prepared.rgb)[None].to(dtype))[0]  # (T, C2)
    point_features, (centers, points, pixels) = group_features(
        prepared, networks.point, options, clock
    )  # (G, C3)
    with clock.stage("interpolation"):
        interpolated = interpolate(point_features, centers, points, options)  # (N, C3)
        features = {
            "point": point_feature_map(interpolated, pixels, side, side),  # (S * S, C3)
            "rgb": rgb_feature_map(tokens, side),  # (S * S, C2)
        }
    background = background_mask(features["point"], options.mask)  # (S * S,)
    with clock.stage("mapping"):
        psi = _discrepancies(features, background, networks.mappings, options)
    with clock.stage("scoring"):
        combined = aggregate(psi, options.aggregation).masked_fill(background, 0)
        smoothed = smooth(combined.view(side, side), options.smoothing)
        anomaly_map = normalize(smoothed, options.score_norm)
    return ReferenceScores(
        psi["psi_2d"].view(side, side).numpy(),
        psi["psi_3d"].view(side, side).numpy(),
        anomaly_map.numpy(),
        float(anomaly_map.max()),
    )


@torch.inference_mode()
def reference_infer_tokens(
    prepared: PreparedScan,
    rgb: nn.Module,
    mappings: Mapping[str, nn.Module],
    options: CfmOptions,
    clock: StageClock | None = None,
) -> ReferenceScores:
    """The anomaly map and score of a prepared scan by a variant without Point-MAE.

    Args:
        prepared: The scan.
        rgb: (1, 3, R, R) image -> (1, T, C2) tokens.
        mappings: Mapping networks by name, see options.MAPPINGS.
        options: Of the detector.
        clock: Gets the time of each stage if given.

    Raises:
        EmptyScanError: fewer than three foreground points.
    """
    clock = StageClock() if clock is None else clock
    require_points(prepared, MIN_SURFACE_POINTS)
    psi, foreground = token_discrepancies(prepared, rgb, mappings, options, clock)
    nothing = torch.zeros(len(foreground))
    with clock.stage("scoring"):
        both = {name: psi.get(name, nothing) for name in ("psi_2d", "psi_3d")}
        combined = aggregate(both, options.aggregation)
        psi_map = spread_over_pixels(combined, foreground, prepared)
        anomaly_map = normalize(smooth(psi_map, options.smoothing), options.score_norm)
    spread = {name: spread_over_pixels(one, foreground, prepared) for name, one in both.items()}
    return ReferenceScores(
        spread["psi_2d"].numpy(),
        spread["psi_3d"].numpy(),
        anomaly_map.numpy(),
        float(anomaly_map.max()),
    )


def reference_pipeline(artifact: Artifact, weights: Weights) -> Reference:
    """The published pipeline with the options and weights of an artifact.

    Args:
        artifact: A CFM artifact.
        weights: What it was fitted with, by branch.

    Raises:
        WeightsError: the weights cannot be had or do not fit.
    """
    options = CfmOptions.from_manifest(artifact.manifest.parameters)
    seed = int(artifact.manifest.weights["seed"])
    rgb = vit_tokens.build_network(options, weights=weights.get("rgb", "auto"), seed=seed)
    if options.geometry != "point":
        mappings = mapping_networks(artifact.tensors())

        def infer_tokens(
            prepared: PreparedScan, clock: StageClock, *, ties: Literal["lowest", "any"] = "lowest"
        ) -> ReferenceScores:
            return reference_infer_tokens(prepared, rgb.eval(), mappings, options, clock)

        return infer_tokens
    point = point_groups.build_network(options, weights=weights.get("point", "auto"), seed=seed)
    networks = ReferenceNetworks.of_tensors(rgb, point, artifact.tensors())
    switches = ReferenceOptions.of(options)

    def infer(
        prepared: PreparedScan, clock: StageClock, *, ties: Literal["lowest", "any"] = "lowest"
    ) -> ReferenceScores:
        return reference_infer(prepared, networks, replace(switches, knn_ties=ties), clock)

    return infer


def mapping_networks(tensors: Mapping[str, NDArray]) -> dict[str, nn.Module]:
    """The mapping networks by name among the tensors of an artifact."""
    names = {key.split(".")[0] for key in tensors}
    known = {name for by_map in MAPPINGS.values() for name in by_map.values()}
    return {name: from_tensors(dict(tensors), f"{name}.") for name in names & known}


def rgb_feature_map(tokens: Tensor, side: int) -> Tensor:
    """(S * S, C) the tokens (T, C) of a square grid, upsampled bilinearly."""
    token_grid = round(tokens.shape[0] ** 0.5)
    grid = tokens.T.reshape(1, -1, token_grid, token_grid)
    upsampled = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    return upsampled[0].flatten(1).T.contiguous()


def background_mask(point_features: Tensor, mask: str) -> Tensor:
    """(S * S,) bool: no point reaches the pixel."""
    if mask == "sum":
        return point_features.sum(dim=-1) == 0
    return (point_features == 0).all(dim=-1)


def _discrepancies(
    features: Mapping[str, Tensor],
    background: Tensor,
    mappings: Mapping[str, nn.Module],
    options: ReferenceOptions,
) -> dict[str, Tensor]:
    """Both discrepancy maps (S * S,); zeros where the aggregation does not read one."""
    psi = {name: features["rgb"].new_zeros(len(background)) for name in ("psi_2d", "psi_3d")}
    for name in PSI_MAPS[options.aggregation]:
        network = MAPPINGS[options.mapping][name]
        source, target = network.split("_to_")
        predicted = mappings[network](features[source])  # every pixel, background included
        difference = F.normalize(predicted, dim=-1) - F.normalize(features[target], dim=-1)
        psi[name] = difference.norm(dim=-1).masked_fill(background, 0)
    return psi


def aggregate(psi: Mapping[str, Tensor], aggregation: str) -> Tensor:
    """(S * S,) the combined discrepancy. Source: CFM section 3.3, Table 6."""
    psi_2d, psi_3d = psi["psi_2d"], psi["psi_3d"]
    if aggregation == "product":
        return psi_2d * psi_3d
    if aggregation == "sum":
        return psi_2d + psi_3d
    if aggregation == "max":
        return torch.maximum(psi_2d, psi_3d)
    return psi[aggregation]


def smooth(psi_map: Tensor, smoothing: str) -> Tensor:
    """(S, S) smoothed: five 5 x 5 and three 7 x 7 box means, or a Gaussian of sigma 4."""
    image = psi_map[None, None]
    if smoothing == "boxes53":
        for side in (5, 5, 5, 5, 5, 7, 7, 7):
            kernel = torch.full((1, 1, side, side), 1 / side**2, dtype=psi_map.dtype)
            image = F.conv2d(image, kernel, padding=side // 2)
        return image[0, 0]
    offsets = torch.arange(-16, 17, dtype=psi_map.dtype)
    taps = torch.exp(-0.5 * (offsets / 4.0) ** 2)
    taps = taps / taps.sum()
    return F.conv2d(image, (taps[:, None] * taps[None])[None, None], padding=16)[0, 0]


def normalize(psi_map: Tensor, score_norm: str) -> Tensor:
    """(S, S) divided by the root of the mean non-zero value, or as it is. All zero stays zero."""
    nonzero = psi_map[psi_map != 0]
    if score_norm == "raw" or len(nonzero) == 0:
        return psi_map
    return psi_map / nonzero.mean().sqrt()
