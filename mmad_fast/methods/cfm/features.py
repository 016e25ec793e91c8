"""What CFM knows of a scan before its mapping networks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.sparse_rows import SparseRows


@dataclass(frozen=True)
class CfmFeatures:
    """The features of one scan: few of each modality, and how each place mixes them.

    Places are where both are compared: the foreground pixels or, with `pixel_rows`, R tokens.

    Attributes:
        tokens: (T, C2) float32 RGB tokens, row-major on the token grid.
        token_rows: (P x T) bilinear weights of each foreground pixel, or (R x T) the tokens.
        point_features: (G, C3) float32 features of the point groups; or of tokens, G being T.
        point_rows: (P x G) interpolation and pooling weights of each foreground pixel, or (R x T).
        pixel_indices: (P,) int64 row-major index on the S x S grid, ascending.
        pixel_rows: (P x R) how each pixel mixes the places' discrepancies; None: it has its own.
    """

    tokens: NDArray[np.float32]
    token_rows: SparseRows
    point_features: NDArray[np.float32]
    point_rows: SparseRows
    pixel_indices: NDArray[np.int64]
    pixel_rows: SparseRows | None = None

    def select(self, pixels: NDArray[np.int64]) -> CfmFeatures:
        """The same scan with the pixels at these positions (R,) only."""
        return replace(
            self,
            token_rows=self.token_rows.select(pixels),
            point_rows=self.point_rows.select(pixels),
            pixel_indices=self.pixel_indices[pixels],
        )
