"""The published M3DM pipeline in plain torch: dense, slow, obvious. The truth that the detector is
compared with, and the baseline of its speed. Imports nothing from the fast code.

Read `reference_infer` from top to bottom. Every patch of the grid is a row, background included;
distances to a bank are one matrix. Where the paper and its public code differ, the options and
the switches of `ReferenceOptions` choose. How banks are built: reference_banks.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.artifact import Artifact
from mmad_fast.errors import ArtifactError
from mmad_fast.methods.branches.point_groups import network as point_groups
from mmad_fast.methods.branches.point_groups.reference import (
    DTYPES,
    DenseOptions,
    Geometry,
    group_features,
    in_dtype,
    interpolate,
    load_point_statistics,
    point_feature_map,
)
from mmad_fast.methods.branches.vit_tokens import network as vit_tokens
from mmad_fast.methods.family import Reference
from mmad_fast.methods.fit_request import Weights
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock
from mmad_fast.methods.m3dm.options import UFF_POINT_GRAPH, UFF_RGB_GRAPH, M3dmOptions
from mmad_fast.methods.memory_bank.options import BANK_PREFIX
from mmad_fast.methods.memory_bank.reference import BankScores, score_rows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

if TYPE_CHECKING:
    from mmad_fast.backbones.point_mae import PointMae


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(DenseOptions):
    """The switches of the published pipeline. The defaults are what the fast detector computes.

    Attributes:
        detector: What it was fitted with: banks, patches, scalars, re-weighting, blur, decision.
        cdist: "direct" differences, or "expanded" |a|^2 - 2ab + |b|^2 as in the code, whose
            rounding drowns small distances (and which is faster).
    """

    detector: M3dmOptions
    cdist: str = "direct"

    @classmethod
    def of(cls, detector: M3dmOptions, **switches: str) -> ReferenceOptions:
        """The options that compute what a detector with these parameters computes."""
        return cls(
            num_groups=detector.num_groups,
            group_size=detector.group_size,
            skip_near_origin=detector.skip_near_origin,
            detector=detector,
            **switches,
        )


@dataclass(frozen=True)
class ReferenceNetworks:
    """The networks of the pipeline, in eval mode as far as torch is concerned.

    Attributes:
        rgb: (1, 3, R, R) image -> (1, T, C2) tokens; None if no bank needs it.
        point: Point-MAE; only its layers are used, in the published order of work, not its own
            forward. None if no bank needs it.
        fusion: UFF; None where the fused patch is the plain concatenation.
    """

    rgb: nn.Module | None
    point: PointMae | None
    fusion: FeatureFusionBlock | None = None

    def cast(self, dtype: torch.dtype) -> ReferenceNetworks:
        """Copies of the networks in dtype; itself where they are."""
        networks = vars(self).values()
        return ReferenceNetworks(*(None if n is None else in_dtype(n, dtype) for n in networks))


@dataclass(frozen=True)
class DensePatches:
    """All patches of one scan, raw: not normalised.

    Attributes:
        banks: (H * W, C) patches in row-major order, by the bank that they are compared with;
            (G, C3) under "point" where the groups are the patches.
        geometry: Of the scan's points; None if no bank needs it.
    """

    banks: Mapping[str, Tensor]
    geometry: Geometry | None


@dataclass(frozen=True)
class ReferenceScores:
    """What the reference says of one scan.

    Attributes:
        anomaly_map: (S, S).
        image_score: Not the map's maximum: both are decided from scores of their own.
        banks: What each bank says.
    """

    anomaly_map: NDArray
    image_score: float
    banks: Mapping[str, BankScores]


@torch.inference_mode()
def reference_infer(
    prepared: PreparedScan,
    networks: ReferenceNetworks,
    banks: Mapping[str, Tensor],
    options: ReferenceOptions,
    clock: StageClock | None = None,
) -> ReferenceScores:
    """The anomaly map and score of a prepared scan by the published dense pipeline.

    Args:
        prepared: The scan.
        networks: Backbones and UFF; cast to the options' dtype.
        banks: Normalised rows (M, C) by bank; cast likewise.
        options: The switches.
        clock: Gets the time of each stage if given.

    Raises:
        EmptyScanError: a bank of points is asked and the scan has fewer foreground points than one
            group holds, where the published code crashes.

    Source: M3DM section 3; the public M3DM code where it differs (method facts 5).
    """
    clock = StageClock() if clock is None else clock
    patches = reference_patches(prepared, networks, options, clock)
    scores = {}
    for name in options.detector.banks:
        bank = banks[name].to(DTYPES[options.dtype])
        with clock.stage(f"{name}_bank"):
            scores[name] = score_bank(name, patches, bank, options, prepared.grid_size)
    with clock.stage("decision"):
        return decide(scores, options.detector)


@torch.inference_mode()
def reference_patches(
    prepared: PreparedScan,
    networks: ReferenceNetworks,
    options: ReferenceOptions,
    clock: StageClock | None = None,
) -> DensePatches:
    """All patches of a prepared scan, by bank; raises as `reference_infer` does.

    Source: M3DM sections 3.2 and 3.3; method facts 3, 4 and 5.2.
    """
    clock = StageClock() if clock is None else clock
    dtype, detector = DTYPES[options.dtype], options.detector
    networks = networks.cast(dtype)
    rows: dict[str, Tensor] = {}
    geometry = None
    if networks.rgb is not None:
        with clock.stage("rgb_tokens"):
            rows["rgb"] = networks.rgb(torch.from_numpy(prepared.rgb)[None].to(dtype))[0]  # (T, C2)
    if networks.point is not None:
        features, geometry = group_features(prepared, networks.point, options, clock)
        with clock.stage("interpolation"):
            rows["point"] = _point_patches(features, geometry, options, prepared.grid_size)
    if "fusion" in detector.banks:
        with clock.stage("feature_fusion"):
            rows["fusion"] = fuse(rows["point"], rows["rgb"], networks.fusion)
    return DensePatches({name: rows[name] for name in detector.banks}, geometry)


def _point_patches(
    features: Tensor, geometry: Geometry, options: ReferenceOptions, grid_size: int
) -> Tensor:
    """(H * W, C3) point patches of the groups' features (G, C3); these themselves for "groups"."""
    if options.detector.point_patches == "groups":
        return features
    centers, points, pixels = geometry
    side = {"56x56": 56, "28x28": 28}[options.detector.point_patches]
    interpolated = interpolate(features, centers, points, options)  # (N, C3)
    return point_feature_map(interpolated, pixels, grid_size, side)


def fuse(point_rows: Tensor, tokens: Tensor, fusion: FeatureFusionBlock | None) -> Tensor:
    """(H * W, C3 + C2) fused patches: points first, both through UFF or, without one, as they are.

    The tokens (T, C2) are brought to the grid of the point patches by adaptive pooling, which
    repeats each.

    Source: M3DM equation 3; method facts 5.2, 5.5b.
    """
    side, token_grid = round(len(point_rows) ** 0.5), round(len(tokens) ** 0.5)
    grid = tokens.T.reshape(1, -1, token_grid, token_grid)
    rgb_rows = F.adaptive_avg_pool2d(grid, (side, side))[0].flatten(1).T  # (H * W, C2)
    if fusion is None:
        return torch.cat([point_rows, rgb_rows], dim=1)
    point_hidden = F.gelu(fusion.xyz_mlp.fc1(fusion.xyz_norm(point_rows)))
    rgb_hidden = F.gelu(fusion.rgb_mlp.fc1(fusion.rgb_norm(rgb_rows)))
    return torch.cat([fusion.xyz_mlp.fc2(point_hidden), fusion.rgb_mlp.fc2(rgb_hidden)], dim=1)


def score_bank(
    name: str, patches: DensePatches, bank: Tensor, options: ReferenceOptions, grid_size: int
) -> BankScores:
    """What a bank (M, C) of normalised rows says of the patches that are compared with it.

    Source: M3DM equations 6-8; method facts 5.4.
    """
    detector = options.detector
    mean, std = detector.bank_scales[name]
    rows = (patches.banks[name] - mean) / std  # (H * W, C)
    has_groups = name == "point" and detector.point_patches == "groups"

    def to_map(distances: Tensor) -> Tensor:
        return _group_map(distances, patches.geometry, options, grid_size)

    return score_rows(
        rows, bank, detector, grid_size, cdist=options.cdist, to_map=to_map if has_groups else None
    )


def _group_map(
    distances: Tensor,
    geometry: Geometry | None,
    options: ReferenceOptions,
    grid_size: int,
) -> Tensor:
    """(S, S) the groups' distances (G,), interpolated as their features would be.

    Source: M3DM section 4.4, "point group" rows of table 5.
    """
    assert geometry is not None
    centers, points, pixels = geometry
    interpolated = interpolate(distances[:, None], centers, points, options)  # (N, 1)
    return point_feature_map(interpolated, pixels, grid_size, grid_size).view(grid_size, grid_size)


def decide(scores: Mapping[str, BankScores], detector: M3dmOptions) -> ReferenceScores:
    """The weighted sums of the banks' scores and maps: a single bank has weight 1, "sum" the
    lambdas, "svm" the lambdas times the weights of a linear one-class SVM, whose `score_samples` is
    a dot product (and `decision_function` one with an offset).

    Source: M3DM equations 4 and 5; method facts 5.5.
    """
    score = detector.score_offset
    anomaly_map = np.full_like(next(iter(scores.values())).map, detector.map_offset)
    for name, bank in scores.items():
        score += detector.score_weights[name] * bank.score
        anomaly_map += detector.map_weights[name] * bank.map
    return ReferenceScores(anomaly_map, score, scores)


def reference_pipeline(artifact: Artifact, weights: Weights) -> Reference:
    """The published pipeline with the options, banks and weights of an artifact. With ties="any",
    which is how the code is timed, distances to the banks are the code's expanded ones, too.

    Args:
        artifact: An M3DM artifact; its graphs and tensors hold all but the backbones' weights.
        weights: What it was fitted with, by branch.

    Raises:
        ArtifactError: a tensor or graph is missing or damaged.
        WeightsError: the weights cannot be had or do not fit.
    """
    detector = M3dmOptions.from_manifest(artifact.manifest.parameters)
    seed = int(artifact.manifest.weights["seed"])
    tensors = artifact.tensors()
    rgb = point = None
    if detector.reads_rgb:
        rgb = vit_tokens.build_network(detector, weights=weights.get("rgb", "auto"), seed=seed)
    if detector.reads_points:
        point = point_groups.build_network(
            detector, weights=weights.get("point", "auto"), seed=seed
        )
        load_point_statistics(point, tensors)
    networks = ReferenceNetworks(rgb, point, _fusion_of(artifact) if detector.fuses else None)
    banks = {
        name: torch.from_numpy(np.array(tensors[BANK_PREFIX + name], np.float32))
        for name in detector.banks
    }

    def infer(
        prepared: PreparedScan, clock: StageClock, *, ties: Literal["lowest", "any"] = "lowest"
    ) -> ReferenceScores:
        cdist = "expanded" if ties == "any" else "direct"
        options = ReferenceOptions.of(detector, knn_ties=ties, cdist=cdist)
        return reference_infer(prepared, networks, banks, options, clock)

    return infer


def _fusion_of(artifact: Artifact) -> FeatureFusionBlock:
    """UFF with the weights that stand in an artifact's graphs; its heads are not used."""
    halves = {}
    for side, name in (("xyz", UFF_POINT_GRAPH), ("rgb", UFF_RGB_GRAPH)):
        with artifact.opened_graph(name) as file:
            halves[side] = _half_of_fusion(file, named=artifact.graph_path(name))
    widths = [len(half["norm.weight"]) for half in halves.values()]
    fusion = FeatureFusionBlock(*widths)
    state = {f"{side}_{key}": value for side, half in halves.items() for key, value in half.items()}
    fusion.load_state_dict(state, strict=False)
    return fusion.eval()


def _half_of_fusion(file: Path, *, named: Path) -> dict[str, Tensor]:
    """Weights of one modality by key, read off its graph: LayerNorm, two matrices, two biases."""
    import onnx

    graph = onnx.load_model(file, load_external_data=False).graph
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    norm: list[NDArray] = []
    matrices: list[NDArray] = []
    biases: list[NDArray] = []
    for node in graph.node:
        weights = [constants[name] for name in node.input if name in constants]
        if node.op_type == "LayerNormalization":
            norm = weights
        elif node.op_type == "MatMul":
            matrices.append(weights[0].T)
        elif node.op_type == "Add" and weights and weights[0].size > 1:  # not GELU's 1
            biases.append(weights[0])
    if (len(norm), len(matrices), len(biases)) != (2, 2, 2):
        raise ArtifactError(
            f"{named}: found no LayerNormalization, two matrices and two biases, from which the "
            "dense reference builds its own network; it can only follow float32 graphs"
        )
    arrays = {"norm.weight": norm[0], "norm.bias": norm[1]}
    for layer, matrix, bias in zip(("mlp.fc1", "mlp.fc2"), matrices, biases, strict=True):
        arrays |= {f"{layer}.weight": matrix, f"{layer}.bias": bias}
    return {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
