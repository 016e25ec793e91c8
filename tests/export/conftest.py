"""Small backbones of each kind, exported as fitting exports them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ort = pytest.importorskip("onnxruntime")


def run_graph(graph, feed: dict[str, NDArray]) -> NDArray:
    """The only output of a graph, a file or a model, by ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    content = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def feed_of(graph: Path, *, batch: int = 1, seed: int = 0) -> dict[str, NDArray]:
    """Random inputs for a graph of batch 1, `batch` of them."""
    import onnx

    rng = np.random.default_rng(seed)
    return {
        value.name: rng.normal(
            size=(batch, *(axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]))
        ).astype(np.float32)
        for value in onnx.load(graph).graph.input
    }


@pytest.fixture(scope="session")
def small_graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The path of a graph by backbone: "dino" (3 heads), "dinov2" (LayerScale), "points"; each of
    two blocks. "dino-1" is dino cut after one."""
    torch = pytest.importorskip("torch", reason="exporting needs the fit extra")
    from mmad_fast.backbones import build_point_backbone
    from mmad_fast.backbones.dino import VisionTransformer
    from mmad_fast.backbones.point_mae import PointTransformer
    from mmad_fast.backbones.table import RgbSpec
    from mmad_fast.export.onnx_graph import export_graph

    folder = tmp_path_factory.mktemp("graphs")
    point = build_point_backbone(layers=(0, 1), weights="random", batch_norm="cloud")
    dino = RgbSpec("dino", 8, 48, 3, 2, 64, 8, layer_scale=False)
    dinov2 = RgbSpec("dinov2", 8, 64, 4, 2, 64, 8, layer_scale=True)
    image = {"image": torch.zeros(1, 3, 64, 64)}
    groups = {"tokens": torch.zeros(1, 20, 384), "centers": torch.zeros(1, 20, 3)}
    networks = {
        "dino": (VisionTransformer(dino, num_layers=2, image_size=64), image, "tokens"),
        "dino-1": (VisionTransformer(dino, num_layers=1, image_size=64), image, "tokens"),
        "dinov2": (VisionTransformer(dinov2, num_layers=2, image_size=64), image, "tokens"),
        "points": (PointTransformer(point), groups, "features"),
    }
    generator = torch.Generator().manual_seed(0)
    paths = {}
    for name, (network, examples, output) in networks.items():
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        paths[name] = export_graph(
            network.eval(), examples, folder / f"{name}.onnx", output_name=output
        )
    return paths
