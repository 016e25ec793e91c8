"""The published memory banks in plain torch, dense, slow, obvious: what the references of the
families with banks share. Imports nothing from the fast code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim
from torch import Tensor

from mmad_fast.methods.memory_bank.options import BankOptions

CDIST_MODES = {
    "direct": "donot_use_mm_for_euclid_dist",
    "expanded": "use_mm_for_euclid_dist",
}
NUM_REWEIGHTING = 3
"""n_reweight of the public code: nearest bank rows of m*, itself among them."""
BLUR_RADIUS = 4
CORESET_FRACTION = 0.1
PROJECTION_EPS = 0.9


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


def score_rows(
    rows: Tensor,
    bank: Tensor,
    options: BankOptions,
    grid_size: int,
    *,
    cdist: str,
    to_map: Callable[[Tensor], Tensor] | None = None,
) -> BankScores:
    """What a bank (M, C) says of rows (L, C), scaled as it is.

    Args:
        rows: The patches, row-major; a square grid of them but for `to_map`.
        bank: The bank, of the same type.
        options: Of the detector.
        grid_size: S, side of the map.
        cdist: A key of CDIST_MODES.
        to_map: Makes a square map of the distances (L,), where the patches are no grid.

    Source: M3DM equations 6-8, PatchCore; method facts 5.4.
    """
    matrix = torch.cdist(rows, bank, compute_mode=CDIST_MODES[cdist])  # (L, M)
    distances, nearest = matrix.min(dim=1)
    score = image_score(rows, bank, distances, nearest, options)
    side = round(len(distances) ** 0.5)
    patch_map = distances.view(side, side) if to_map is None else to_map(distances)
    upsampled = F.interpolate(
        patch_map[None, None], size=(grid_size, grid_size), mode="bilinear", align_corners=False
    )[0, 0]
    blurred = blur_8bit(upsampled) if options.blur == "pil8bit" else blur_float(upsampled)
    return BankScores(float(score), blurred.numpy(), distances.numpy(), nearest.numpy())


def image_score(
    rows: Tensor, bank: Tensor, distances: Tensor, nearest: Tensor, options: BankOptions
) -> Tensor:
    """s = w s*, s* the largest distance of a row (H * W, C) to the bank (M, C).

    "code": w = 1 - exp(s* / sqrt(C)) / (sum_m exp(|f* - m| / sqrt(C)) + epsilon), over the two
    rows m nearest to m*, m* itself left out; all distances divided by the divisor first.
    "paper": w = 1 - exp(s*) / sum_m exp(|f* - m|), over the three rows nearest to m*, which is one
    of them; the largest exponent is subtracted first, since those of raw distances overflow.

    Source: M3DM equation 6, PatchCore equation 7; method facts 5.4.
    """
    farthest = distances.argmax()
    s_star = distances[farthest]
    if options.reweighting == "none":
        return s_star
    m_star = nearest[farthest]
    from_m_star = torch.cdist(bank[m_star][None], bank, compute_mode=CDIST_MODES["direct"])[0]
    from_m_star[m_star] = -1  # first, also where it has duplicates
    neighbors = bank[from_m_star.sort(stable=True).indices[:NUM_REWEIGHTING]]
    neighbor_distances = (rows[farthest] - neighbors).norm(dim=1)  # (3,); first: s*
    if options.reweighting == "paper":
        top = neighbor_distances.max()
        return s_star * (1 - (s_star - top).exp() / (neighbor_distances - top).exp().sum())
    s_star = s_star / options.distance_divisor
    scaled = neighbor_distances[1:] / options.distance_divisor / math.sqrt(rows.shape[1])
    numerator = (s_star / math.sqrt(rows.shape[1])).exp()
    return s_star * (1 - numerator / (scaled.exp().sum() + options.weight_epsilon))


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


def project(rows: Tensor, seed: int) -> Tensor:
    """(N, d) the rows (N, C) randomly projected; as they are where d would exceed C, as in the
    code."""
    if johnson_lindenstrauss_min_dim(len(rows), eps=PROJECTION_EPS) > rows.shape[1]:
        return rows
    projection = SparseRandomProjection(eps=PROJECTION_EPS, random_state=seed)
    return torch.from_numpy(projection.fit_transform(rows.numpy()))


def reference_coreset(rows: Tensor, num_samples: int) -> Tensor:
    """(n,) int64 greedy k-centre from row 0: the row farthest from those taken, again and again;
    ties go to the lowest index. Ends early where every row equals one that is taken; the public
    code then takes row 0 again and again.

    Source: method facts 5.3, in float32 rather than float16.
    """
    chosen = [0]
    nearest = torch.full((len(rows),), torch.inf)
    while len(chosen) < num_samples:
        distances = (rows.double() - rows[chosen[-1]].double()).norm(dim=1).float()
        nearest = torch.minimum(nearest, distances)
        farthest = int(nearest.argmax())
        if nearest[farthest] == 0:
            break
        chosen.append(farthest)
    return torch.tensor(chosen)
