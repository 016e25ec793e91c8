"""The published pipelines' dense stages from points to the point feature map, in plain torch: what
the references of all methods begin with. Imports nothing from the fast code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.errors import EmptyScanError
from mmad_fast.methods.branches.point_groups.options import POINT_STATISTICS_PREFIX
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

if TYPE_CHECKING:
    from mmad_fast.backbones.group_embedder import GroupEmbedder
    from mmad_fast.backbones.point_mae import PointMae

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class DenseOptions:
    """The switches of the dense stages. The defaults are what the fast detectors compute. A
    method's reference options extend them.

    `batch_norm` and `drop_path` of the point backbone are chosen when it is built.

    Attributes:
        num_groups: G, point groups.
        group_size: K, points per group: 128 in the public code, 32 in the CFM paper.
        skip_near_origin: Sampling skips points within 0.0316 m of the origin, as the published
            kernel does.
        knn_ties: Of equally near points, "lowest": the lowest index, as the fast detector does;
            "any": what topk gives, as in the code (and faster).
        idw_weights: "squared" 1 / (d^2 + 1e-8), as in the code; "linear" 1 / (d + 1e-8).
        idw_distance: "direct" differences, or "expanded" |a|^2 - 2ab + |b|^2 as in the code, whose
            rounding makes the weights at the centres themselves noise.
        dtype: "float32", or "float64" for everything after the sampling.
    """

    num_groups: int = 1024
    group_size: int = 128
    skip_near_origin: bool = False
    knn_ties: str = "lowest"
    idw_weights: str = "squared"
    idw_distance: str = "direct"
    dtype: str = "float32"


Geometry = tuple[Tensor, Tensor, Tensor]
"""(centers (G, 3) of the groups, points (N, 3), pixels (N,) int64 of the points)."""

Network = TypeVar("Network", bound=nn.Module)


def in_dtype(network: Network, dtype: torch.dtype) -> Network:
    """A copy of the network in dtype; itself where it is."""
    if all(parameter.dtype == dtype for parameter in network.parameters()):
        return network
    return copy.deepcopy(network).to(dtype)


def group_features(
    prepared: PreparedScan, point: PointMae, options: DenseOptions, clock: StageClock
) -> tuple[Tensor, Geometry]:
    """(G, C3) features of a scan's point groups, and where these are; in the options' dtype.

    Raises:
        EmptyScanError: fewer foreground points than one group holds, where the published code
            crashes.
    """
    if len(prepared.points) < options.group_size:
        raise EmptyScanError(
            f"scan {prepared.name!r} has {len(prepared.points)} foreground points, the reference "
            f"needs at least {options.group_size}; check the scan's background and unit"
        )
    points = torch.from_numpy(prepared.points)
    with clock.stage("sampling"):
        center_indices = farthest_points(
            points, options.num_groups, skip_near_origin=options.skip_near_origin
        )
    points = points.to(DTYPES[options.dtype])
    centers = points[center_indices]  # (G, 3)
    with clock.stage("grouping"):
        groups = nearest_groups(
            points, centers, options.group_size, knn_ties=options.knn_ties
        )  # (G, K, 3)
    with clock.stage("point_features"):
        features = point_mae_features(point, groups, centers)  # (G, C3)
    return features, (centers, points, torch.from_numpy(prepared.pixel_indices))


def load_point_statistics(point: PointMae, tensors: Mapping[str, NDArray]) -> None:
    """Sets the BatchNorm statistics that an artifact with batch_norm="calibrated" holds."""
    for name, buffer in point.named_buffers():
        if (key := POINT_STATISTICS_PREFIX + name) in tensors:
            buffer.copy_(torch.tensor(tensors[key]))  # a copy: they may be read-only


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


def interpolate(features: Tensor, centers: Tensor, points: Tensor, options: DenseOptions) -> Tensor:
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


def point_feature_map(interpolated: Tensor, pixels: Tensor, side: int, output_size: int) -> Tensor:
    """(H * W, C) features (N, C) put on a grid of `side` pixels a side, averaged 3 x 3 without
    padding, and averaged adaptively to H = W = `output_size`.

    Source: method facts 4.
    """
    grid = interpolated.new_zeros(interpolated.shape[1], side * side)
    grid[:, pixels] = interpolated.T
    averaged = F.avg_pool2d(grid.view(1, -1, side, side), kernel_size=3, stride=1)
    resized = F.adaptive_avg_pool2d(averaged, (output_size, output_size))
    return resized[0].flatten(1).T.contiguous()
