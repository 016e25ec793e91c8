"""The cost of a graph against counts by hand and torch's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mmad_fast.export.attention import fuse_attention, merge_heads  # noqa: E402
from mmad_fast.export.batch import Batch, set_batch  # noqa: E402
from mmad_fast.export.graph_cost import graph_cost  # noqa: E402
from mmad_fast.export.precision import to_precision  # noqa: E402


def vit_multiply_adds(tokens: int, channels: int, blocks: int, patch: int) -> int:
    """Of a vision transformer: qkv 3, projection 1, MLP 8; two products of attention."""
    per_block = 12 * tokens * channels**2 + 2 * tokens**2 * channels
    return (tokens - 1) * 3 * patch**2 * channels + blocks * per_block


@pytest.mark.parametrize(("backbone", "channels"), [("dino", 48), ("dinov2", 64)])
def test_multiply_adds_of_a_vision_transformer(
    small_graphs: dict[str, Path], backbone: str, channels: int
) -> None:
    expected = vit_multiply_adds(65, channels, 2, 8)
    for form in (None, fuse_attention, merge_heads):
        model = onnx.load(small_graphs[backbone])
        if form is not None:
            form(model)
        cost = graph_cost(model)
        assert (cost.multiply_adds, cost.convolution_multiply_adds) == (expected, 0)


def test_a_cut_backbone_is_smaller_by_its_blocks(small_graphs: dict[str, Path]) -> None:
    paths = small_graphs["dino"], small_graphs["dino-1"]
    whole, cut = (graph_cost(onnx.load(path)) for path in paths)
    tokens, channels = 65, 48
    per_block = 12 * tokens * channels**2 + 2 * tokens**2 * channels
    assert whole.multiply_adds - cut.multiply_adds == per_block
    parameters = 12 * channels**2 + 13 * channels  # four matrices; their biases; two norms
    assert whole.parameters - cut.parameters == parameters
    assert paths[0].stat().st_size - paths[1].stat().st_size > 4 * parameters


@pytest.mark.parametrize("batch", [Batch(3, 3, 3), Batch(1, 2, 4)], ids=["static", "open"])
def test_the_cost_is_that_of_one_input(small_graphs: dict[str, Path], batch: Batch) -> None:
    model = onnx.load(small_graphs["dino"])
    set_batch(model, batch)
    fuse_attention(model)
    assert graph_cost(model).multiply_adds == vit_multiply_adds(65, 48, 2, 8)


def test_multiply_adds_are_half_of_torchs_flops(small_graphs: dict[str, Path]) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from mmad_fast.backbones import build_point_backbone
    from mmad_fast.backbones.point_mae import PointTransformer

    network = PointTransformer(build_point_backbone(layers=(0, 1), weights="random")).eval()
    counter = FlopCounterMode(display=False)
    # Torch counts no attention kernel of the CPU; as products it counts them.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        network(torch.zeros(1, 20, 384), torch.zeros(1, 20, 3))
    cost = graph_cost(onnx.load(small_graphs["points"]))
    assert 2 * cost.multiply_adds == counter.get_total_flops()
    embedder = sum(parameter.numel() for parameter in network.network.encoder.parameters())
    assert cost.parameters == sum(p.numel() for p in network.parameters()) - embedder


def test_the_precision_changes_no_cost(small_graphs: dict[str, Path]) -> None:
    model = onnx.load(small_graphs["dinov2"])
    merge_heads(model)
    full = graph_cost(model)
    to_precision(model, "fp16")
    half = graph_cost(model)
    assert half.parameters == full.parameters
    assert half.multiply_adds == full.multiply_adds


def test_scales_of_quantised_weights_are_no_parameters() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 5, 4)) for name in "xy"]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["weight"], axis=1),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(np.ones((4, 4), np.int8), "w"),
        numpy_helper.from_array(np.ones(4, np.float32), "scale"),
        numpy_helper.from_array(np.zeros(4, np.int8), "zero"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    cost = graph_cost(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert (cost.multiply_adds, cost.parameters) == (5 * 4 * 4, 16)
