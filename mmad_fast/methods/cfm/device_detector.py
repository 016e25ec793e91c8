"""CFM from prepared scan to anomaly map on a CUDA device: the steps of detector.py, with backbones
and ops on the device.

The host makes what depends on the pixel grid alone (which pixels are scored, which points and
tokens each of them mixes), so that it never has to wait for the device in between: it waits once,
for the discrepancies. Needs torch, whose tensors hold the arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor
from mmad_fast.methods.branches.point_groups.extractor import (
    PointBackends,
    PointExtractor,
)
from mmad_fast.methods.branches.vit_tokens.extractor import RgbExtractor
from mmad_fast.methods.cfm.detector import (
    CfmPipeline,
    CfmScores,
    FeatureExtractor,
    evaluated_pixels,
    geometry_tokens,
    read_networks,
    score_pixels,
)
from mmad_fast.methods.cfm.features import CfmFeatures
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.cfm.token_features import TokenFeatureExtractor
from mmad_fast.ops.inverse_distance_interpolation import POOLED_ROWS_OP
from mmad_fast.ops.pixel_mapping import OP as MAPPING_OP
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class DeviceFeatures(CfmFeatures):
    """The features of one scan, as tensors on the device. Both rows are those of the R pixels whose
    discrepancy is computed; pixel_indices (P,), on the host, those of the pixels that get one.

    Attributes:
        owner: (P,) int64: where each of them finds it among the R computed ones; or all of them.
    """

    owner: NDArray[np.int64] | slice = field(kw_only=True)


class DeviceFeatureExtractor(FeatureExtractor):
    """As detector.FeatureExtractor, in a stream."""

    place: DeviceStream

    def extract(self, prepared: PreparedScan, clock: StageClock) -> DeviceFeatures:
        """The features of a prepared scan, in the current stream.

        Raises:
            EmptyScanError: fewer foreground points than one group holds.
        """
        tokens, groups = self._run_branches(prepared, clock)
        with clock.stage("interpolation"):
            point_rows, pixel_indices = self._point_rows(groups, prepared)
            chosen, owner = evaluated_pixels(pixel_indices, self._options)
            token_rows = self._token_rows(pixel_indices[chosen], prepared)
        return DeviceFeatures(
            tokens,
            self.place.upload_rows(token_rows),
            groups.features,
            self._select_rows(point_rows, chosen),
            pixel_indices,
            owner=owner,
        )

    def _select_rows(self, rows: SparseRows, chosen: NDArray[np.int64] | slice) -> SparseRows:
        """The chosen rows of equally long ones, whose arrays are on the device."""
        if isinstance(chosen, slice):
            return rows
        positions = self.place.upload(chosen)
        entries: tuple[Tensor, Tensor] = (rows.columns, rows.values)
        columns, values = (array.view(rows.num_rows, -1)[positions] for array in entries)
        offsets: Tensor = torch.arange(len(chosen) + 1, device=self.place.device) * columns.shape[1]
        return SparseRows(offsets, columns.flatten(), values.flatten(), rows.num_columns)


class DeviceTokenFeatureExtractor(TokenFeatureExtractor):
    """As token_features.TokenFeatureExtractor, in a stream; what is made by formula of the pixel
    grid is made on the host."""

    place: DeviceStream

    def extract(self, prepared: PreparedScan, clock: StageClock) -> DeviceFeatures:
        """See FeatureExtractor."""
        features = super().extract(prepared, clock)
        return DeviceFeatures(**vars(features), owner=slice(None))


class DeviceCfmPipeline(CfmPipeline):
    """A fitted CFM detector on a CUDA device. `score` is thread-safe: scans share one stream.

    The device works behind the host: the clock's stages but the last tell when a step was handed
    over, and "scoring" waits for all of them.
    """

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> DeviceCfmPipeline:
        """The pipeline in an artifact, on torch's current CUDA device, its graphs run as the choice
        says.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine, or an op or the engine cannot use the device.
        """
        options = CfmOptions.from_manifest(artifact.manifest.parameters)
        MAPPING_OP.resolve(device="cuda")  # says what is missing before torch does
        if options.geometry == "point":
            POOLED_ROWS_OP.resolve(device="cuda")
            PointBackends.resolve(device="cuda")
        stream = DeviceStream.new()
        rgb = RgbExtractor.from_artifact(artifact, choice, options, stream)
        extractor: DeviceFeatureExtractor | DeviceTokenFeatureExtractor
        if options.geometry == "point":
            point = PointExtractor.from_artifact(artifact, choice, options, stream)
            extractor = DeviceFeatureExtractor(rgb, point, options, stream)
        else:
            geometry = geometry_tokens(rgb, options, stream)
            extractor = DeviceTokenFeatureExtractor(rgb, geometry, options, stream)
        return cls(extractor, read_networks(artifact, options), options)

    def score_features(self, features: CfmFeatures, clock: StageClock) -> CfmScores:
        """The anomaly map and image score of the device's features, in the current stream."""
        assert isinstance(features, DeviceFeatures)
        with clock.stage("mapping"):
            psi: dict[str, Tensor] = {
                name: self.discrepancy(features, network)
                for name, network in self.options.networks.items()
            }
        with clock.stage("scoring"):
            psi_pixels = {
                name: tensor.cpu().numpy()[features.owner] for name, tensor in psi.items()
            }
            return score_pixels(
                psi_pixels, features.pixel_indices, self.options, features.pixel_rows
            )
