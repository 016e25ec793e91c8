"""The variants without Point-MAE in plain torch and NumPy: dense, slow, obvious. Imports nothing
from the fast code. There is no publication of them: this file says what they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.methods.branches.fpfh.reference import nearest_points
from mmad_fast.methods.branches.organised_normals.reference import (
    reference_picture,
    reference_surface,
)
from mmad_fast.methods.cfm.options import MAPPINGS, PSI_MAPS, CfmOptions
from mmad_fast.ops.fpfh.reference import fpfh
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

NORMAL_WEIGHT = 3.0


def token_discrepancies(
    prepared: PreparedScan,
    rgb: nn.Module,
    mappings: Mapping[str, nn.Module],
    options: CfmOptions,
    clock: StageClock,
) -> tuple[dict[str, Tensor], Tensor]:
    """(discrepancy (T,) by name of those that the aggregation reads, foreground (T,) bool) of the
    tokens.

    Args:
        prepared: The scan.
        rgb: (1, 3, R, R) image -> (1, T, C2) tokens.
        mappings: Mapping networks by name.
        options: Of the detector.
        clock: Gets the time of each stage.
    """
    with clock.stage("rgb_tokens"):
        tokens = {"rgb": rgb(torch.from_numpy(prepared.rgb)[None])[0]}  # (T, C2)
    with clock.stage("normals"):
        points, normals = reference_surface(prepared.xyz, options.normals_sigma)
    if options.geometry == "normals":
        with clock.stage("normal_tokens"):
            tokens["point"] = rgb(reference_picture(normals, options.rgb_size))[0]
    else:
        with clock.stage("fpfh"):
            tokens["point"] = pooled_histograms(points, normals, options)
    cells = cells_of_pixels(prepared.grid_size, options.token_grid).ravel()
    foreground = torch.zeros(options.token_grid**2, dtype=torch.bool)
    foreground[torch.from_numpy(cells[prepared.pixel_indices])] = True
    psi = {}
    with clock.stage("mapping"):
        for name in PSI_MAPS[options.aggregation]:
            network = MAPPINGS[options.mapping][name]
            source, target = network.split("_to_")
            predicted = mappings[network](tokens[source])  # every token, background included
            difference = F.normalize(predicted, dim=-1) - F.normalize(tokens[target], dim=-1)
            psi[name] = difference.norm(dim=-1)
    return psi, foreground


def pooled_histograms(
    points: NDArray[np.float64], normals: NDArray[np.float64], options: CfmOptions
) -> Tensor:
    """(T, 36) float32: the means over each token's cell of log(1 + FPFH) and of the weighted
    normals; 0 for a cell without points."""
    is_point = points[..., 2] != 0
    cloud, upright = points[is_point].astype(np.float32), normals[is_point]
    indices, squared = nearest_points(cloud, options.fpfh_neighbors)
    limit = np.float32(np.inf if options.fpfh_radius is None else options.fpfh_radius**2)
    counts = (squared < limit).sum(axis=1, dtype=np.int32)
    histograms = fpfh(cloud, upright, indices, counts)
    descriptors = np.concatenate([np.log1p(histograms), NORMAL_WEIGHT * upright], axis=1)
    cells = cells_of_pixels(len(points), options.token_grid)[is_point]
    tokens = np.zeros((options.token_grid**2, descriptors.shape[1]))
    for cell in np.unique(cells):
        tokens[cell] = descriptors[cells == cell].mean(axis=0)
    return torch.from_numpy(tokens).float()


def cells_of_pixels(grid_size: int, token_grid: int) -> NDArray[np.int64]:
    """(S, S) the token, row-major, in whose cell each pixel's centre lies."""
    along = ((np.arange(grid_size) + 0.5) * token_grid / grid_size).astype(np.int64)
    return along[:, None] * token_grid + along


def spread_over_pixels(psi: Tensor, foreground: Tensor, prepared: PreparedScan) -> Tensor:
    """(S, S) the bilinear mean of the foreground tokens' psi (T,) at the foreground pixels, else
    0."""
    side, token_grid = prepared.grid_size, round(len(psi) ** 0.5)
    both = torch.stack([torch.where(foreground, psi, 0), foreground.to(psi.dtype)])
    spread, weight = F.interpolate(
        both.view(1, 2, token_grid, token_grid),
        size=(side, side),
        mode="bilinear",
        align_corners=False,
    )[0]
    is_point = torch.zeros(side * side, dtype=torch.bool)
    is_point[torch.from_numpy(prepared.pixel_indices)] = True
    return torch.where(is_point.view(side, side), spread / weight, 0)
