"""Graphs of convolutional networks: what is in them, what they cost, and what becomes of them on
the way to each engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from official_cnns import known_weights

from mmad_fast.engines import engine_refusal, open_graph
from mmad_fast.engines.graph_check import check_onnx_graph
from mmad_fast.engines.tensorrt_library import library_refusal
from mmad_fast.errors import InvalidInputError
from mmad_fast.export.batch import Batch
from mmad_fast.export.convolution_quantization import quantize_convolutions
from mmad_fast.export.deployment_graph import deployment_graph
from mmad_fast.export.graph_cost import graph_cost
from mmad_fast.export.openvino_model import save_openvino_model

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch", reason="exporting needs the fit extra")

SIZE = 64
OUTPUTS = {"wide-resnet50-2-timm": (1, 2), "efficientnet-b5": (8, 13)}
"""Deep enough for every kind of block and padding."""

OPERATORS = {
    "wide-resnet50-2-timm": {"Conv": 1 + 3 * 3 + 4 * 3 + 2, "Relu": 22, "Add": 7, "MaxPool": 1},
    "efficientnet-b5": {"Conv": 1 + 3 * 4 + 11 * 5, "Sigmoid": 54, "Mul": 54, "ReduceMean": 14,
                        "Add": 10},
}  # fmt: skip
"""Counted by hand: no BatchNormalization, no Pad. A swish is a Sigmoid and a Mul."""


@pytest.fixture(scope="module", params=OUTPUTS)
def exported(request, tmp_path_factory):
    """(backbone, its network with weights that all matter, its graph)."""
    from mmad_fast.backbones import build_cnn_backbone
    from mmad_fast.methods.branches.cnn_pyramid.graph import export_maps

    name, outputs = request.param, OUTPUTS[request.param]
    network = build_cnn_backbone(name, outputs=outputs, weights="random", image_size=SIZE)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(known_weights(name, shapes))
    path = tmp_path_factory.mktemp(name) / "rgb.onnx"
    return name, network, export_maps(network, path, output_names=("first", "second"))


def image(seed: int = 1, batch: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 3, SIZE, SIZE)).astype(np.float32)


def assert_answers_as(network, graph: Path, tolerance: float, *, engine: str = "onnxruntime"):
    found = open_graph(graph, engine=engine).run({"image": image()})
    with torch.inference_mode():
        expected = network(torch.from_numpy(image()))
    assert list(found) == ["first", "second"]
    for one, wanted in zip(found.values(), expected, strict=True):
        scale = float(wanted.abs().max())
        np.testing.assert_allclose(one, wanted.numpy(), rtol=0, atol=tolerance * scale)


def test_norms_and_padding_are_folded_into_the_convolutions(exported):
    name, network, path = exported
    assert Counter(node.op_type for node in onnx.load(path).graph.node) == OPERATORS[name]
    assert_answers_as(network, path, 5e-6)


def test_only_what_is_used_is_exported(exported):
    _, network, path = exported
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    kept = sum(p.numel() for p in network.parameters()) - sum(n.num_features for n in norms)
    assert graph_cost(onnx.load(path)).parameters == kept


def test_multiply_adds_are_half_of_torchs_flops(exported):
    from torch.utils.flop_counter import FlopCounterMode

    _, network, path = exported
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network(torch.from_numpy(image()))
    cost = graph_cost(onnx.load(path))
    assert 2 * cost.multiply_adds == counter.get_total_flops()
    assert cost.convolution_multiply_adds == cost.multiply_adds
    checked = check_onnx_graph(path).multiply_adds  # those of activations and sums, too
    assert cost.multiply_adds <= checked <= 1.2 * cost.multiply_adds


def test_half_precision(exported, tmp_path: Path):
    _, network, path = exported
    model = deployment_graph(path, target="onnx", precision="fp16")
    onnx.save(model, tmp_path / "half.onnx")
    assert_answers_as(network, tmp_path / "half.onnx", 2e-3)


def test_a_batch(exported, tmp_path: Path):
    _, _, path = exported
    onnx.save(deployment_graph(path, target="onnx", batch=Batch(2, 2, 2)), tmp_path / "two.onnx")
    both = open_graph(tmp_path / "two.onnx").run({"image": image(batch=2)})
    second = open_graph(path).run({"image": image(batch=2)[1:]})
    for name, array in second.items():
        np.testing.assert_allclose(both[name][1:], array, rtol=0, atol=1e-5 * np.abs(array).max())


def test_openvino(exported, tmp_path: Path):
    if (reason := engine_refusal("openvino")) is not None:
        pytest.skip(reason)
    _, network, path = exported
    model = deployment_graph(path, target="openvino")
    xml, _ = save_openvino_model(model, tmp_path / "rgb.xml", precision="fp32")
    assert_answers_as(network, xml, 1e-5, engine="openvino")


def test_a_tensorrt_engine(exported, tmp_path: Path):
    if (reason := library_refusal("tensorrt-rtx")) is not None:
        pytest.skip(reason)
    from mmad_fast.export.tensorrt_engine import build_engine

    _, _, path = exported
    model = deployment_graph(path, target="tensorrt-rtx", precision="fp16")
    built = build_engine(
        model, tmp_path / "engine", target="tensorrt-rtx", precision="fp16", sms=(89,)
    )
    assert built.path.stat().st_size > 100_000
    assert built.layers[0].inputs[0].name == "image"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_8_bits_would_change_nothing_and_are_refused(exported, precision: str):
    _, _, path = exported
    words = rf"rgb\.onnx is a network of convolutions \(100% .* {precision} leaves .*'fp16'"
    with pytest.raises(InvalidInputError, match=words):
        deployment_graph(path, target="onnx", precision=precision, calibration=[{"image": image()}])


def test_every_convolution_of_onnx_runtime_is_8_bit(exported, tmp_path: Path):
    """A convolution whose output is not 8-bit would be one of float32."""
    ort = pytest.importorskip("onnxruntime")
    name, _, path = exported
    if name == "efficientnet-b5":
        pytest.skip("its swishes stay float32, and it is not offered in int8")
    graph = tmp_path / "rgb.onnx"
    graph.write_bytes(path.read_bytes())
    assert quantize_convolutions(graph, [{"image": image(seed)} for seed in range(3)]) == graph
    check_onnx_graph(graph)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == OPERATORS[name]["Conv"]
    found = open_graph(graph).run({"image": image(9)})
    expected = open_graph(path).run({"image": image(9)})
    for key, wanted in expected.items():
        assert 0 < np.sqrt(np.mean((found[key] - wanted) ** 2)) < 0.05 * wanted.std()
    with pytest.raises(InvalidInputError, match="rgb.onnx is quantised already"):
        deployment_graph(graph, target="onnx")


def test_8_bit_convolutions_need_scans(exported):
    with pytest.raises(InvalidInputError, match="and there are none; give training scans"):
        quantize_convolutions(exported[2], [])
