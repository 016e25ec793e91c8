"""M3DM from prepared scan to anomaly map on a CUDA device: the steps of detector.py, with
backbones, feature fusion and searches on the device.

The host makes what depends on the pixel grid alone (which rows are distinct, and which patch has
which of them), and from the patches' distances the maps, whose published blur is Pillow's. Needs
torch, whose tensors hold the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import DeviceEngine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.methods.branches.device_stream import DeviceStream, Tensor
from mmad_fast.methods.branches.point_groups.cpu import PointBackends, PointGroups, require_points
from mmad_fast.methods.branches.point_groups.device import DevicePointExtractor
from mmad_fast.methods.branches.vit_tokens.device import DeviceRgbExtractor
from mmad_fast.methods.m3dm import scoring
from mmad_fast.methods.m3dm.bank_queries import DistinctRows, distinct_rows
from mmad_fast.methods.m3dm.detector import (
    BankScores,
    M3dmScores,
    decide,
    map_of,
    read_banks,
)
from mmad_fast.methods.m3dm.options import UFF_POINT_GRAPH, UFF_RGB_GRAPH, M3dmOptions
from mmad_fast.ops.inverse_distance_interpolation import (
    POOLED_ROWS_OP,
    PooledRows,
    pooled_interpolation_rows,
)
from mmad_fast.ops.nearest_neighbor_scoring import OP as SCORING_OP
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank, nearest_neighbor_scoring
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

BLOCK_ROWS = 4096
"""Bank rows whose differences to one row are in memory at a time."""

NEIGHBOR_CANDIDATES = 16
"""Nearest rows by float32 distances that are measured again in float64."""


@dataclass(frozen=True)
class OpBackends:
    """The backend of each of M3DM's own ops by name, chosen when a detector is made."""

    pooled_rows: str
    scoring: str

    @classmethod
    def resolve(cls) -> OpBackends:
        """The first of each op that can run on a CUDA device.

        Raises:
            BackendUnavailableError: an op has none.
        """
        return cls(
            pooled_rows=POOLED_ROWS_OP.resolve(device="cuda").name,
            scoring=SCORING_OP.resolve(device="cuda").name,
        )


@dataclass(frozen=True)
class DevicePatchFeatures:
    """The features of one scan's patches on the device; see detector.PatchFeatures.

    Attributes:
        tokens: (T, C2) float32 tensor, or None where no bank reads them.
        points: (P + 1, C3) float32 tensor, last the background's zeros; (G, C3) where the point
            groups are the patches; None where no bank reads them.
        patches: (P,) int64 on the host: the foreground patches.
        fused_points, fused_tokens: What the feature fusion makes of both; None without it.
        spread: Where the point groups are the patches: how each foreground pixel mixes them.
    """

    tokens: Tensor
    points: Tensor
    patches: NDArray[np.int64]
    fused_points: Tensor
    fused_tokens: Tensor
    spread: PooledRows | None


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


class DevicePatchFusion:
    """The networks of the unsupervised feature fusion (UFF) on the device."""

    def __init__(self, point: DeviceEngine, rgb: DeviceEngine, stream: DeviceStream) -> None:
        """Takes the graphs "uff_point" (rows (1, R, C3) -> fused (1, R, C3)) and "uff_rgb"
        (rows (1, T, C2) -> fused (1, T, C2)), which run in the stream."""
        self._point = point
        self._rgb = rgb
        self._stream = stream

    def fuse_tokens(self, tokens: Tensor) -> Tensor:
        """(T, C2) of tokens (T, C2)."""
        return self._stream.run(self._rgb, rows=tokens[None])[0]

    def fuse_points(self, points: Tensor) -> Tensor:
        """(P + 1, C3) of points (P + 1, C3), as many at a time as the graph takes."""
        height = self._point.input_shapes["rows"][1]
        padded = F.pad(points, (0, 0, 0, -len(points) % height))
        blocks = [
            self._stream.run(self._point, rows=block[None])[0] for block in padded.split(height)
        ]
        return torch.cat(blocks)[: len(points)]


class DeviceM3dmPipeline:
    """A fitted M3DM detector on a CUDA device. `score` is thread-safe: scans share one stream."""

    def __init__(
        self,
        rgb: DeviceRgbExtractor | None,
        point: DevicePointExtractor | None,
        fusion: DevicePatchFusion | None,
        banks: Mapping[str, PreparedBank],
        options: M3dmOptions,
        stream: DeviceStream,
    ) -> None:
        """Use `from_artifact`. Extractors, fusion and banks are of the stream's device; None is for
        what the banks do not read."""
        self.options = options
        self.backends = OpBackends.resolve()
        self._rgb = rgb
        self._point = point
        self._fusion = fusion
        self._banks = {name: banks[name] for name in options.banks}
        self._stream = stream

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> DeviceM3dmPipeline:
        """The pipeline in an artifact, on torch's current CUDA device, its graphs run as the choice
        says.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: no such engine, or an op or the engine cannot use the device.
        """
        PointBackends.resolve(device="cuda")  # says what is missing before torch does
        OpBackends.resolve()
        options = M3dmOptions.from_manifest(artifact.manifest.parameters)
        stream = DeviceStream.new()
        rgb, point, fusion = None, None, None
        if options.reads_rgb:
            rgb = DeviceRgbExtractor.from_artifact(artifact, choice, options, stream)
        if options.reads_points:
            point = DevicePointExtractor.from_artifact(artifact, choice, options, stream)
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
        return cls(rgb, point, fusion, banks, options, stream)

    def score(self, prepared: PreparedScan, clock: StageClock) -> M3dmScores:
        """The anomaly map and image score of a prepared scan.

        The device works behind the host: a stage's time is that of handing its steps over and,
        where it uploads or downloads, of waiting for the steps before it.

        Raises:
            EmptyScanError: the detector reads points, and there are fewer than one group holds.
        """
        if self._point is not None:
            require_points(prepared, self.options.group_size)
        with self._stream.current():
            features = self.extract(prepared, clock)
            found = {name: self._search(name, features, clock) for name in self._banks}
            by_bank = {
                name: self._bank_scores(name, found[name], features, clock) for name in found
            }
        with clock.stage("decision"):
            return decide(by_bank, self.options)

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC): the public code rates the map itself in both."""
        return anomaly_map, anomaly_map

    def extract(self, prepared: PreparedScan, clock: StageClock) -> DevicePatchFeatures:
        """The features of a prepared scan, with enough points, in the current stream."""
        tokens, points, patches, spread = None, None, np.empty(0, np.int64), None
        fused_points, fused_tokens = None, None
        with clock.stage("upload"):  # all of it first: an upload waits for what was launched before
            image = self._stream.upload(prepared.rgb[None])  # (1, 3, R, R)
            cloud = self._stream.upload(prepared.points)  # (N, 3)
        if self._point is not None:
            groups = self._point.groups(cloud, clock)  # features (G, C3), weights (N, 3)
            with clock.stage("patch_features"):
                points, patches, spread = self._pool(groups, prepared)
        if self._rgb is not None:
            tokens = self._rgb.tokens(image, clock)  # (T, C2)
        if self._fusion is not None:
            with clock.stage("feature_fusion"):
                fused_points = self._fusion.fuse_points(points)
                fused_tokens = self._fusion.fuse_tokens(tokens)
        return DevicePatchFeatures(tokens, points, patches, fused_points, fused_tokens, spread)

    def _pool(
        self, groups: PointGroups, prepared: PreparedScan
    ) -> tuple[Tensor, NDArray[np.int64], PooledRows | None]:
        """(points, patches, spread) of DevicePatchFeatures."""
        features: Tensor = groups.features
        patch_grid = self.options.patch_grid
        pooled = pooled_interpolation_rows(
            groups.weights,
            prepared.pixel_indices,
            num_centers=self.options.num_groups,
            grid_size=prepared.grid_size,
            output_size=patch_grid or prepared.grid_size,
            backend=self.backends.pooled_rows,
        )
        if patch_grid is None:
            return features, np.arange(len(features)), pooled
        return F.pad(mixed(pooled.rows, features), (0, 0, 0, 1)), pooled.pixel_indices, None

    def _search(self, name: str, features: DevicePatchFeatures, clock: StageClock) -> Found:
        """What the bank of that name answers, on the device."""
        bank = self._banks[name]
        with clock.stage(f"{name}_bank"):
            wanted = distinct_rows(features.patches, self.options, name)
            owner = self._stream.upload(wanted.owner)  # (L,)
            queries = self._gather(features, wanted, is_fused=name == "fusion")
            mean, std = self.options.bank_scales[name]
            queries = ((queries - mean) / std).contiguous()  # (Q, C)
            nearest: tuple[Tensor, Tensor] = nearest_neighbor_scoring(
                queries, bank, backend=self.backends.scoring
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

    def _gather(
        self, features: DevicePatchFeatures, wanted: DistinctRows, *, is_fused: bool
    ) -> Tensor:
        """(Q, C) the wanted rows, raw; of both modalities side by side where both are wanted."""
        points, tokens = features.points, features.tokens
        if is_fused and self._fusion is not None:
            points, tokens = features.fused_points, features.fused_tokens
        parts = [
            part[self._stream.upload(index)]
            for part, index in ((points, wanted.point_index), (tokens, wanted.token_index))
            if index is not None
        ]
        return torch.cat(parts, dim=1)

    def _bank_scores(
        self, name: str, found: Found, features: DevicePatchFeatures, clock: StageClock
    ) -> BankScores:
        """The score and map of a bank, on the host."""
        options = self.options
        with clock.stage("maps"):
            values = found.values.cpu().numpy()
            score = scoring.reweight(
                float(found.distances.max()),
                found.neighbor_distances.cpu().numpy(),
                num_channels=self._banks[name].rows.shape[1],
                reweighting=options.reweighting,
                weight_epsilon=options.weight_epsilon,
                distance_divisor=options.distance_divisor,
            )
            if features.spread is None or name == "rgb":
                distance_map = map_of(values, None, options, name)
            else:
                side = options.grid_size
                distance_map = np.zeros((side, side), np.float32)
                distance_map.ravel()[features.spread.pixel_indices] = values
            return BankScores(score, scoring.blur(distance_map, blur=options.blur))


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
