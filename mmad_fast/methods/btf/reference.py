"""The published BTF pipeline in plain torch: dense, slow, obvious. The truth that the detector is
compared with, and the baseline of its speed. Imports nothing from the fast code.

Read `reference_infer` from top to bottom. Every patch of the grid is a row, background included;
distances to the bank are one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.artifact import Artifact
from mmad_fast.errors import EmptyScanError
from mmad_fast.methods.branches.cnn_pyramid.network import build_network
from mmad_fast.methods.branches.fpfh.reference import reference_descriptors
from mmad_fast.methods.btf.options import BANK, PATCH_GRID, BtfOptions
from mmad_fast.methods.family import Reference
from mmad_fast.methods.fit_request import Weights
from mmad_fast.methods.memory_bank.options import BANK_PREFIX
from mmad_fast.methods.memory_bank.reference import (
    BankScores,
    project,
    reference_coreset,
    score_rows,
)
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class ReferenceScores:
    """What the reference says of one scan.

    Attributes:
        anomaly_map: (S, S).
        image_score: Not the map's maximum: it is re-weighted, and the map is blurred.
        bank: What it says of each patch.
    """

    anomaly_map: NDArray
    image_score: float
    bank: BankScores


@torch.inference_mode()
def reference_infer(
    prepared: PreparedScan,
    network: nn.Module | None,
    bank: Tensor,
    options: BtfOptions,
    clock: StageClock | None = None,
    *,
    ties: Literal["lowest", "any"] = "lowest",
) -> ReferenceScores:
    """The anomaly map and score of a prepared scan by the published dense pipeline.

    Args:
        prepared: The scan.
        network: (1, 3, R, R) image -> maps (1, C_i, H_i, W_i); None where patches have no RGB
            features.
        bank: (M, C) rows; its type is that of the distances.
        options: Of the detector.
        clock: Gets the time of each stage if given.
        ties: As of family.Reference; with "any" distances are the expanded ones of the code, too.

    Raises:
        EmptyScanError: as `reference_patches`.

    Source: the public code of 3D-ADS, method facts 9.1.
    """
    clock = StageClock() if clock is None else clock
    rows = reference_patches(prepared, network, options, clock, ties=ties).to(bank.dtype)
    with clock.stage("bank"):
        cdist = "expanded" if ties == "any" else "direct"
        found = score_rows(rows, bank, options, prepared.grid_size, cdist=cdist)
    return ReferenceScores(found.map, found.score, found)


@torch.inference_mode()
def reference_patches(
    prepared: PreparedScan,
    network: nn.Module | None,
    options: BtfOptions,
    clock: StageClock | None = None,
    *,
    ties: Literal["lowest", "any"] = "lowest",
) -> Tensor:
    """(L, C) all patches of a prepared scan: RGB features float32, histograms float64, so that both
    side by side are float64.

    Raises:
        EmptyScanError: the scan has fewer than 3 points, of which the published code makes no
            surface.
    """
    clock = StageClock() if clock is None else clock
    parts: list[Tensor] = []
    if network is not None:
        with clock.stage("rgb_maps"):
            maps = network(torch.from_numpy(prepared.rgb)[None])
        with clock.stage("pooling"):
            parts += [pooled(feature_map[0]) for feature_map in maps]
    if options.reads_points:
        if len(prepared.points) < 3:
            raise EmptyScanError(
                f"scan {prepared.name!r} has {len(prepared.points)} foreground points, the "
                "reference needs at least 3; check the scan's background and unit"
            )
        with clock.stage("fpfh"):
            descriptors = reference_descriptors(prepared.points, options, ties=ties)
        with clock.stage("pooling"):
            side = prepared.grid_size
            grid = torch.zeros(descriptors.shape[1], side * side, dtype=torch.float64)
            grid[:, torch.from_numpy(prepared.pixel_indices)] = torch.from_numpy(descriptors.T)
            parts.append(pooled(grid.view(-1, side, side)))
    return torch.cat(parts, dim=1)


def pooled(feature_map: Tensor) -> Tensor:
    """(L, C) patches of a map (C, H, W): averaged 3 x 3 without padding, then
    adaptively to 28 x 28.

    Source: method facts 9.1.
    """
    averaged = F.avg_pool2d(feature_map[None], kernel_size=3, stride=1)
    return F.adaptive_avg_pool2d(averaged, (PATCH_GRID, PATCH_GRID))[0].flatten(1).T


def reference_bank(patches: Sequence[Tensor], *, seed: int = 0) -> Tensor:
    """(M, C) the bank of these training scans' patches (L, C): a tenth of all of them.

    Source: method facts 9.1; the public code sets no seed, and takes distances in float16.
    """
    dense = torch.cat(list(patches))
    chosen = reference_coreset(project(dense, seed), max(1, len(dense) // 10))
    return dense[chosen]


def reference_pipeline(artifact: Artifact, weights: Weights) -> Reference:
    """The published pipeline with the options, bank and weights of an artifact.

    Args:
        artifact: A BTF artifact.
        weights: What it was fitted with, by branch.

    Raises:
        ArtifactError: a tensor is missing or damaged.
        WeightsError: the weights cannot be had or do not fit.
    """
    options = BtfOptions.from_manifest(artifact.manifest.parameters)
    network = None
    if options.reads_rgb:
        seed = int(artifact.manifest.weights["seed"])
        network = build_network(options, weights=weights.get("rgb", "auto"), seed=seed)
    # As published: Open3D's histograms are float64, and with them the patches that have some.
    dtype = np.float64 if options.reads_points else np.float32
    bank = torch.from_numpy(np.array(artifact.tensors()[BANK_PREFIX + BANK], dtype))

    def infer(
        prepared: PreparedScan, clock: StageClock, *, ties: Literal["lowest", "any"] = "lowest"
    ) -> ReferenceScores:
        return reference_infer(prepared, network, bank, options, clock, ties=ties)

    return infer
