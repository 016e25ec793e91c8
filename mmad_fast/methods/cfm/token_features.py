"""The features of the variants without Point-MAE: both modalities as tokens of one grid.

The second modality's tokens are made by formula from the surface normals of the pixel grid, either
by the vision transformer that sees the RGB image, from their picture, or by pooling histograms.
They are mapped token by token, a few hundred instead of some ten thousand pixels; the discrepancies
are spread over the pixels afterwards.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmad_fast.methods.branches.branch import HOST, Place, require_points
from mmad_fast.methods.branches.organised_normals.extractor import (
    OrganisedSurface,
    normals_picture,
    organised_surface,
)
from mmad_fast.methods.branches.vit_tokens.extractor import RgbExtractor
from mmad_fast.methods.cfm.features import CfmFeatures
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.ops.fpfh import NUM_CHANNELS as HISTOGRAM_CHANNELS
from mmad_fast.ops.fpfh import OP as FPFH_OP
from mmad_fast.ops.fpfh import fpfh
from mmad_fast.ops.pixel_mapping import bilinear_rows
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

MIN_POINTS = 3
"""That span a plane: of fewer there is no surface to describe."""
FPFH_CHANNELS = HISTOGRAM_CHANNELS + 3
NORMAL_WEIGHT = 3.0
"""Of a normal beside the logarithms of its histograms, which are of about this size."""


class GeometryTokens(Protocol):
    """The second modality."""

    def tokens(self, prepared: PreparedScan, clock: StageClock) -> Any:
        """(T, C3) float32 tokens of a scan, where the mapping runs."""


class NormalsTokens:
    """Tokens of the picture of normals, by the network of the RGB image."""

    def __init__(self, rgb: RgbExtractor, options: CfmOptions, place: Place = HOST) -> None:
        """Takes the network, and where it runs."""
        self._rgb = rgb
        self._options = options
        self._place = place

    def tokens(self, prepared: PreparedScan, clock: StageClock) -> Any:
        """See GeometryTokens."""
        with clock.stage("normals"):
            surface = organised_surface(prepared.xyz, sigma=self._options.normals_sigma)
            picture = normals_picture(surface.normals, size=self._options.rgb_size)
            image = self._place.upload(picture[None])
        return self._rgb.tokens(image, clock, stage="normal_tokens")


class FpfhTokens:
    """Means of the logarithms of FPFH and of normals over each token's cell; on the host."""

    def __init__(self, options: CfmOptions, place: Place = HOST) -> None:
        """Takes the place where the tokens are needed.

        Raises:
            BackendUnavailableError: the op has no backend here.
        """
        self._options = options
        self._place = place
        self._backend = FPFH_OP.resolve().name

    def tokens(self, prepared: PreparedScan, clock: StageClock) -> Any:
        """See GeometryTokens."""
        options = self._options
        with clock.stage("normals"):
            surface = organised_surface(prepared.xyz, sigma=options.normals_sigma)
            points, normals = _of_pixels(surface, prepared.pixel_indices)
        with clock.stage("fpfh"):
            histograms = fpfh(
                points,
                normals=normals,
                max_neighbors=options.fpfh_neighbors,
                radius=options.fpfh_radius,
                backend=self._backend,
            )
        with clock.stage("pooling"):
            descriptors = np.concatenate([np.log1p(histograms), NORMAL_WEIGHT * normals], axis=1)
            cells = cells_of(prepared.pixel_indices, prepared.grid_size, options.token_grid)
            tokens = cell_rows(cells, options.token_grid**2).apply(descriptors)
        return self._place.upload(tokens)


class TokenFeatureExtractor:
    """Tokens of both modalities, and how the pixels mix them. `extract` is thread-safe."""

    def __init__(
        self,
        rgb: RgbExtractor,
        geometry: GeometryTokens,
        options: CfmOptions,
        place: Place = HOST,
    ) -> None:
        """Takes the modalities, which run in the place."""
        self.place = place
        self._rgb = rgb
        self._geometry = geometry
        self._options = options

    def extract(self, prepared: PreparedScan, clock: StageClock) -> CfmFeatures:
        """The features of a prepared scan.

        Raises:
            EmptyScanError: fewer than three foreground points.
        """
        require_points(prepared, MIN_POINTS)
        image, _ = self.place.upload_scan(prepared, clock)
        tokens = self._rgb.tokens(image, clock)
        geometry = self._geometry.tokens(prepared, clock)
        with clock.stage("interpolation"):
            pixels, size, grid = (
                prepared.pixel_indices,
                prepared.grid_size,
                self._options.token_grid,
            )
            foreground = np.unique(cells_of(pixels, size, grid))
            rows = self.place.upload_rows(rows_of_cells(foreground, grid**2))
            pixel_rows = spreading_rows(pixels, foreground, token_grid=grid, grid_size=size)
        return CfmFeatures(tokens, rows, geometry, rows, pixels, pixel_rows)


def cells_of(
    pixel_indices: NDArray[np.int64], grid_size: int, token_grid: int
) -> NDArray[np.int64]:
    """(P,) the token in whose cell each pixel's centre lies, row-major on the token grid."""
    rows, columns = np.divmod(pixel_indices, grid_size)
    row, column = ((2 * axis + 1) * token_grid // (2 * grid_size) for axis in (rows, columns))
    return row * token_grid + column


def cell_rows(cells: NDArray[np.int64], num_cells: int) -> SparseRows:
    """(num_cells x P) the mean over the pixels (P,) of each cell; empty for a cell without any."""
    counts = np.bincount(cells, minlength=num_cells)
    order = np.argsort(cells, kind="stable")
    values = (1 / counts[cells[order]]).astype(np.float32)
    return SparseRows(_offsets(counts), order.astype(np.int32), values, len(cells))


def rows_of_cells(cells: NDArray[np.int64], num_cells: int) -> SparseRows:
    """(R x num_cells) the cells (R,) as they are."""
    offsets = np.arange(len(cells) + 1, dtype=np.int64)
    return SparseRows(offsets, cells.astype(np.int32), np.ones(len(cells), np.float32), num_cells)


def spreading_rows(
    pixel_indices: NDArray[np.int64],
    cells: NDArray[np.int64],
    *,
    token_grid: int,
    grid_size: int,
) -> SparseRows:
    """(P x R) how each pixel mixes the values of the cells (R,): bilinearly, by those of its four
    that are among them. Each pixel's own must be: the weights sum to 1."""
    rows = bilinear_rows(pixel_indices, token_grid=token_grid, output_size=grid_size)
    number = np.full(token_grid**2, -1, np.int32)
    number[cells] = np.arange(len(cells), dtype=np.int32)
    columns = number[rows.columns]
    is_kept = columns >= 0
    owner = np.repeat(np.arange(rows.num_rows), np.diff(rows.offsets))[is_kept]
    values = rows.values[is_kept]
    sums = np.bincount(owner, values, minlength=rows.num_rows)
    counts = np.bincount(owner, minlength=rows.num_rows)
    weights = (values / sums[owner]).astype(np.float32)
    return SparseRows(_offsets(counts), columns[is_kept], weights, len(cells))


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _of_pixels(
    surface: OrganisedSurface, pixel_indices: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(points, normals), both (N, 3), at the pixels."""
    return (
        surface.points.reshape(-1, 3)[pixel_indices],
        surface.normals.reshape(-1, 3)[pixel_indices],
    )
