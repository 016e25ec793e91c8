"""A backbone cut after a block, without a detector: its graph, and what calibrates it.

Importing this imports no torch; exporting the graph does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from mmad_fast.backbones.table import get_rgb_spec
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.branches.branch import require_points
from mmad_fast.methods.branches.point_groups.extractor import GRAPH as POINT_GRAPH
from mmad_fast.methods.branches.point_groups.extractor import (
    PointBackends,
    embed_groups,
)
from mmad_fast.methods.branches.point_groups.options import PointGroupOptions
from mmad_fast.methods.branches.vit_tokens.extractor import GRAPH as RGB_GRAPH
from mmad_fast.ops.point_embedding import EmbedderWeights
from mmad_fast.preprocess import prepare
from mmad_fast.preprocess.recipes import Recipe
from mmad_fast.scan import Scan, Unit
from mmad_fast.stage_clock import StageClock

POINT_MAE = "point-mae"
POINT_DEPTH = 12


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
        return POINT_GRAPH if self.backbone == POINT_MAE else RGB_GRAPH

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

    def inputs_of(
        self, scan: ScanFile | Scan, *, recipe: Recipe, unit: Unit = "m"
    ) -> dict[str, NDArray]:
        """What the graph gets from a scan: array by input name.

        Args:
            scan: The scan.
            recipe: Preprocessing of the detectors that the graph is for.
            unit: Of the scan's file.

        Raises:
            DataError: the scan cannot be read.
            EmptyScanError: too few foreground points for a group.
        """
        if isinstance(scan, ScanFile):
            scan = scan.load(unit=unit)
        if self.embedder is None:
            size = get_rgb_spec(self.cut.backbone).image_size
            return {"image": prepare(scan, recipe, rgb_size=size).rgb[None]}
        prepared, options = prepare(scan, recipe), PointGroupOptions()
        require_points(prepared, options.group_size)
        backends, clock = PointBackends.resolve(), StageClock()
        embedded = embed_groups(prepared.points, self.embedder, options, backends, clock)
        return embedded.graph_inputs


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
    from mmad_fast.backbones import build_point_backbone, build_rgb_backbone

    if cut.backbone != POINT_MAE:
        from mmad_fast.methods.branches.vit_tokens.graph import export_tokens

        rgb = build_rgb_backbone(
            cut.backbone, num_layers=cut.num_blocks, weights=weights, seed=seed
        )
        return CutGraph(cut, export_tokens(rgb, folder / f"{cut.name}.onnx"))
    from mmad_fast.methods.branches.point_groups.graph import export_features

    point = build_point_backbone(layers=cut.fetched, weights=weights, seed=seed)
    path = export_features(
        point, folder / f"{cut.name}.onnx", num_groups=PointGroupOptions().num_groups
    )
    return CutGraph(cut, path, point.encoder.to_embedder_weights())
