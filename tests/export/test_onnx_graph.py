"""Exported graphs: equal to torch, static, clean, quiet, whole or not there."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting needs the fit extra")
onnx = pytest.importorskip("onnx", reason="exporting needs the fit extra")
ort = pytest.importorskip("onnxruntime")

from mmad_fast.backbones import build_point_backbone  # noqa: E402
from mmad_fast.backbones.dino import VisionTransformer  # noqa: E402
from mmad_fast.backbones.table import RgbSpec  # noqa: E402
from mmad_fast.backbones.transformer import Attention  # noqa: E402
from mmad_fast.errors import InvalidInputError, MmadFastError  # noqa: E402
from mmad_fast.export.onnx_graph import OPSET, export_graph  # noqa: E402


def run_graph(path, **inputs):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


def point_inputs(seed, num_groups=70, num_neighbors=8):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randn(1, num_groups, num_neighbors, 3, generator=generator) * 0.004
    centers = torch.randn(1, num_groups, 3, generator=generator) * 0.05
    return {"groups": groups, "centers": centers}


def small_vit(layer_scale=True):
    torch.manual_seed(0)
    spec = RgbSpec("small", 4, 64, 4, 2, 16, 4, layer_scale)
    network = VisionTransformer(spec, num_layers=2, image_size=16).eval()
    torch.nn.init.normal_(network.pos_embed, std=0.1)
    return network


@pytest.fixture(scope="module")
def vit_graph(tmp_path_factory):
    network = small_vit()
    path = tmp_path_factory.mktemp("vit") / "rgb.onnx"
    export_graph(network, {"image": torch.randn(1, 3, 16, 16)}, path, output_name="tokens")
    return network, path


@pytest.fixture(scope="module", params=["cloud", "calibrated", "checkpoint"])
def point_graph(request, tmp_path_factory):
    network = build_point_backbone(layers=(0, 1), weights="random", batch_norm=request.param)
    if request.param == "calibrated":
        network.calibrate([point_inputs(5)["groups"]])
    path = tmp_path_factory.mktemp(request.param) / "points.onnx"
    export_graph(network, point_inputs(0), path, output_name="features")
    return network, path


def test_vit_graph_equals_torch_on_other_data(vit_graph):
    network, path = vit_graph
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = network(image).numpy()
    np.testing.assert_allclose(run_graph(path, image=image), expected, rtol=0, atol=1e-4)


def test_point_graph_equals_torch_on_other_data(point_graph):
    network, path = point_graph
    inputs = point_inputs(7)
    # A cloud of another scale: its statistics must be computed in the graph, not traced.
    inputs["groups"] *= 3
    with torch.inference_mode():
        expected = network(**inputs).numpy()
    np.testing.assert_allclose(run_graph(path, **inputs), expected, rtol=0, atol=1e-4)


def test_graph_is_static_and_tells_its_shapes(point_graph):
    graph = onnx.load_model(point_graph[1]).graph
    shapes = {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output)
    }
    inputs = {"groups": (1, 70, 8, 3), "centers": (1, 70, 3)}
    assert shapes == {**inputs, "features": (1, 70, 768)}


def test_graph_is_clean(vit_graph, point_graph):
    for _, path in (vit_graph, point_graph):
        model = onnx.load_model(path)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        used = {name for node in model.graph.node for name in node.input}
        assert {entry.name for entry in model.graph.initializer} <= used
        ops = {node.op_type for node in model.graph.node}
        assert not ops & {"Dropout", "BatchNormalization", "If", "Loop", "Shape", "Resize"}
        assert not any(entry.external_data for entry in model.graph.initializer)
        assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_gelu_is_one_node_for_onnx_runtime(vit_graph, tmp_path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(vit_graph[1]), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load_model(tmp_path / "optimised.onnx").graph.node]
    assert ops.count("Gelu") == 2  # one per block
    assert "Erf" not in ops


def test_attention_is_made_of_two_heads_at_a_time(tmp_path):
    torch.manual_seed(0)
    module = Attention(15, 3, qkv_bias=True).eval()
    path = export_graph(module, {"x": torch.randn(1, 7, 15)}, tmp_path / "x.onnx", output_name="y")
    model = onnx.shape_inference.infer_shapes(onnx.load_model(path))
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    weights = [shapes[node.output[0]] for node in model.graph.node if node.op_type == "Softmax"]
    assert weights == [[1, 2, 7, 7], [1, 1, 7, 7]]


def test_another_attention_is_refused(tmp_path):
    class Causal(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    with pytest.raises(torch.onnx.OnnxExporterError, match="attention with a mask, dropout"):
        export_graph(Causal(), {"x": torch.ones(1, 2, 3, 4)}, tmp_path / "x.onnx", output_name="y")


def test_another_gelu_is_refused(tmp_path):
    module = torch.nn.GELU(approximate="tanh")
    words = "GELU approximated by 'tanh' cannot be exported"  # quoted in the exporter's own error
    with pytest.raises(torch.onnx.OnnxExporterError, match=words):
        export_graph(module, {"x": torch.ones(1, 3)}, tmp_path / "x.onnx", output_name="y")


def test_graph_tells_nothing_of_the_machine(vit_graph):
    _, path = vit_graph
    content = path.read_bytes()
    assert b".py" not in content
    assert str(path.parents[1]).encode() not in content


def test_frozen_statistics_leave_no_trace_in_the_graph(tmp_path):
    """Frozen norms are folded: no square root is left but in the layer norms (one node each)."""
    network = build_point_backbone(layers=(0,), weights="random", batch_norm="checkpoint")
    path = export_graph(network, point_inputs(0, 20), tmp_path / "p.onnx", output_name="f")
    ops = [node.op_type for node in onnx.load_model(path).graph.node]
    assert not {"Sqrt", "Reciprocal", "ReduceMean"} & set(ops)


def test_export_is_quiet(tmp_path):
    path = str(tmp_path / "x.onnx")
    code = (
        "import torch; from mmad_fast.export.onnx_graph import export_graph; "
        "module, example = torch.nn.Linear(3, 2), {'x': torch.ones(1, 3)}; "
        f"export_graph(module, example, {path!r}, output_name='y')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.stderr == ""
    assert (tmp_path / "x.onnx").is_file()


class Noisy(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Unstable(torch.nn.Module):
    """Gives something else at every call, by a counter and not by chance."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


def test_random_module_is_refused(tmp_path):
    with pytest.raises(
        InvalidInputError, match=r"contains Random.* draws random .*drop_path='off'"
    ):
        export_graph(Noisy(), {"x": torch.ones(1, 3)}, tmp_path / "x.onnx", output_name="y")
    assert not list(tmp_path.iterdir())


def test_graph_that_differs_from_torch_is_not_written(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"before")
    with pytest.raises(MmadFastError, match=r"differs by .* nothing was written"):
        export_graph(Unstable(), {"x": torch.ones(1, 3)}, tmp_path / "x.onnx", output_name="y")
    assert (tmp_path / "x.onnx").read_bytes() == b"before"
    assert [item.name for item in tmp_path.iterdir()] == ["x.onnx"]


def test_a_full_disk_is_an_error_that_names_the_graph(tmp_path, monkeypatch):
    def fail(model, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx, "save_model", fail)
    with pytest.raises(MmadFastError, match=r"rgb.onnx: .*\(No space left.*set TMPDIR"):
        export_graph(torch.nn.ReLU(), {"x": torch.zeros(2)}, tmp_path / "rgb.onnx", output_name="y")
    assert not list(tmp_path.iterdir())


def test_wrong_types_are_refused(tmp_path):
    module = torch.nn.Linear(3, 2)
    with pytest.raises(InvalidInputError, match=r"input 'x' has dtype torch\.float64; float32"):
        export_graph(module, {"x": torch.ones(1, 3).double()}, tmp_path / "x", output_name="y")
    with pytest.raises(
        InvalidInputError, match="the module returns 2 tensors, and the names of 1 are"
    ):
        export_graph(
            torch.nn.MultiheadAttention(4, 1),
            {"q": torch.ones(2, 4), "k": torch.ones(2, 4), "v": torch.ones(2, 4)},
            tmp_path / "x",
            output_name="y",
        )
