"""The fit half of the branch: its network built, calibrated and exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray

from mmad_fast.backbones.point_mae import PointTransformer
from mmad_fast.engines import open_graph
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.export.quantization import quantize_graph
from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.point_groups import BRANCH, CHECKPOINT
from mmad_fast.methods.branches.point_groups.extractor import GRAPH, PointExtractor
from mmad_fast.methods.branches.point_groups.network import build_network
from mmad_fast.methods.branches.point_groups.options import (
    EMBEDDER_PREFIX,
    POINT_STATISTICS_PREFIX,
    PointGroupOptions,
)
from mmad_fast.methods.fit_request import FitTask
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS

if TYPE_CHECKING:
    from mmad_fast.backbones.point_mae import PointMae


def build_point_groups(task: FitTask) -> BranchPart[PointExtractor]:
    """The branch of a fit, its graph in the task's scratch folder.

    Raises:
        InvalidInputError: Point-MAE has no such blocks.
        EmptyScanError: batch_norm="calibrated" finds no training scan with enough foreground.
        WeightsError: the weights are missing or do not fit.
    """
    options: PointGroupOptions = task.options
    network = build_network(
        options, weights=task.request.weights_of(BRANCH.key), seed=task.request.seed
    )
    if options.batch_norm == "calibrated":
        network.calibrate(_calibration_groups(task))
    path = export_features(network, task.scratch / f"{GRAPH}.onnx", num_groups=options.num_groups)
    if options.precision == "int8":
        path = quantize_graph(path)
    embedder = network.encoder.to_embedder_weights()
    return BranchPart(
        PointExtractor(open_graph(path), embedder, options),
        {GRAPH: path},
        network.weights_source.record(CHECKPOINT),
        {**embedder.to_tensors(EMBEDDER_PREFIX), **_statistics(network)},
    )


def export_features(network: PointMae, file: Path, *, num_groups: int) -> Path:
    """The float32 graph (tokens (1, G, 384) of the group embedder, centers (1, G, 3)) -> features
    (1, G, C3), written to the file and checked against torch."""
    generator = torch.Generator().manual_seed(0)
    examples = {
        "tokens": torch.randn((1, num_groups, TOKEN_CHANNELS), generator=generator),
        "centers": 0.1 * torch.randn((1, num_groups, 3), generator=generator),
    }
    return export_graph(PointTransformer(network).eval(), examples, file, output_name="features")


def _statistics(network: PointMae) -> dict[str, NDArray]:
    """The calibrated BatchNorm statistics, for the reference: the embedder has them folded
    in."""
    if network.batch_norm != "calibrated":
        return {}
    return {
        POINT_STATISTICS_PREFIX + name: buffer.detach().numpy().copy()
        for name, buffer in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def _calibration_groups(task: FitTask) -> Iterator[torch.Tensor]:
    """Groups (1, G, K, 3) of some training scans.

    Raises:
        EmptyScanError: none of them has enough foreground.
    """
    options: PointGroupOptions = task.options
    for prepared in task.calibration_scans(min_points=options.group_size):
        points = prepared.points
        center_indices = farthest_point_sampling(
            points, options.num_groups, skip_near_origin=options.skip_near_origin
        )
        groups = knn_grouping(points, center_indices, options.group_size).groups
        yield torch.from_numpy(groups)[None]
