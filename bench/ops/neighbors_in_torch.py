"""Normals and FPFH as one writes them in torch, dense: the baselines of the GPU kernels."""

from __future__ import annotations

from typing import Any

BINS = 11
MAX_DISTANCES = 1 << 28
"""Of points at a time: 1 GiB."""


def torch_neighbors(points: Any, num_neighbors: int) -> tuple[Any, Any]:
    """indices and squared distances (N, K) of points (N, 3), the nearest first."""
    import torch

    parts = []
    for part in points.split(max(1, MAX_DISTANCES // len(points))):
        distances = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(distances.topk(num_neighbors, dim=1, largest=False))
    indices = torch.cat([part.indices for part in parts])
    return indices, torch.cat([part.values for part in parts]) ** 2


def torch_normals(points: Any, indices: Any) -> Any:
    """(N, 3), towards a camera in the origin."""
    import torch

    around = points[indices]
    around = around - around.mean(dim=1, keepdim=True)
    covariances = around.transpose(1, 2) @ around
    normals = torch.linalg.eigh(covariances).eigenvectors[:, :, 0]
    away = (normals * points).sum(dim=1, keepdim=True) > 0
    return torch.where(away, -normals, normals)


def torch_fpfh(points: Any, normals: Any, indices: Any, squared_distances: Any) -> Any:
    """(N, 33)."""
    neighbors = indices[:, 1:]
    bins = _pair_bins(points, normals, neighbors)  # (N, K - 1, 3)
    histograms = points.new_zeros(len(points), 3 * BINS)
    percent = points.new_full((), 100 / neighbors.shape[1]).expand(len(points), bins[0].numel())
    histograms.scatter_add_(1, bins.flatten(1), percent)
    weights = (1 / squared_distances[:, 1:]).nan_to_num(posinf=0)
    weighted = (weights[:, :, None] * histograms[neighbors]).sum(dim=1).view(-1, 3, BINS)
    weighted = 100 * weighted / weighted.sum(dim=2, keepdim=True)
    return histograms + weighted.flatten(1)


def _pair_bins(points: Any, normals: Any, neighbors: Any) -> Any:
    import torch

    line = points[neighbors] - points[:, None]
    length = line.norm(dim=2, keepdim=True)
    n, m = torch.broadcast_tensors(normals[:, None], normals[neighbors])
    at_n, at_m = ((a * line).sum(dim=2, keepdim=True) / length for a in (n, m))
    is_swapped = at_n.abs() < at_m.abs()
    source, target = torch.where(is_swapped, m, n), torch.where(is_swapped, n, m)
    phi = torch.where(is_swapped, -at_m, at_n)
    v = torch.linalg.cross(torch.where(is_swapped, -line, line), source)
    v = v / v.norm(dim=2, keepdim=True)
    w = torch.linalg.cross(source, v)
    alpha = (v * target).sum(dim=2, keepdim=True)
    theta = torch.atan2((w * target).sum(dim=2), (source * target).sum(dim=2))[..., None]
    shares = [(theta / torch.pi + 1) / 2, (alpha + 1) / 2, (phi + 1) / 2]
    bins = (BINS * torch.cat(shares, dim=2)).nan_to_num(BINS / 2).long().clamp(0, BINS - 1)
    return bins + BINS * torch.arange(3, device=bins.device)
