"""From the discrepancy maps to anomaly map and image score. The steps are those of csrc/run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]


def aggregate(psi: Mapping[str, Map], *, aggregation: str) -> Map:
    """(P,) float32 combined discrepancy per pixel.

    Args:
        psi: (P,) float32 by name, "psi_2d" and "psi_3d" as far as the aggregation reads them.
        aggregation: A key of options.PSI_MAPS.

    Source: CFM section 3.3 and Table 6.
    """
    from mmad_fast import _kernels

    combined = np.empty_like(next(iter(psi.values())))
    unread = np.empty(0, np.float32)
    psi_2d, psi_3d = (psi.get(name, unread) for name in ("psi_2d", "psi_3d"))
    _kernels.aggregate(aggregation, psi_2d, psi_3d, combined)
    return combined


def scatter_to_map(psi: Map, pixel_indices: NDArray[np.int64], *, grid_size: int) -> Map:
    """(S, S) float32 map with psi (P,) at the row-major pixel_indices (P,) and 0 elsewhere."""
    dense = np.zeros(grid_size * grid_size, np.float32)
    dense[pixel_indices] = psi
    return dense.reshape(grid_size, grid_size)


def representative_pixels(
    pixel_indices: NDArray[np.int64], *, grid_size: int, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(positions (R,) of one pixel per block of stride x stride, its number (P,) for each pixel).

    A block is represented by that of its given pixels which is nearest to the block's centre, of
    equals by the first.

    Args:
        pixel_indices: (P,) int64 row-major index on the S x S grid, ascending.
        grid_size: S.
        stride: Side of the blocks in pixels.
    """
    from mmad_fast import _kernels

    chosen: tuple[NDArray[np.int64], NDArray[np.int64]] = _kernels.representative_pixels(
        pixel_indices, grid_size, stride
    )
    return chosen


def smooth(psi_map: Map, *, smoothing: str) -> Map:
    """The smoothed map (S, S) float32: "boxes53" as published (zero-padded box means of variance
    22, that is sigma 4.69, not the paper's 4), "sigma4" as in the paper (cut at 16 pixels).

    Pixels out of the filters' reach of any non-zero pixel are exactly 0.

    Source: the public CFM code, method facts 6.3.5; CFM section 3.3.
    """
    from mmad_fast import _kernels

    smoothed = psi_map.copy()
    _kernels.smooth_map(smoothing, smoothed)
    return smoothed


def normalize(psi_map: Map, *, score_norm: str) -> Map:
    """The anomaly map (S, S) float32, whose maximum is the image score.

    "cfm" divides by sqrt(mean of the non-zero pixels), "raw" leaves the map as it is. A map that is
    zero everywhere stays zero.

    Source: the public CFM code (not in the paper); method facts 6.3.6.
    """
    if score_norm == "raw":
        return psi_map
    mean = mean_of_nonzero(psi_map)
    return psi_map if mean == 0 else psi_map / np.float32(np.sqrt(mean))


def mean_of_nonzero(psi_map: Map) -> float:
    """The float64 mean over the non-zero pixels, 0 if there is none."""
    from mmad_fast import _kernels

    return float(_kernels.mean_of_nonzero(np.ascontiguousarray(psi_map, np.float32)))


def published_evaluation_maps(anomaly_map: Map) -> tuple[Map, Map]:
    """The maps (aupro_map, pixel_auroc_map), each (S, S) float32, that the published code rates.

    With psi the smoothed discrepancy, a its mean over non-zero pixels and b over all pixels, the
    detector's map is m = psi / sqrt(a), so mean_nz(m) = sqrt(a) and mean_all(m) = b / sqrt(a).
    The code rates AUPRO on psi / a = m / mean_nz(m), and P-AUROC on
    psi / sqrt(b) = m * sqrt(mean_nz(m) / mean_all(m)). A map of zeros gives zeros.

    Args:
        anomaly_map: (S, S) float32, of a detector with score_norm "cfm".

    Source: the public CFM code; method facts 6.3.6.
    """
    mean_nonzero = mean_of_nonzero(anomaly_map)
    mean_all = float(anomaly_map.mean(dtype=np.float64))
    if mean_nonzero == 0 or mean_all == 0:
        return anomaly_map, anomaly_map
    aupro_map = anomaly_map / np.float32(mean_nonzero)
    pixel_auroc_map = anomaly_map * np.float32(np.sqrt(mean_nonzero / mean_all))
    return aupro_map, pixel_auroc_map
