"""Point-MAE's group embedder (a mini-PointNet) with the statistics of the current clouds.

The published order of work on M = B*G*K points is

    3 -> 128, BatchNorm, ReLU, 128 -> 256;  g = max over the group;
    [g | 256] -> 512, BatchNorm, ReLU, 512 -> 384;  max over the group

in train mode, so that both BatchNorms need statistics over all M points, and the M x 512 and
M x 384 activations (268 and 201 MB for 1024 x 128 points) are stored whole. The same function is
computed here without that:

- No nonlinearity stands between 128 -> 256 and the per-point half of 512 -> 512, so the two are one
  map A of 512 x 128. The other half acts on g: once per group, not once per point.
- The statistics of a linear map follow from its input: mean W mu + b, variance diag(W S W^T). For
  the first BatchNorm S is the 3 x 3 covariance of the points. For the second, by the law of total
  variance: the variance over the groups of the groups' means, plus diag(A S A^T) with S the
  128 x 128 covariance within the groups.
- A BatchNorm with known statistics is one scale and shift, which moves into the weights.

So the wide activations are needed for a few groups at a time only: 41 instead of 64 GMAC for
1024 x 128 points, and megabytes instead of hundreds of them.

The op point_embedding computes the same without torch, see its README.md.

Source: method facts, sections 0.1 and 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.point_embedding import EmbedderWeights

GROUPS_PER_CHUNK = 64
"""Groups whose wide activations are held at once: 64 x 128 points x 512 channels are 17 MB."""


class GroupEmbedder(nn.Module):
    """One token of 384 channels per group. `refresh` must follow every change of the weights.

    Weights that the forward pass uses, besides the official ones they are composed of:
    first (3 -> 128), wide (128 -> 256, without bias), local (A above), group (256 -> 512, with all
    constant terms), final (512 -> 384, without bias).
    """

    first_weight: Tensor
    first_bias: Tensor
    wide_weight: Tensor
    local_weight: Tensor
    group_weight: Tensor
    group_bias: Tensor
    final_weight: Tensor

    def __init__(self, *, uses_cloud_statistics: bool) -> None:
        super().__init__()
        self.uses_cloud_statistics = uses_cloud_statistics
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, 384, 1)
        )
        for name in ("first_weight", "first_bias", "wide_weight", "local_weight"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        for name in ("group_weight", "group_bias", "final_weight"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Composes the weights of the forward pass anew from the official ones.

        Frozen statistics are folded into them; those of the current clouds cannot be.
        """
        self._compose_first(folds_norm=not self.uses_cloud_statistics)
        self._compose_second(folds_norm=not self.uses_cloud_statistics)

    def to_embedder_weights(self) -> EmbedderWeights:
        """The weights of the forward pass as the op point_embedding reads them."""
        arrays = {
            name: buffer
            for name, buffer in self.named_buffers(recurse=False)
            if name.endswith(("_weight", "_bias"))
        }
        arrays["final_bias"] = _bias(self._layers.final)
        if self.uses_cloud_statistics:
            for name in ("first_norm", "second_norm"):
                norm = getattr(self._layers, name)
                arrays |= {f"{name}_weight": norm.weight, f"{name}_bias": norm.bias}
        return EmbedderWeights(
            **{name: array.detach().numpy().copy() for name, array in arrays.items()}
        )

    @property
    def _layers(self) -> _OfficialLayers:
        first, first_norm, _, wide = self.first_conv
        second, second_norm, _, final = self.second_conv
        return _OfficialLayers(
            cast(nn.Conv1d, first),
            cast(nn.BatchNorm1d, first_norm),
            cast(nn.Conv1d, wide),
            cast(nn.Conv1d, second),
            cast(nn.BatchNorm1d, second_norm),
            cast(nn.Conv1d, final),
        )

    def forward(self, groups: Tensor) -> Tensor:
        """(B, G, 384) float32: one token per group.

        Args:
            groups: (B, G, K, 3) float32 metres, centred on their group's centre.
        """
        points = groups.flatten(0, 1)  # (B*G, K, 3)
        if self.uses_cloud_statistics:
            tokens = self._embed_with_cloud_statistics(points)
        else:
            tokens = self._embed_with_frozen_statistics(points)
        return (tokens + _bias(self._layers.final)).unflatten(0, tuple(groups.shape[:2]))

    @torch.no_grad()
    def calibrate(self, clouds: Sequence[Tensor]) -> None:
        """Sets the frozen statistics to those of all points of all clouds; sums in float64.

        Args:
            clouds: Each (G, K, 3) or (B, G, K, 3) float32 metres, centred.

        Raises:
            InvalidInputError: there is no cloud.
        """
        if not clouds:
            raise InvalidInputError("calibration needs at least one cloud; none was given")
        counts = [cloud.numel() // 3 for cloud in clouds]
        self._compose_first(folds_norm=False)
        self._compose_second(folds_norm=False)
        statistics = [self._first_statistics(cloud.flatten(0, -3)) for cloud in clouds]
        _store_pooled(self._layers.first_norm, statistics, counts)
        # The second statistics are those of what the frozen first layer puts out.
        self._compose_first(folds_norm=True)
        statistics = []
        for cloud in clouds:
            chunks = cloud.flatten(0, -3).split(GROUPS_PER_CHUNK)
            summary = self._summarise(chunks, self.first_weight, self.first_bias)
            statistics.append(self._second_statistics(summary))
        _store_pooled(self._layers.second_norm, statistics, counts)
        self.refresh()

    def _compose_first(self, *, folds_norm: bool) -> None:
        first, norm, wide = self._layers[:3]
        weight, bias = first.weight[:, :, 0].double(), _bias(first).double()
        if folds_norm:
            scale, shift = _frozen_scale_and_shift(norm)
            weight, bias = weight * scale[:, None], bias * scale + shift
        self.first_weight, self.first_bias = weight.to(first.weight), bias.to(first.weight)
        self.wide_weight = wide.weight[:, :, 0].detach().clone()

    def _compose_second(self, *, folds_norm: bool) -> None:
        """float64 throughout, rounded once."""
        _, _, wide, second, norm, final = self._layers
        global_half, local_half = second.weight[:, :, 0].double().split(256, dim=1)
        local_weight = local_half @ wide.weight[:, :, 0].double()
        # The maximum is taken before the bias of 128 -> 256, which reaches both halves.
        bias = _bias(second).double() + (global_half + local_half) @ _bias(wide).double()
        if folds_norm:
            scale, shift = _frozen_scale_and_shift(norm)
            global_half, local_weight = global_half * scale[:, None], local_weight * scale[:, None]
            bias = bias * scale + shift
        self.group_weight = global_half.to(second.weight)
        self.local_weight = local_weight.to(second.weight)
        self.group_bias = bias.to(second.weight)
        self.final_weight = final.weight[:, :, 0].detach().clone()

    def _embed_with_cloud_statistics(self, points: Tensor) -> Tensor:
        """(G, 384) tokens of points (G, K, 3), without the last bias."""
        scale, shift = _scale_and_shift(self._layers.first_norm, *self._first_statistics(points))
        first_weight = self.first_weight * scale[:, None]
        first_bias = self.first_bias * scale + shift
        chunks = points.split(GROUPS_PER_CHUNK)
        summary = self._summarise(chunks, first_weight, first_bias)
        scale, shift = _scale_and_shift(self._layers.second_norm, *self._second_statistics(summary))
        group_half = self._group_half(summary.maxima) * scale + shift  # (G, 512)
        local_weight = self.local_weight * scale[:, None]
        # The hidden layer is computed a second time: three multiplications per channel cost less
        # than keeping it for all points.
        tokens = [
            self._finish(_hidden(chunk, first_weight, first_bias), half, local_weight)
            for chunk, half in zip(chunks, group_half.split(GROUPS_PER_CHUNK), strict=True)
        ]
        return torch.cat(tokens)

    def _embed_with_frozen_statistics(self, points: Tensor) -> Tensor:
        """(G, 384) tokens of points (G, K, 3), without the last bias."""
        tokens = []
        for chunk in points.split(GROUPS_PER_CHUNK):
            hidden = _hidden(chunk, self.first_weight, self.first_bias)
            group_half = self._group_half(F.linear(hidden, self.wide_weight).amax(1))
            tokens.append(self._finish(hidden, group_half, self.local_weight))
        return torch.cat(tokens)

    def _first_statistics(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (128,) before the first BatchNorm, of points (G, K, 3)."""
        mean = points.mean(1).mean(0)  # (3,)
        deviation = (points - mean).flatten(0, 1)
        covariance = deviation.T @ deviation / deviation.shape[0]
        return (
            F.linear(mean, self.first_weight, self.first_bias),
            _projected_variance(self.first_weight, covariance),
        )

    def _summarise(
        self, chunks: Sequence[Tensor], first_weight: Tensor, first_bias: Tensor
    ) -> _GroupSummary:
        """What the second statistics need, in one pass over chunks of points (g, K, 3)."""
        maxima, means, scatters = [], [], []
        for chunk in chunks:
            hidden = _hidden(chunk, first_weight, first_bias)  # (g, K, 128)
            maxima.append(F.linear(hidden, self.wide_weight).amax(1))
            mean = hidden.mean(1)
            deviation = (hidden - mean[:, None]).flatten(0, 1)
            means.append(mean)
            scatters.append(deviation.T @ deviation)
        num_points = sum(chunk.shape[0] * chunk.shape[1] for chunk in chunks)
        within = torch.stack(scatters).sum(0) / num_points
        return _GroupSummary(torch.cat(maxima), torch.cat(means), within)

    def _second_statistics(self, summary: _GroupSummary) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (512,) before the second BatchNorm, over all points."""
        group_means = self._group_half(summary.maxima) + F.linear(summary.means, self.local_weight)
        mean = group_means.mean(0)
        between = (group_means - mean).square().mean(0)
        return mean, between + _projected_variance(self.local_weight, summary.within)

    def _group_half(self, maxima: Tensor) -> Tensor:
        """(G, 512): what a group adds to each of its points before the second BatchNorm."""
        return F.linear(maxima, self.group_weight, self.group_bias)

    def _finish(self, hidden: Tensor, group_half: Tensor, local_weight: Tensor) -> Tensor:
        """(G, 384) of hidden (G, K, 128) and group_half (G, 512), without the last bias."""
        wide = torch.relu(F.linear(hidden, local_weight) + group_half[:, None])  # (G, K, 512)
        return F.linear(wide, self.final_weight).amax(1)


class _OfficialLayers(NamedTuple):
    """The layers of the two official sequences that have weights."""

    first: nn.Conv1d
    first_norm: nn.BatchNorm1d
    wide: nn.Conv1d
    second: nn.Conv1d
    second_norm: nn.BatchNorm1d
    final: nn.Conv1d


class _GroupSummary(NamedTuple):
    """Per group, over its points: maxima (G, 256) of 128 -> 256 without bias, means (G, 128) of the
    hidden layer; and the hidden layer's covariance within the groups, (128, 128), all pooled."""

    maxima: Tensor
    means: Tensor
    within: Tensor


def _hidden(points: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(G, K, 128) of points (G, K, 3): first layer, normed, rectified."""
    return torch.relu(F.linear(points, weight, bias))


def _projected_variance(weight: Tensor, covariance: Tensor) -> Tensor:
    """diag(W S W^T): the variance (out,) of W x where x has covariance S (in, in)."""
    return (F.linear(weight, covariance) * weight).sum(1)


def _scale_and_shift(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map that a BatchNorm is once its statistics are known."""
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def _frozen_scale_and_shift(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    mean, variance = _running_statistics(norm)
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - mean.double() * scale


def _running_statistics(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)


def _bias(layer: nn.Conv1d) -> Tensor:
    return cast(Tensor, layer.bias)


def _store_pooled(
    norm: nn.BatchNorm1d, per_cloud: Sequence[tuple[Tensor, Tensor]], counts: Sequence[int]
) -> None:
    """Writes the statistics of all clouds together, by the law of total variance."""
    share = torch.tensor(counts, dtype=torch.float64)
    share = (share / share.sum())[:, None]
    means = torch.stack([mean for mean, _ in per_cloud]).double()
    variances = torch.stack([variance for _, variance in per_cloud]).double()
    pooled = (share * means).sum(0)
    running_mean, running_variance = _running_statistics(norm)
    running_mean.copy_(pooled)
    running_variance.copy_((share * (variances + (means - pooled).square())).sum(0))
