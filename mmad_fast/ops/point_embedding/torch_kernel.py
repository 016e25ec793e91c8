"""The mini-PointNet in torch: on a CUDA device its products are cuBLAS's.

The order of work is README.md's, with nothing wide stored: groups go through in pieces of up to
PIECE points, twice with the statistics of the cloud. Products are float32 (torch's own switches
decide whether cuBLAS may use TF32; by default it may not). Moments of the points and everything
that is small are float64: variances come from centred values, never from a difference of squares.
Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from mmad_fast.ops.point_embedding.reference import NORM_EPSILON
from mmad_fast.ops.point_embedding.weights import NORM_NAMES, SHAPES, EmbedderWeights

PIECE = 32768
"""Points per piece: 512 channels of them are 64 MiB."""


class _Layers(NamedTuple):
    """The weights of EmbedderWeights, transposed: a column per output."""

    first_weight: torch.Tensor  # (3, 128)
    first_bias: torch.Tensor  # (128,)
    wide_weight: torch.Tensor  # (128, 256)
    local_weight: torch.Tensor  # (128, 512)
    group_weight: torch.Tensor  # (256, 512)
    group_bias: torch.Tensor  # (512,)
    final_weight: torch.Tensor  # (512, 384)
    final_bias: torch.Tensor  # (384,)


class _Norms(NamedTuple):
    first_norm_weight: torch.Tensor  # (128,)
    first_norm_bias: torch.Tensor
    second_norm_weight: torch.Tensor  # (512,)
    second_norm_bias: torch.Tensor


@torch.no_grad()
def point_embedding(groups: torch.Tensor, embedder: EmbedderWeights) -> torch.Tensor:
    """tokens (G, 384) of groups (G, K, 3) float32, on the groups' device."""
    if len(groups) == 0:
        return groups.new_empty((0, SHAPES["final_bias"][0]))
    layers, norms = _uploaded(embedder, groups)
    if norms is None:
        return _tokens(groups, layers)
    layers = _with_first_norm(groups, layers, norms)
    return _tokens_with_second_norm(groups, layers, norms)


def _uploaded(embedder: EmbedderWeights, groups: torch.Tensor) -> tuple[_Layers, _Norms | None]:
    """The weights on the groups' device, transposed; uploaded at the first use."""
    device = groups.get_device()
    if device not in embedder.on_devices:
        tensors = {
            name: torch.tensor(getattr(embedder, name).T, device=groups.device)
            for name in SHAPES
            if getattr(embedder, name) is not None
        }
        norms = None
        if embedder.uses_cloud_statistics:
            norms = _Norms(*(tensors.pop(name) for name in NORM_NAMES))
        embedder.on_devices[device] = (_Layers(**tensors), norms)
    uploaded: tuple[_Layers, _Norms | None] = embedder.on_devices[device]
    return uploaded


def _with_first_norm(groups: torch.Tensor, layers: _Layers, norms: _Norms) -> _Layers:
    """The first layer followed by its norm. Its variance is that of a linear map of the points; its
    own bias cancels."""
    points = groups.reshape(-1, 3).double()
    mean = points.mean(0)
    centered = points - mean
    covariance = centered.T @ centered / len(points)  # (3, 3)
    weight = layers.first_weight.double()
    variance = ((covariance @ weight) * weight).sum(0)  # (128,)
    weight = weight * (norms.first_norm_weight / (variance + NORM_EPSILON).sqrt())
    bias = norms.first_norm_bias - mean @ weight
    return layers._replace(first_weight=weight.float(), first_bias=bias.float())


def _tokens(groups: torch.Tensor, layers: _Layers) -> torch.Tensor:
    tokens = groups.new_empty((len(groups), len(layers.final_bias)))
    for piece, token in _pieces(groups, tokens):
        hidden = _hidden(piece, layers)
        _write_tokens(hidden, _group_half(hidden, piece, layers), layers, token)
    return tokens


def _tokens_with_second_norm(groups: torch.Tensor, layers: _Layers, norms: _Norms) -> torch.Tensor:
    """Two passes: first the groups' halves and the moments of the hidden layer, then the tokens,
    with the norm folded into both halves."""
    halves = groups.new_empty((len(groups), len(layers.group_bias)))
    means = groups.new_empty((len(groups), len(layers.first_bias)))
    scatter = groups.new_zeros((len(layers.first_bias),) * 2, dtype=torch.float64)
    for piece, half, mean in _pieces(groups, halves, means):
        hidden = _hidden(piece, layers)
        half.copy_(_group_half(hidden, piece, layers))
        by_group = hidden.view(*piece.shape[:2], -1)  # (g, K, 128)
        torch.mean(by_group, 1, out=mean)
        by_group -= mean[:, None]
        scatter += hidden.T @ hidden
    # The mean of the second layer's input is that of both its halves: with each centred by its own,
    # nothing cancels where all points are alike.
    hidden_mean, half_mean = means.double().mean(0), halves.double().mean(0)
    local = layers.local_weight.double()
    centered_halves = halves.double() - half_mean  # (G, 512)
    # The law of total variance: that of the groups' means, and that within the groups.
    group_means = centered_halves + (means.double() - hidden_mean) @ local
    within = ((scatter @ local) * local).sum(0) / groups.shape[:2].numel()
    variance = group_means.square_().mean(0) + within  # (512,)
    scale = norms.second_norm_weight / (variance + NORM_EPSILON).sqrt()
    halves = (centered_halves * scale + norms.second_norm_bias).float()
    layers = layers._replace(local_weight=(local * scale).float())
    hidden_mean = hidden_mean.float()
    tokens = groups.new_empty((len(groups), len(layers.final_bias)))
    for piece, half, token in _pieces(groups, halves, tokens):
        hidden = _hidden(piece, layers).sub_(hidden_mean)
        _write_tokens(hidden, half, layers, token)
    return tokens


def _pieces(groups: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Some groups at a time, with the rows of the others that belong to them."""
    size = max(1, PIECE // groups.shape[1])
    return zip(groups.split(size), *(other.split(size) for other in others), strict=True)


def _hidden(piece: torch.Tensor, layers: _Layers) -> torch.Tensor:
    """(g * K, 128): the first hidden layer."""
    return torch.addmm(layers.first_bias, piece.reshape(-1, 3), layers.first_weight).relu_()


def _group_half(hidden: torch.Tensor, piece: torch.Tensor, layers: _Layers) -> torch.Tensor:
    """(g, 512): what a group adds to the second hidden layer of its points."""
    summary = (hidden @ layers.wide_weight).view(*piece.shape[:2], -1).amax(1)  # (g, 256)
    return torch.addmm(layers.group_bias, summary, layers.group_weight)


def _write_tokens(
    hidden: torch.Tensor, half: torch.Tensor, layers: _Layers, tokens: torch.Tensor
) -> None:
    """tokens (g, 384) from the first hidden layer (g * K, 128) and the groups' halves (g, 512)."""
    wide = (hidden @ layers.local_weight).view(len(half), -1, half.shape[1])  # (g, K, 512)
    wide += half[:, None]
    final = wide.relu_().flatten(0, 1) @ layers.final_weight  # (g * K, 384)
    torch.add(final.view(len(half), -1, tokens.shape[1]).amax(1), layers.final_bias, out=tokens)
