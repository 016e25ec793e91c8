"""The fit half of the branch: its graphs exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from mmad_fast.engines import open_graph
from mmad_fast.export.convolution_quantization import quantize_convolutions
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.export.quantization import quantize_graph
from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.feature_levels.extractor import OUTPUT_NAMES, FeatureLevelExtractor
from mmad_fast.methods.branches.feature_levels.options import FeatureLevelOptions
from mmad_fast.methods.fit_request import FitTask


def export_feature_levels(
    task: FitTask,
    networks: Mapping[str, nn.Module],
    images: Mapping[str, Sequence[NDArray]],
) -> BranchPart[FeatureLevelExtractor]:
    """The branch of a fit, its graphs in the task's scratch folder.

    Args:
        task: Its options say the precision.
        networks: By name of the graph, as network.build_network and with_statistics make them.
        images: Of some scans, (1, 3, R, R) float32 by name of the graph that reads them; read for
            precision="int8" alone.
    """
    options: FeatureLevelOptions = task.options
    graphs = {}
    for name, network in networks.items():
        path = export_levels(network, task.scratch / f"{name}.onnx", image_size=options.rgb_size)
        if options.precision == "int8":
            if options.is_transformer:
                path = quantize_graph(path)
            else:
                path = quantize_convolutions(path, [{"image": image} for image in images[name]])
        graphs[name] = path
    weights_source: Any = next(iter(networks.values())).weights_source
    source = weights_source.record(options.rgb_backbone)
    opened = {name: open_graph(path) for name, path in graphs.items()}
    return BranchPart(FeatureLevelExtractor(opened), graphs, source, {})


def export_levels(network: nn.Module, file: Path, *, image_size: int) -> Path:
    """The float32 graph image (1, 3, R, R) -> level_1, level_2, level_3, written to the file and
    checked against torch."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, image_size, image_size, generator=generator)
    return export_graph(network, {"image": image}, file, output_name=OUTPUT_NAMES)
