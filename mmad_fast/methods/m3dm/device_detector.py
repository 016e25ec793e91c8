"""M3DM from prepared scan to anomaly map on a CUDA device: the steps of detector.py, with
backbones, feature fusion and searches on the device.

The host makes what depends on the pixel grid alone (which rows are distinct, and which patch has
which of them), and from the patches' distances the maps, whose published blur is Pillow's. Needs
torch, whose tensors hold the arrays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import DeviceEngine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor
from mmad_fast.methods.branches.point_groups.extractor import PointBackends, PointExtractor
from mmad_fast.methods.branches.vit_tokens.extractor import RgbExtractor
from mmad_fast.methods.m3dm import scoring
from mmad_fast.methods.m3dm.bank_queries import DistinctRows, PatchFeatures, distinct_rows
from mmad_fast.methods.m3dm.detector import (
    BankScores,
    M3dmPipeline,
    PatchExtractor,
    PatchFusion,
    read_banks,
)
from mmad_fast.methods.m3dm.options import UFF_POINT_GRAPH, UFF_RGB_GRAPH, M3dmOptions
from mmad_fast.ops.inverse_distance_interpolation import POOLED_ROWS_OP
from mmad_fast.ops.nearest_neighbor_scoring import OP as SCORING_OP
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank, nearest_neighbor_scoring
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.stage_clock import StageClock

BLOCK_ROWS = 4096
"""Bank rows whose differences to one row are in memory at a time."""

NEIGHBOR_CANDIDATES = 16
"""Nearest rows by float32 distances that are measured again in float64."""


class Found(NamedTuple):
    """What the search in one bank found; tensors on the device.

    Attributes:
        distances: (L,) float32 of the patches.
        values: (L,) float32 likewise, or (P,) of the pixels where `spread` says how they mix.
        neighbor_distances: (K,) float64 distances of the patch that is farthest from the bank to
            the nearest neighbours of its nearest row.
    """

    distances: Tensor
    values: Tensor
    neighbor_distances: Tensor


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
        return {name: self._weigh_found(name, found[name], features, clock) for name in self._banks}

    def _search(self, name: str, features: PatchFeatures, clock: StageClock) -> Found:
        """What the bank of that name answers, on the device."""
        bank = self._banks[name]
        with clock.stage(f"{name}_bank"):
            wanted = distinct_rows(features.patches, self.options, name)
            owner = self.extractor.place.upload(wanted.owner)  # (L,)
            queries = self._gather(features, wanted, is_fused=name == "fusion")
            mean, std = self.options.bank_scales[name]
            queries = ((queries - mean) / std).contiguous()  # (Q, C)
            nearest: tuple[Tensor, Tensor] = nearest_neighbor_scoring(
                queries, bank, backend=self._scoring_backend
            )
            distances = nearest[0][owner]  # (L,)
        with clock.stage("reweighting"):
            worst = owner.index_select(0, distances.argmax().view(1))  # of equals the first patch
            neighbor_distances = distances_to_neighbors(
                queries.index_select(0, worst), nearest[1].index_select(0, worst), bank.rows
            )
        values = distances
        if features.spread is not None and name != "rgb":
            values = mixed(features.spread.rows, distances[:, None])[:, 0]  # (P,) pixels
        return Found(distances, values, neighbor_distances)

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

    def _weigh_found(
        self, name: str, found: Found, features: PatchFeatures, clock: StageClock
    ) -> BankScores:
        """The score and map of a bank, on the host."""
        with clock.stage("maps"):
            values = found.values.cpu().numpy()
            largest, to_neighbors = found.distances.max(), found.neighbor_distances.cpu().numpy()
            spread = None if name == "rgb" else features.spread
            return self.weigh(float(largest), to_neighbors, values, spread, self._banks[name])


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


def distances_to_neighbors(query: Tensor, nearest: Tensor, rows: Tensor) -> Tensor:
    """(K,) float64 distances of a query (1, C) to the other rows of a bank (M, C) that are nearest
    to its row `nearest` (1,); K is 2, or less in a bank of fewer others. Does not wait.

    The float32 distances choose candidates, float64 ones among these, of equals the lowest index.
    """
    row = rows.index_select(0, nearest).float()
    squared = torch.cat(
        [(block.float() - row).square_().sum(dim=1) for block in rows.split(BLOCK_ROWS)]
    )  # (M,)
    squared.index_fill_(0, nearest, torch.inf)
    num_candidates = min(NEIGHBOR_CANDIDATES, len(rows) - 1)
    candidates = squared.topk(num_candidates, largest=False).indices.sort().values
    others = rows.index_select(0, candidates).double()
    from_row = torch.linalg.vector_norm(others - row.double(), dim=1)
    chosen = from_row.sort(stable=True).indices[: scoring.NUM_NEIGHBORS]
    from_query = torch.linalg.vector_norm(others - query.double(), dim=1)
    return from_query.index_select(0, chosen)


def upload_bank(rows: NDArray, device: torch.device) -> Tensor:
    """A copy (M, C) on the device; rows that stay on disk are never in memory as a whole."""
    dtype = torch.float16 if rows.dtype == np.float16 else torch.float32
    bank = torch.empty(rows.shape, dtype=dtype, device=device)
    for first in range(0, len(rows), BLOCK_ROWS):
        block = np.array(rows[first : first + BLOCK_ROWS])
        bank[first : first + len(block)] = torch.from_numpy(block)
    return bank
