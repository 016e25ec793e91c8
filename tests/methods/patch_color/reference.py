"""The published pipeline, pixel by pixel."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mmad_fast.artifact import Artifact
from mmad_fast.methods.family import Reference
from mmad_fast.methods.patch_color.detector import PatchColorScores
from mmad_fast.methods.patch_color.options import PatchColorOptions
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


def reference_pipeline(artifact: Artifact) -> Reference:
    """A function of a prepared scan and a clock."""
    options = PatchColorOptions.from_manifest(artifact.manifest.parameters)
    tensors, patch = artifact.tensors(), options.patch_size

    def score(
        prepared: PreparedScan, clock: StageClock, *, ties: Literal["lowest", "any"] = "lowest"
    ) -> PatchColorScores:
        anomaly_map = np.empty((options.grid_size, options.grid_size), np.float32)
        with clock.stage("all"):
            for row, column in np.ndindex(*tensors["nominal"].shape[1:]):
                rows = slice(row * patch, (row + 1) * patch)
                columns = slice(column * patch, (column + 1) * patch)
                mean = prepared.rgb[:, rows, columns].astype(np.float64).mean(axis=(1, 2))
                difference = mean - tensors["nominal"][:, row, column]
                anomaly_map[rows, columns] = np.abs(
                    difference / tensors["spread"][:, row, column]
                ).max()
        return PatchColorScores(anomaly_map, float(anomaly_map.max()))

    return score
