"""BTF from prepared scan to anomaly map on a CUDA device: the steps of detector.py, with network,
histograms, pooling and search on the device. Patches and bank are float32 or float16 there.

The host finds out which patches have points, and makes the map of the patches' distances, whose
published blur is Pillow's. Needs torch, whose tensors hold the arrays.
"""

from __future__ import annotations

import numpy as np
import torch

from mmad_fast.artifact import Artifact
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.cnn_pyramid.extractor import CnnPyramidExtractor
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor
from mmad_fast.methods.branches.fpfh.extractor import FpfhExtractor
from mmad_fast.methods.btf.detector import BtfPipeline, BtfScores, PatchExtractor, read_bank
from mmad_fast.methods.btf.options import BtfOptions
from mmad_fast.methods.btf.patches import DistinctPatches, Patches, pooling_shares
from mmad_fast.methods.memory_bank.device_search import search_device_bank, upload_bank
from mmad_fast.methods.memory_bank.search import Found, weigh
from mmad_fast.ops.fpfh import OP as FPFH_OP
from mmad_fast.ops.nearest_neighbor_scoring import OP as SCORING_OP
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


class DevicePatchExtractor(PatchExtractor):
    """As detector.PatchExtractor, in a stream."""

    place: DeviceStream

    def __init__(
        self,
        rgb: CnnPyramidExtractor | None,
        points: FpfhExtractor | None,
        options: BtfOptions,
        place: DeviceStream,
    ) -> None:
        super().__init__(rgb, points, options, place)
        self._uploaded: dict[int, Tensor] = {}

    def _pool_points(self, descriptors: Tensor, prepared: PreparedScan) -> Tensor:
        size = prepared.grid_size
        grid = torch.zeros(
            (size * size, descriptors.shape[1]), dtype=torch.float32, device=descriptors.device
        )
        grid[self.place.upload(prepared.pixel_indices)] = descriptors
        return self._pool(grid.T.view(-1, size, size))

    def _pool_maps(self, maps: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([self._pool(feature_map) for feature_map in maps], dim=1)

    def _pool(self, feature_map: Tensor) -> Tensor:
        """(L, C) of a map (C, H, W)."""
        rows, columns = (self._shares(size) for size in feature_map.shape[1:])
        return (rows @ feature_map @ columns.T).flatten(1).T  # (C, 28, 28) before

    def _shares(self, size: int) -> Tensor:
        """(PATCH_GRID, size) of pooling_shares, uploaded once."""
        if size not in self._uploaded:
            self._uploaded[size] = self.place.upload(pooling_shares(size).astype(np.float32))
        return self._uploaded[size]

    def _join(self, rgb: Tensor | None, points: Tensor | None, distinct: DistinctPatches) -> Tensor:
        rows = torch.cat([part for part in (rgb, points) if part is not None], dim=1)
        if distinct.has_background:
            rows = rows.index_select(0, self.place.upload(distinct.patches))
            rows = torch.cat([rows, rows.new_zeros((1, rows.shape[1]))])
        return rows.contiguous()


class DeviceBtfPipeline(BtfPipeline):
    """A fitted BTF detector on a CUDA device. `score` is thread-safe: scans share one stream.

    The device works behind the host: a stage's time is that of handing its steps over and, where it
    uploads or downloads, of waiting for the steps before it.
    """

    extractor: DevicePatchExtractor

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> DeviceBtfPipeline:
        """The pipeline in an artifact, on torch's current CUDA device, its graph run as the choice
        says.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine, or an op or the engine cannot use the device.
        """
        options = BtfOptions.from_manifest(artifact.manifest.parameters)
        if options.reads_points:
            FPFH_OP.resolve(device="cuda")  # says what is missing before torch does
        SCORING_OP.resolve(device="cuda")
        stream = DeviceStream.new()
        rgb = points = None
        if options.reads_rgb:
            rgb = CnnPyramidExtractor.from_artifact(artifact, choice, options, stream)
        if options.reads_points:
            points = FpfhExtractor(options, stream)
        with stream.current():
            bank = PreparedBank(upload_bank(read_bank(artifact, options).rows, stream.device))
        return cls(DevicePatchExtractor(rgb, points, options, stream), bank, options)

    def score_features(self, features: Patches, clock: StageClock) -> BtfScores:
        """The anomaly map and image score of extracted patches."""
        rows: Tensor = features.rows
        owner = self.extractor.place.upload(features.owner)
        found = search_device_bank(rows, owner, self._bank, self._backends, clock, stage="bank")
        with clock.stage("maps"):
            on_host = Found(*(part.cpu().numpy() for part in found))
            return BtfScores.of(weigh(on_host, self.options, num_channels=rows.shape[1]))
