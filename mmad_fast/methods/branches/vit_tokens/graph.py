"""The fit half of the branch: its network built and exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmad_fast.engines import open_graph
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.export.quantization import quantize_graph
from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.vit_tokens import BRANCH
from mmad_fast.methods.branches.vit_tokens.extractor import GRAPH, RgbExtractor
from mmad_fast.methods.branches.vit_tokens.network import build_network
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.methods.fit_request import FitTask

if TYPE_CHECKING:
    from mmad_fast.backbones.dino import VisionTransformer


def build_vit_tokens(task: FitTask) -> BranchPart[RgbExtractor]:
    """The branch of a fit, its graph in the task's scratch folder.

    Raises:
        InvalidInputError: the backbone has fewer blocks.
        WeightsError: the weights are missing or do not fit.
    """
    options: VitTokenOptions = task.options
    network = build_network(
        options, weights=task.request.weights_of(BRANCH.key), seed=task.request.seed
    )
    path = export_tokens(network, task.scratch / f"{GRAPH}.onnx")
    if options.precision == "int8":
        path = quantize_graph(path)
    source = network.weights_source.record(network.name)
    return BranchPart(RgbExtractor(open_graph(path)), {GRAPH: path}, source, {})


def export_tokens(network: VisionTransformer, file: Path) -> Path:
    """The float32 graph image (1, 3, R, R) -> tokens (1, T, C2), written to the file and checked
    against torch."""
    image = torch.zeros(1, 3, network.image_size, network.image_size)
    return export_graph(network, {"image": image}, file, output_name="tokens")
