"""CFM from prepared scan to anomaly map on a CUDA device: the steps of detector.py, with backbones
and ops on the device.

The host makes what depends on the pixel grid alone (which pixels are scored, which points and
tokens each of them mixes), so that it never has to wait for the device in between: it waits once,
for the discrepancies. Needs torch, whose tensors hold the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor
from mmad_fast.methods.branches.point_groups.cpu import PointBackends, require_points
from mmad_fast.methods.branches.point_groups.device import DevicePointExtractor
from mmad_fast.methods.branches.vit_tokens.device import DeviceRgbExtractor
from mmad_fast.methods.cfm.detector import (
    CfmScores,
    OpBackends,
    evaluated_pixels,
    mapping_networks,
    published_evaluation_maps,
    score_pixels,
)
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.ops.inverse_distance_interpolation import pooled_interpolation_rows
from mmad_fast.ops.pixel_mapping import MappingNetwork, bilinear_rows, pixel_mapping
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class DeviceFeatures:
    """The features of one scan on the device; see detector.CfmFeatures.

    Attributes:
        tokens: (T, C2) float32 tensor, row-major on the token grid.
        token_rows: (R x T) of the pixels whose discrepancy is computed; arrays on the device.
        point_features: (G, C3) float32 tensor.
        point_rows: (R x G), likewise.
        pixel_indices: (P,) int64 on the host: the pixels that get a discrepancy.
        owner: (P,) int64: where each of them finds it among the R computed ones; or all of them.
    """

    tokens: Tensor
    token_rows: SparseRows
    point_features: Tensor
    point_rows: SparseRows
    pixel_indices: NDArray[np.int64]
    owner: NDArray[np.int64] | slice


class DeviceCfmPipeline:
    """A fitted CFM detector on a CUDA device. `score` is thread-safe: scans share one stream."""

    def __init__(
        self,
        rgb: DeviceRgbExtractor,
        point: DevicePointExtractor,
        networks: Mapping[str, MappingNetwork],
        options: CfmOptions,
        stream: DeviceStream,
    ) -> None:
        """Use `from_artifact`. The extractors run in `stream`."""
        self.options = options
        self.backends = OpBackends.resolve(device="cuda")
        self._rgb = rgb
        self._point = point
        self._networks = {name: networks[name] for name in options.networks.values()}
        self._stream = stream

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> DeviceCfmPipeline:
        """The pipeline in an artifact, on torch's current CUDA device, its graphs run as the choice
        says.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine, or an op or the engine cannot use the device.
        """
        for backends in (PointBackends, OpBackends):
            backends.resolve(device="cuda")  # says what is missing before torch does
        options = CfmOptions.from_manifest(artifact.manifest.parameters)
        stream = DeviceStream.new()
        rgb = DeviceRgbExtractor.from_artifact(artifact, choice, options, stream)
        point = DevicePointExtractor.from_artifact(artifact, choice, options, stream)
        networks = mapping_networks(artifact.tensors(), options)
        return cls(rgb, point, networks, options, stream)

    def score(self, prepared: PreparedScan, clock: StageClock) -> CfmScores:
        """The anomaly map and image score of a prepared scan.

        The device works behind the host: the clock's stages but the last tell when a step was
        handed over, and "scoring" waits for all of them.

        Raises:
            EmptyScanError: fewer foreground points than one group holds.
        """
        require_points(prepared, self.options.group_size)
        with self._stream.current():
            features = self.extract(prepared, clock)
            with clock.stage("mapping"):
                psi = {
                    name: self._discrepancy(features, network)
                    for name, network in self.options.networks.items()
                }
            with clock.stage("scoring"):
                psi_pixels = {
                    name: tensor.cpu().numpy()[features.owner] for name, tensor in psi.items()
                }
                return score_pixels(psi_pixels, features.pixel_indices, self.options)

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC) as the public code scales them per image."""
        return published_evaluation_maps(anomaly_map, self.options)

    def extract(self, prepared: PreparedScan, clock: StageClock) -> DeviceFeatures:
        """The features of a prepared scan, with enough points, in the current stream."""
        options = self.options
        with clock.stage("upload"):
            image = self._stream.upload(prepared.rgb[None])  # (1, 3, R, R)
            points = self._stream.upload(prepared.points)  # (N, 3)
        tokens = self._rgb.tokens(image, clock)  # (T, C2)
        groups = self._point.groups(points, clock)  # features (G, C3), weights (N, 3)
        with clock.stage("interpolation"):
            point_rows, pixel_indices = pooled_interpolation_rows(
                groups.weights,
                prepared.pixel_indices,
                num_centers=options.num_groups,
                grid_size=prepared.grid_size,
                output_size=prepared.grid_size,
                backend=self.backends.pooled_rows,
            )
            chosen, owner = evaluated_pixels(pixel_indices, options)
            token_rows = bilinear_rows(
                pixel_indices[chosen],
                token_grid=options.token_grid,
                output_size=prepared.grid_size,
            )
        return DeviceFeatures(
            tokens,
            self._stream.upload_rows(token_rows),
            groups.features,
            self._select_rows(point_rows, chosen),
            pixel_indices,
            owner,
        )

    def _select_rows(self, rows: SparseRows, chosen: NDArray[np.int64] | slice) -> SparseRows:
        """The chosen rows of equally long ones, whose arrays are on the device."""
        if isinstance(chosen, slice):
            return rows
        positions = self._stream.upload(chosen)
        entries: tuple[Tensor, Tensor] = (rows.columns, rows.values)
        columns, values = (array.view(rows.num_rows, -1)[positions] for array in entries)
        offsets: Tensor = (
            torch.arange(len(chosen) + 1, device=self._stream.device) * columns.shape[1]
        )
        return SparseRows(offsets, columns.flatten(), values.flatten(), rows.num_columns)

    def _discrepancy(self, features: DeviceFeatures, network: str) -> Tensor:
        """(R,) distance of unit vectors: the target's features and their prediction."""
        sides = {
            "rgb": (features.tokens, features.token_rows),
            "point": (features.point_features, features.point_rows),
        }
        source, target = network.split("_to_")
        psi: Tensor = pixel_mapping(
            *sides[source],
            *sides[target],
            self._networks[network],
            backend=self.backends.mapping,
        )
        return psi
