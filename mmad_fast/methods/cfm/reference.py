"""The published CFM pipeline in plain torch: dense, slow, obvious. The truth that the detector is
compared with, and the baseline of its speed. Imports nothing from the fast code.

Read `reference_infer` from top to bottom. Where the paper and its public code differ, the switches
of `ReferenceOptions` choose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.artifact import Artifact
from mmad_fast.backbones import build_point_backbone, build_rgb_backbone
from mmad_fast.errors import EmptyScanError
from mmad_fast.methods.cfm.networks import from_tensors
from mmad_fast.methods.cfm.parameters import (
    MAPPINGS,
    POINT_STATISTICS_PREFIX,
    PSI_MAPS,
    CfmParameters,
)
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

if TYPE_CHECKING:
    from mmad_fast.backbones.group_embedder import GroupEmbedder
    from mmad_fast.backbones.point_mae import PointMae

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class ReferenceOptions:
    """The switches of the published pipeline. The defaults are what the fast detector computes.

    `batch_norm` and `drop_path` of the point backbone are chosen when it is built.

    Attributes:
        num_groups: G, point groups.
        group_size: K, points per group: 128 in the public code, 32 in the paper.
        skip_near_origin: Sampling skips points within 0.0316 m of the origin, as the published
            kernel does.
        knn_ties: Of equally near points, "lowest": the lowest index, as the fast detector does;
            "any": what topk gives, as in the code (and faster).
        idw_weights: "squared" 1 / (d^2 + 1e-8), as in the code; "linear" 1 / (d + 1e-8).
        idw_distance: "direct" differences, or "expanded" |a|^2 - 2ab + |b|^2 as in the code, whose
            rounding makes the weights at the centres themselves noise.
        mask: "all_zero": background is where all smoothed point channels are 0; "sum": where their
            sum is 0, as in the code, which also drops foreground pixels whose channels cancel.
        aggregation: As in CfmParameters; also smoothing, score_norm and mapping.
        dtype: "float32", or "float64" for everything after the sampling.
    """

    num_groups: int = 1024
    group_size: int = 128
    skip_near_origin: bool = False
    knn_ties: str = "lowest"
    idw_weights: str = "squared"
    idw_distance: str = "direct"
    mask: str = "all_zero"
    aggregation: str = "product"
    mapping: str = "crossmodal"
    smoothing: str = "boxes53"
    score_norm: str = "cfm"
    dtype: str = "float32"

    @classmethod
    def of(cls, parameters: CfmParameters, *, dtype: str = "float32") -> ReferenceOptions:
        """The options that compute what a detector with these parameters computes."""
        return cls(
            num_groups=parameters.num_groups,
            group_size=parameters.group_size,
            skip_near_origin=parameters.skip_near_origin,
            aggregation=parameters.aggregation,
            mapping=parameters.mapping,
            smoothing=parameters.smoothing,
            score_norm=parameters.score_norm,
            dtype=dtype,
        )


@dataclass(frozen=True)
class ReferenceNetworks:
    """The networks of the pipeline, in eval mode as far as torch is concerned.

    Attributes:
        rgb: (1, 3, R, R) image -> (1, T, C2) tokens.
        point: Point-MAE; only its layers are used, in the published order of work, not its own
            forward.
        mappings: Mapping networks by name, see parameters.MAPPINGS.
    """

    rgb: nn.Module
    point: PointMae
    mappings: Mapping[str, nn.Module]

    @classmethod
    def of_tensors(
        cls, rgb: nn.Module, point: PointMae, tensors: Mapping[str, NDArray]
    ) -> ReferenceNetworks:
        """The networks of an artifact: its tensors, and backbones built with the same weights."""
        names = {key.split(".")[0] for key in tensors}
        known = {name for by_map in MAPPINGS.values() for name in by_map.values()}
        mappings = {name: from_tensors(dict(tensors), f"{name}.") for name in names & known}
        _load_point_statistics(point, tensors)
        return cls(rgb.eval(), point.eval(), mappings)

    def cast(self, dtype: torch.dtype) -> ReferenceNetworks:
        """Copies of the networks in dtype; itself where they are."""
        networks = (self.rgb, self.point, *self.mappings.values())
        if all(p.dtype == dtype for network in networks for p in network.parameters()):
            return self
        return ReferenceNetworks(
            copy.deepcopy(self.rgb).to(dtype),
            copy.deepcopy(self.point).to(dtype),
            {name: copy.deepcopy(network).to(dtype) for name, network in self.mappings.items()},
        )


def _load_point_statistics(point: PointMae, tensors: Mapping[str, NDArray]) -> None:
    """Sets the BatchNorm statistics that an artifact with batch_norm="calibrated" holds."""
    for name, buffer in point.named_buffers():
        if (key := POINT_STATISTICS_PREFIX + name) in tensors:
            buffer.copy_(torch.from_numpy(tensors[key]))


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
    dtype = _DTYPES[options.dtype]
    networks = networks.cast(dtype)
    if len(prepared.points) < options.group_size:
        raise EmptyScanError(
            f"scan {prepared.name!r} has {len(prepared.points)} foreground points, the reference "
            f"needs at least {options.group_size}; check the scan's background and unit"
        )
    points = torch.from_numpy(prepared.points)
    with clock.stage("rgb_tokens"):
        tokens = networks.rgb(torch.from_numpy(prepared.rgb)[None].to(dtype))[0]  # (T, C2)
    with clock.stage("sampling"):
        center_indices = farthest_points(
            points, options.num_groups, skip_near_origin=options.skip_near_origin
        )
    points = points.to(dtype)
    centers = points[center_indices]  # (G, 3)
    with clock.stage("grouping"):
        groups = nearest_groups(
            points, centers, options.group_size, knn_ties=options.knn_ties
        )  # (G, K, 3)
    with clock.stage("point_features"):
        point_features = point_mae_features(networks.point, groups, centers)  # (G, C3)
    with clock.stage("interpolation"):
        interpolated = interpolate(point_features, centers, points, options)  # (N, C3)
        pixels = torch.from_numpy(prepared.pixel_indices)
        features = {
            "point": point_feature_map(interpolated, pixels, prepared.grid_size),  # (S * S, C3)
            "rgb": rgb_feature_map(tokens, prepared.grid_size),  # (S * S, C2)
        }
    background = background_mask(features["point"], options.mask)  # (S * S,)
    with clock.stage("mapping"):
        psi = _discrepancies(features, background, networks.mappings, options)
    side = prepared.grid_size
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


def reference_pipeline(
    artifact: Artifact, *, rgb_weights: str | Path, point_weights: str | Path
) -> Callable[..., ReferenceScores]:
    """The published pipeline with the parameters and weights of an artifact: a function of a
    prepared scan, a StageClock and, if not "lowest", `ReferenceOptions.knn_ties`.

    Args:
        artifact: A CFM artifact.
        rgb_weights: What it was fitted with: a checkpoint path, "auto" or "random".
        point_weights: Likewise.

    Raises:
        WeightsError: the weights cannot be had or do not fit.
    """
    parameters = CfmParameters.from_dict(artifact.manifest.parameters)
    seed = int(artifact.manifest.weights["seed"])
    rgb = build_rgb_backbone(
        parameters.rgb_backbone, num_layers=parameters.rgb_layers, weights=rgb_weights, seed=seed
    )
    point = build_point_backbone(
        layers=parameters.point_layers,
        weights=point_weights,
        batch_norm=parameters.batch_norm,
        seed=seed,
    )
    networks = ReferenceNetworks.of_tensors(rgb, point, artifact.tensors())
    options = ReferenceOptions.of(parameters)
    return lambda prepared, clock, knn_ties="lowest": reference_infer(
        prepared, networks, replace(options, knn_ties=knn_ties), clock
    )


def farthest_points(points: Tensor, num_samples: int, *, skip_near_origin: bool) -> Tensor:
    """(G,) int64 indices of farthest point sampling from point 0; ties go to the lowest index.

    Source: pointnet2_ops; method facts 3.3.
    """
    x, y, z = points.unbind(dim=1)
    nearest = torch.full_like(x, torch.inf)
    candidates = torch.ones_like(x, dtype=torch.bool)
    if skip_near_origin:
        candidates = x * x + y * y + z * z > 1e-3
    indices = torch.zeros(num_samples, dtype=torch.int64)
    for sample in range(1, num_samples):
        last = indices[sample - 1]
        dx, dy, dz = x - x[last], y - y[last], z - z[last]
        nearest = torch.minimum(nearest, dx * dx + dy * dy + dz * dz)
        indices[sample] = torch.where(candidates, nearest, -1.0).argmax()
    return indices


def nearest_groups(
    points: Tensor, centers: Tensor, group_size: int, *, knn_ties: str = "lowest"
) -> Tensor:
    """(G, K, 3) the nearest points (N, 3) of each centre (G, 3), minus the centre.

    Sensors quantise, so many points are equally far. "lowest" takes the lowest index, as the ops
    do; "any" leaves it to topk, as the published code does.

    Source: the public CFM code, which stores all N x G differences; method facts 3.4.
    """
    differences = points[:, None] - centers[None]  # (N, G, 3)
    if knn_ties == "lowest":
        x, y, z = differences.unbind(dim=-1)
        indices = (x * x + y * y + z * z).sort(dim=0, stable=True).indices[:group_size]  # (K, G)
    else:
        indices = differences.norm(dim=-1).topk(group_size, dim=0, largest=False).indices
    return points[indices.T] - centers[:, None]


def point_mae_features(point: PointMae, groups: Tensor, centers: Tensor) -> Tensor:
    """(G, C3) features of groups (G, K, 3): each fetched block's output, normed, concatenated.

    Source: method facts 3.1.
    """
    tokens = group_tokens(point.encoder, groups, uses_cloud_statistics=point.batch_norm == "cloud")
    tokens = tokens[None]  # (1, G, 384)
    position = point.pos_embed(centers)[None]
    fetched = []
    for index, block in enumerate(point.blocks.blocks):
        tokens = block(tokens + position)
        if index in point.layers:
            fetched.append(point.norm(tokens)[0])
    return torch.cat(fetched, dim=-1)


def group_tokens(encoder: GroupEmbedder, groups: Tensor, *, uses_cloud_statistics: bool) -> Tensor:
    """(G, 384) tokens of groups (G, K, 3) by the published mini-PointNet, all points at once.

    Source: method facts 3.1; BatchNorm in train mode takes the statistics of the current cloud.
    """

    def batch_norm(norm: nn.Module, activations: Tensor) -> Tensor:
        if uses_cloud_statistics and isinstance(norm, nn.BatchNorm1d):
            return F.batch_norm(
                activations, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
            )
        return norm(activations)

    first, second = encoder.first_conv, encoder.second_conv
    hidden = F.relu(batch_norm(first[1], first[0](groups.transpose(1, 2))))  # (G, 128, K)
    local = first[3](hidden)  # (G, 256, K)
    summary = local.amax(dim=2, keepdim=True).expand_as(local)
    hidden = F.relu(batch_norm(second[1], second[0](torch.cat([summary, local], dim=1))))
    return second[3](hidden).amax(dim=2)


def interpolate(
    features: Tensor, centers: Tensor, points: Tensor, options: ReferenceOptions
) -> Tensor:
    """(N, C) features (G, C) of the three nearest centres (G, 3), weighted by inverse distance.

    Source: method facts 4.
    """
    if options.idw_distance == "expanded":
        squared = -2 * points @ centers.T
        squared += (points**2).sum(dim=1)[:, None]
        squared += (centers**2).sum(dim=1)[None]
    else:
        squared = ((points[:, None] - centers[None]) ** 2).sum(dim=-1)  # (N, G)
    sorted_squared, order = squared.sort(dim=1, stable=True)
    nearest, indices = sorted_squared[:, :3], order[:, :3]
    distances = nearest if options.idw_weights == "squared" else nearest.clamp(min=0).sqrt()
    weights = 1 / (distances + 1e-8)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (features[indices] * weights[..., None]).sum(dim=1)


def point_feature_map(interpolated: Tensor, pixels: Tensor, side: int) -> Tensor:
    """(S * S, C) features (N, C) put on the grid, averaged 3 x 3 without padding, resized back.

    Source: method facts 4.
    """
    grid = interpolated.new_zeros(interpolated.shape[1], side * side)
    grid[:, pixels] = interpolated.T
    averaged = F.avg_pool2d(grid.view(1, -1, side, side), kernel_size=3, stride=1)
    resized = F.adaptive_avg_pool2d(averaged, (side, side))
    return resized[0].flatten(1).T.contiguous()


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
