"""M3DM from prepared scan to anomaly map on a CUDA device: the steps of detector.py, with
backbones, feature fusion and searches on the device.

The host makes what depends on the pixel grid alone (which rows are distinct, and which patch has
which of them), and from the patches' distances the maps, whose published blur is Pillow's. Needs
torch, whose tensors hold the arrays.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from mmad_fast.artifact import Artifact
from mmad_fast.engines import DeviceEngine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor
from mmad_fast.methods.branches.point_groups.extractor import PointBackends, PointExtractor
from mmad_fast.methods.branches.vit_tokens.extractor import RgbExtractor
from mmad_fast.methods.m3dm.bank_queries import DistinctRows, PatchFeatures, distinct_rows
from mmad_fast.methods.m3dm.detector import (
    M3dmPipeline,
    PatchExtractor,
    PatchFusion,
    read_banks,
    spread_of,
)
from mmad_fast.methods.m3dm.options import UFF_POINT_GRAPH, UFF_RGB_GRAPH, M3dmOptions
from mmad_fast.methods.memory_bank.device_search import search_device_bank, upload_bank
from mmad_fast.methods.memory_bank.search import BankScores, Found, weigh
from mmad_fast.ops.inverse_distance_interpolation import POOLED_ROWS_OP
from mmad_fast.ops.nearest_neighbor_scoring import OP as SCORING_OP
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.stage_clock import StageClock


class DevicePatchFusion(PatchFusion):
    """The networks of the unsupervised feature fusion (UFF) on the device."""

    _point: DeviceEngine
    _rgb: DeviceEngine

    def __init__(self, point: DeviceEngine, rgb: DeviceEngine, stream: DeviceStream) -> None:
        """Takes the graphs of detector.PatchFusion, which run in the stream."""
        super().__init__(point, rgb)
        self._stream = stream

    def fuse(self, features: PatchFeatures) -> PatchFeatures:
        """The features with their fused parts."""
        rows: Tensor = features.point_rows
        tokens: Tensor = features.tokens
        fused = self._stream.run(self._rgb, rows=tokens[None])[0]  # (T, C2)
        return replace(features, fused_points=self._fuse_points(rows), fused_tokens=fused)

    def _fuse_points(self, point_rows: Tensor) -> Tensor:
        """(P + 1, C3) of rows (P + 1, C3), as many at a time as the graph takes."""
        height = self._point.input_shapes["rows"][1]
        padded = F.pad(point_rows, (0, 0, 0, -len(point_rows) % height))
        blocks = [
            self._stream.run(self._point, rows=block[None])[0] for block in padded.split(height)
        ]
        return torch.cat(blocks)[: len(point_rows)]


class DevicePatchExtractor(PatchExtractor):
    """As detector.PatchExtractor, in a stream; point rows end with the background's zeros."""

    place: DeviceStream

    def _mix(self, rows: SparseRows, features: Tensor) -> Tensor:
        """(P + 1, C3) point rows from the groups' features (G, C3)."""
        return F.pad(mixed(rows, features), (0, 0, 0, 1))


class DeviceM3dmPipeline(M3dmPipeline):
    """A fitted M3DM detector on a CUDA device. `score` is thread-safe: scans share one stream.

    The device works behind the host: a stage's time is that of handing its steps over and, where it
    uploads or downloads, of waiting for the steps before it.
    """

    extractor: DevicePatchExtractor

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> DeviceM3dmPipeline:
        """The pipeline in an artifact, on torch's current CUDA device, its graphs run as the choice
        says.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine, or an op or the engine cannot use the device.
        """
        PointBackends.resolve(device="cuda")  # says what is missing before torch does
        for op in (POOLED_ROWS_OP, SCORING_OP):
            op.resolve(device="cuda")
        options = M3dmOptions.from_manifest(artifact.manifest.parameters)
        stream = DeviceStream.new()
        rgb, point, fusion = None, None, None
        if options.reads_rgb:
            rgb = RgbExtractor.from_artifact(artifact, choice, options, stream)
        if options.reads_points:
            point = PointExtractor.from_artifact(artifact, choice, options, stream)
        if options.fuses:
            fusion = DevicePatchFusion(
                stream.open_graph(choice, UFF_POINT_GRAPH),
                stream.open_graph(choice, UFF_RGB_GRAPH),
                stream,
            )
        with stream.current():
            banks = {
                name: PreparedBank(upload_bank(bank.rows, stream.device))
                for name, bank in read_banks(artifact, options).items()
            }
        extractor = DevicePatchExtractor(rgb, point, options, fusion, stream)
        return cls(extractor, banks, options)

    def bank_scores(self, features: PatchFeatures, clock: StageClock) -> dict[str, BankScores]:
        """What each bank says; all are searched before the host waits for the first."""
        found = {name: self._search(name, features, clock) for name in self._banks}
        with clock.stage("maps"):
            return {name: self._to_host(name, *found[name], features) for name in self._banks}

    def _search(
        self, name: str, features: PatchFeatures, clock: StageClock
    ) -> tuple[Found, Tensor | None]:
        """What the bank of that name answers, and where the groups are the patches the values (P,)
        of the pixels; on the device."""
        stage = f"{name}_bank"
        with clock.stage(stage):
            wanted = distinct_rows(features.patches, self.options, name)
            owner = self.extractor.place.upload(wanted.owner)  # (L,)
            queries = self._gather(features, wanted, is_fused=name == "fusion")
            mean, std = self.options.bank_scales[name]
            queries = ((queries - mean) / std).contiguous()  # (Q, C)
        found = search_device_bank(
            queries, owner, self._banks[name], self._backends, clock, stage=stage
        )
        spread = spread_of(features, name)
        return found, spread and mixed(spread.rows, found.distances[:, None])[:, 0]

    def _gather(self, features: PatchFeatures, wanted: DistinctRows, *, is_fused: bool) -> Tensor:
        """(Q, C) the wanted rows, raw; of both modalities side by side where both are wanted."""
        points: Tensor = features.point_rows
        tokens: Tensor = features.tokens
        if is_fused and self.options.fuses:
            points, tokens = features.fused_points, features.fused_tokens
        parts = [
            part[self.extractor.place.upload(index)]
            for part, index in ((points, wanted.point_index), (tokens, wanted.token_index))
            if index is not None
        ]
        return torch.cat(parts, dim=1)

    def _to_host(
        self, name: str, found: Found, values: Tensor | None, features: PatchFeatures
    ) -> BankScores:
        """The score and map of a bank, on the host."""
        return weigh(
            Found(*(part.cpu().numpy() for part in found)),
            self.options,
            num_channels=self._banks[name].rows.shape[1],
            spread=spread_of(features, name),
            values=None if values is None else values.cpu().numpy(),
        )


def mixed(rows: SparseRows, features: Tensor) -> Tensor:
    """(P, C): the rows, equally long and on the device, applied to features (G, C). A gather and
    sum in a fixed order: no atomic additions, and never P x entries x C values."""
    columns: Tensor = rows.columns
    values: Tensor = rows.values
    return F.embedding_bag(
        columns.view(rows.num_rows, -1),
        features.contiguous(),
        mode="sum",
        per_sample_weights=values.view(rows.num_rows, -1),
    )
