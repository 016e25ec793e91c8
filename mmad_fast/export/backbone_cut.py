"""A backbone cut after a block, without a detector: its graph, and what calibrates it.

Importing this imports no torch; exporting the graph does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmad_fast.backbones import build_point_backbone, build_rgb_backbone
from mmad_fast.backbones.table import get_rgb_spec
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.errors import EmptyScanError, InvalidInputError
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS, EmbedderWeights, point_embedding
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.preprocess import prepare
from mmad_fast.preprocess.recipes import RECIPES
from mmad_fast.scan import PreparedScan, Scan, Unit

if TYPE_CHECKING:
    from torch import Tensor, nn

POINT_MAE = "point-mae"
POINT_DEPTH = 12
NUM_GROUPS = 1024
GROUP_SIZE = 128
"""Of the point clouds that a detector embeds, see CfmParameters."""


@dataclass(frozen=True)
class BackboneCut:
    """A backbone without the blocks after its last one that is used. Checked when it is made.

    Attributes:
        backbone: A name in RGB_BACKBONES, or "point-mae".
        num_blocks: Blocks that are kept.
        fetched: Of Point-MAE the 0-based blocks whose outputs are concatenated, ascending; the last
            one is the last that is kept. Empty for an RGB backbone, whose last block counts.
    """

    backbone: str
    num_blocks: int
    fetched: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        depth = POINT_DEPTH if self.backbone == POINT_MAE else get_rgb_spec(self.backbone).depth
        if not 1 <= self.num_blocks <= depth:
            raise InvalidInputError(
                f"{self.backbone} cut after {self.num_blocks} blocks cannot be had: it has {depth}"
                f"; choose 1 to {depth}"
            )

    @classmethod
    def point_mae(cls, fetched: Iterable[int]) -> BackboneCut:
        """Point-MAE with these 0-based blocks fetched.

        Raises:
            InvalidInputError: none, not ascending, or beyond the last block.
        """
        blocks = tuple(fetched)
        if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 0:
            raise InvalidInputError(
                f"the fetched blocks of Point-MAE are {blocks}; they must be ascending block "
                f"numbers from 0 to {POINT_DEPTH - 1}, e.g. 1,2,3"
            )
        return cls(POINT_MAE, blocks[-1] + 1, blocks)

    @property
    def graph(self) -> str:
        """Which graph of a detector it would be: "rgb" or "points"."""
        return "points" if self.backbone == POINT_MAE else "rgb"

    @property
    def name(self) -> str:
        """As in file names: "dino-vitb8-l4" by its layers, "point-mae-b1-2-3" by the blocks."""
        if self.fetched:
            return f"{self.backbone}-b{'-'.join(map(str, self.fetched))}"
        return f"{self.backbone}-l{self.num_blocks}"


@dataclass(frozen=True)
class CutGraph:
    """An exported cut.

    Attributes:
        cut: What it is.
        path: Its float32 ONNX graph.
        embedder: Of Point-MAE: the group embedder that makes the graph's tokens.
    """

    cut: BackboneCut
    path: Path
    embedder: EmbedderWeights | None = None

    def inputs_of(self, scan: ScanFile | Scan, *, unit: Unit = "m") -> dict[str, NDArray]:
        """What the graph gets from a scan: array by input name.

        Raises:
            DataError: the scan cannot be read.
            EmptyScanError: too few foreground points for a group.
        """
        if isinstance(scan, ScanFile):
            scan = scan.load(unit=unit)
        if self.embedder is not None:
            return _point_inputs(prepare(scan, RECIPES["cfm"]), self.embedder)
        size = get_rgb_spec(self.cut.backbone).image_size
        return {"image": prepare(scan, RECIPES["cfm"], rgb_size=size).rgb[None]}


def _point_inputs(prepared: PreparedScan, embedder: EmbedderWeights) -> dict[str, NDArray]:
    points = prepared.points
    if len(points) < GROUP_SIZE:
        raise EmptyScanError(
            f"scan {prepared.name!r} has {len(points)} foreground points, a group takes "
            f"{GROUP_SIZE}; check its background and unit"
        )
    index = PointIndex(points)
    center_indices = farthest_point_sampling(points, NUM_GROUPS, index=index)
    groups = knn_grouping(points, center_indices, GROUP_SIZE, index=index).groups
    tokens = point_embedding(groups, embedder)
    return {"tokens": tokens[None], "centers": np.ascontiguousarray(points[center_indices])[None]}


def export_cut(
    cut: BackboneCut, folder: Path, *, weights: str | Path = "auto", seed: int = 0
) -> CutGraph:
    """The cut's float32 graph in a folder, checked against torch.

    An RGB graph maps image (1, 3, R, R) to tokens (1, T, C); a graph of Point-MAE maps tokens
    (1, G, 384) of the group embedder and centers (1, G, 3) to features (1, G, C).

    Args:
        cut: What to export.
        folder: An existing folder.
        weights: Checkpoint path, "auto" (download) or "random" (seeded).
        seed: Of random weights.

    Raises:
        WeightsError: the weights cannot be had or do not fit.
        MissingDependencyError: torch, onnx or onnxscript is not installed.
        MmadFastError: the graph does not give what torch gives.
    """
    module, inputs, output, embedder = _network(cut, weights, seed)
    from mmad_fast.export.onnx_graph import export_graph

    path = export_graph(module, inputs, folder / f"{cut.name}.onnx", output_name=output)
    return CutGraph(cut, path, embedder)


def _network(
    cut: BackboneCut, weights: str | Path, seed: int
) -> tuple[nn.Module, dict[str, Tensor], str, EmbedderWeights | None]:
    """(module, example input by name, name of the output, embedder of Point-MAE)."""
    import torch

    if cut.backbone != POINT_MAE:
        rgb = build_rgb_backbone(
            cut.backbone, num_layers=cut.num_blocks, weights=weights, seed=seed
        )
        return rgb, {"image": torch.zeros(1, 3, rgb.image_size, rgb.image_size)}, "tokens", None
    from mmad_fast.backbones.point_mae import PointTransformer

    point = build_point_backbone(layers=cut.fetched, weights=weights, seed=seed)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "tokens": torch.randn((1, NUM_GROUPS, TOKEN_CHANNELS), generator=generator),
        "centers": 0.1 * torch.randn((1, NUM_GROUPS, 3), generator=generator),
    }
    embedder = point.encoder.to_embedder_weights()
    return PointTransformer(point).eval(), inputs, "features", embedder
