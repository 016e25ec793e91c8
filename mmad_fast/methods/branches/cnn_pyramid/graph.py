"""The fit half of the branch: its network built and exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmad_fast.engines import open_graph
from mmad_fast.export.convolution_quantization import quantize_convolutions
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.cnn_pyramid import BRANCH
from mmad_fast.methods.branches.cnn_pyramid.extractor import GRAPH, CnnPyramidExtractor
from mmad_fast.methods.branches.cnn_pyramid.network import build_network
from mmad_fast.methods.branches.cnn_pyramid.options import CnnPyramidOptions
from mmad_fast.methods.fit_request import FitTask

if TYPE_CHECKING:
    from mmad_fast.backbones.convolutional import ConvolutionalNetwork


def build_cnn_pyramid(task: FitTask) -> BranchPart[CnnPyramidExtractor]:
    """The branch of a fit, its graph in the task's scratch folder.

    Raises:
        EmptyScanError: precision="int8" finds no training scan with foreground.
        WeightsError: the weights are missing or do not fit.
    """
    options: CnnPyramidOptions = task.options
    is_int8 = options.precision == "int8"
    images = [{"image": scan.rgb[None]} for scan in task.calibration_scans()] if is_int8 else []
    network = build_network(
        options, weights=task.request.weights_of(BRANCH.key), seed=task.request.seed
    )
    path = export_maps(network, task.scratch / f"{GRAPH}.onnx", output_names=options.output_names)
    if is_int8:
        path = quantize_convolutions(path, images)
    source = network.weights_source.record(network.name)
    return BranchPart(CnnPyramidExtractor(open_graph(path), options), {GRAPH: path}, source, {})


def export_maps(
    network: ConvolutionalNetwork, file: Path, *, output_names: tuple[str, ...]
) -> Path:
    """The float32 graph image (1, 3, R, R) -> feature maps (1, C, H, W) of these names, written to
    the file and checked against torch."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, network.image_size, network.image_size, generator=generator)
    return export_graph(network, {"image": image}, file, output_name=output_names)
