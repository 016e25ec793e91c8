"""The published M3DM pipeline in plain torch: dense, slow, obvious. The truth that the detector is
compared with, and the baseline of its speed. Imports nothing from the fast code.

Read `reference_infer` from top to bottom. Every patch of the grid is a row, background included;
distances to a bank are one matrix. Where the paper and its public code differ, the options and
the switches of `ReferenceOptions` choose. How banks are built: reference_banks.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
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
from mmad_fast.methods.m3dm.options import (
    BANK_PREFIX,
    UFF_POINT_GRAPH,
    UFF_RGB_GRAPH,
    M3dmOptions,
)
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

if TYPE_CHECKING:
    from mmad_fast.backbones.point_mae import PointMae

_CDIST_MODES = {
    "direct": "donot_use_mm_for_euclid_dist",
    "expanded": "use_mm_for_euclid_dist",
}
NUM_REWEIGHTING = 3
"""n_reweight of the public code: nearest bank rows of m*, itself among them."""
BLUR_RADIUS = 4


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
class BankScores:
    """What one bank says of one scan, before any weight of the decision.

    Attributes:
        score: Re-weighted distance of the patch that is farthest from the bank.
        map: (S, S) distances, upsampled and blurred.
        distances: (H * W,) distance of each patch to its nearest row.
        nearest: (H * W,) int64 that row; the lowest of equals.
    """

    score: float
    map: NDArray
    distances: NDArray
    nearest: NDArray[np.int64]


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
    matrix = torch.cdist(rows, bank, compute_mode=_CDIST_MODES[options.cdist])  # (H * W, M)
    distances, nearest = matrix.min(dim=1)
    score = image_score(rows, bank, distances, nearest, options)
    if name == "point" and detector.point_patches == "groups":
        patch_map = _group_map(distances, patches.geometry, options, grid_size)
    else:
        side = round(len(distances) ** 0.5)
        patch_map = distances.view(side, side)
    upsampled = F.interpolate(
        patch_map[None, None], size=(grid_size, grid_size), mode="bilinear", align_corners=False
    )[0, 0]
    blurred = blur_8bit(upsampled) if detector.blur == "pil8bit" else blur_float(upsampled)
    return BankScores(float(score), blurred.numpy(), distances.numpy(), nearest.numpy())


def image_score(
    rows: Tensor, bank: Tensor, distances: Tensor, nearest: Tensor, options: ReferenceOptions
) -> Tensor:
    """s = w s*, s* the largest distance of a row (H * W, C) to the bank (M, C).

    "code": w = 1 - exp(s* / sqrt(C)) / (sum_m exp(|f* - m| / sqrt(C)) + epsilon), over the two
    rows m nearest to m*, m* itself left out; all distances divided by the divisor first.
    "paper": w = 1 - exp(s*) / sum_m exp(|f* - m|), over the three rows nearest to m*, which is one
    of them; the largest exponent is subtracted first, since those of raw distances overflow.

    Source: M3DM equation 6, PatchCore equation 7; method facts 5.4.
    """
    detector = options.detector
    farthest = distances.argmax()
    s_star = distances[farthest]
    if detector.reweighting == "none":
        return s_star
    m_star = nearest[farthest]
    from_m_star = torch.cdist(bank[m_star][None], bank, compute_mode=_CDIST_MODES["direct"])[0]
    from_m_star[m_star] = -1  # first, also where it has duplicates
    neighbors = bank[from_m_star.sort(stable=True).indices[:NUM_REWEIGHTING]]
    neighbor_distances = (rows[farthest] - neighbors).norm(dim=1)  # (3,); first: s*
    if detector.reweighting == "paper":
        top = neighbor_distances.max()
        return s_star * (1 - (s_star - top).exp() / (neighbor_distances - top).exp().sum())
    s_star = s_star / detector.distance_divisor
    scaled = neighbor_distances[1:] / detector.distance_divisor / math.sqrt(rows.shape[1])
    numerator = (s_star / math.sqrt(rows.shape[1])).exp()
    return s_star * (1 - numerator / (scaled.exp().sum() + detector.weight_epsilon))


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


def blur_8bit(patch_map: Tensor) -> Tensor:
    """(S, S) blurred as the code does: by PIL, as an 8-bit picture of the map over its maximum.

    A map of zeros stays one, where the code divides by zero.

    Source: method facts 5.4.
    """
    top = patch_map.max()
    if top == 0:
        return patch_map
    levels = (patch_map / top).mul(255).to(torch.uint8)  # rounds down
    picture = Image.fromarray(levels.numpy())
    blurred = np.array(picture.filter(ImageFilter.GaussianBlur(radius=BLUR_RADIUS)))
    return torch.from_numpy(blurred).to(patch_map.dtype) / 255 * top


def blur_float(patch_map: Tensor) -> Tensor:
    """(S, S) smoothed by a Gaussian of sigma 4 pixels, edges repeated."""
    reach = 4 * BLUR_RADIUS
    offsets = torch.arange(-reach, reach + 1, dtype=patch_map.dtype)
    taps = torch.exp(-0.5 * (offsets / BLUR_RADIUS) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(patch_map[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(padded, (taps[:, None] * taps[None])[None, None])[0, 0]


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
