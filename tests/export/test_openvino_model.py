"""OpenVINO's files of a graph: what they answer, their size, and when nothing is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from engines.product_graph import WEIGHT, inputs, save_product
from onnx import TensorProto, helper, numpy_helper

from mmad_fast.engines import engine_refusal, open_graph
from mmad_fast.errors import ArtifactError, InvalidInputError, MmadFastError
from mmad_fast.export.openvino_model import save_openvino_model

reason = engine_refusal("openvino")
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture
def model(tmp_path: Path) -> onnx.ModelProto:
    return onnx.load(save_product(tmp_path / "product.onnx"))


def quantized_product() -> onnx.ModelProto:
    """y (5, 33) = x (5, 48) @ WEIGHT, both factors int8 with QuantizeLinear, weights by column."""
    scales = (np.abs(WEIGHT).max(0) / 127).astype(np.float32)
    constants = {
        "x_scale": np.float32(4 / 127),
        "zero": np.int8(0),
        "weight": np.round(WEIGHT / scales).astype(np.int8),
        "scales": scales,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_int8"]),
        helper.make_node("DequantizeLinear", ["x_int8", "x_scale", "zero"], ["x_rounded"]),
        helper.make_node("DequantizeLinear", ["weight", "scales"], ["w_rounded"], axis=1),
        helper.make_node("MatMul", ["x_rounded", "w_rounded"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (5, 48)), ("y", (5, 33)))
    )
    initializers = [numpy_helper.from_array(np.array(a), name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, "product", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_float32_answers_as_the_graph(model: onnx.ModelProto, tmp_path: Path) -> None:
    xml, weights = save_openvino_model(model, tmp_path / "new" / "rgb.xml", precision="fp32")
    assert (xml, weights) == (tmp_path / "new" / "rgb.xml", tmp_path / "new" / "rgb.bin")
    assert {path.name for path in xml.parent.iterdir()} == {"rgb.xml", "rgb.bin"}
    own = open_graph(tmp_path / "product.onnx", engine="openvino")
    graph = open_graph(xml, engine="openvino")
    assert (graph.input_shapes, graph.output_shapes) == (own.input_shapes, own.output_shapes)
    answer, expected = graph.run({"x": inputs(1)}), own.run({"x": inputs(1)})
    for name, array in expected.items():
        np.testing.assert_array_equal(answer[name], array)


def test_float16_halves_the_weights_alone(model: onnx.ModelProto, tmp_path: Path) -> None:
    full = save_openvino_model(model, tmp_path / "full.xml", precision="fp32")[1].stat().st_size
    xml, weights = save_openvino_model(model, tmp_path / "half.xml", precision="fp16")
    assert weights.stat().st_size <= 0.51 * full
    graph = open_graph(xml, engine="openvino")
    rounded = WEIGHT.astype(np.float16).astype(np.float64)
    expected = inputs(1).astype(np.float64) @ rounded + 1
    np.testing.assert_allclose(graph.run({"x": inputs(1)})["y"], expected, rtol=0, atol=1e-5)


def test_int8_is_in_the_graphs_nodes(tmp_path: Path) -> None:
    xml, weights = save_openvino_model(quantized_product(), tmp_path / "a.xml", precision="int8")
    assert weights.stat().st_size < 1.3 * WEIGHT.size
    answer = open_graph(xml, engine="openvino").run({"x": inputs(1)})["y"]
    scales = np.abs(WEIGHT).max(0) / 127
    x = np.clip(np.round(inputs(1) / np.float32(4 / 127)), -128, 127) * 4 / 127
    expected = x @ (np.round(WEIGHT / scales) * scales)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-3)
    assert np.abs(answer - inputs(1) @ WEIGHT).max() > 1e-2  # so it is rounded


def test_a_free_batch_is_run_as_one(tmp_path: Path) -> None:
    model = onnx.load(save_product(tmp_path / "product.onnx", rows="batch"))
    xml, _ = save_openvino_model(model, tmp_path / "rgb.xml", precision="fp32")
    graph = open_graph(xml, engine="openvino")
    assert graph.input_shapes == {"x": (1, 48)}
    expected = inputs(1)[:1].astype(np.float64) @ WEIGHT + 1
    np.testing.assert_allclose(graph.run({"x": inputs(1)[:1]})["y"], expected, rtol=0, atol=1e-5)


def test_nothing_tells_of_the_machine(model: onnx.ModelProto, tmp_path: Path) -> None:
    xml, _ = save_openvino_model(model, tmp_path / "rgb.xml", precision="fp16")
    assert str(tmp_path) not in xml.read_text()


def test_old_files_stay_where_writing_fails(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = save_openvino_model(model, tmp_path / "rgb.xml", precision="fp32")
    before = [file.read_bytes() for file in files]

    def full(converted: object, path: str, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("no space left")

    from mmad_fast.engines.openvino import openvino as package

    monkeypatch.setattr(package, "save_model", full)
    with pytest.raises(
        ArtifactError, match=r"cannot be written \(no space left\); choose a folder"
    ):
        save_openvino_model(model, tmp_path / "rgb.xml", precision="fp16")
    assert [file.read_bytes() for file in files] == before
    assert {path.name for path in tmp_path.iterdir()} == {"product.onnx", "rgb.xml", "rgb.bin"}


def test_a_folder_that_is_a_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot be written"):
        save_openvino_model(model, tmp_path / "file" / "rgb.xml", precision="fp32")


def test_another_ending_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"must end in \.xml"):
        save_openvino_model(model, tmp_path / "rgb.onnx", precision="fp32")


def test_a_graph_that_openvino_cannot_read(model: onnx.ModelProto, tmp_path: Path) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(
        MmadFastError,
        match=r"(?s)2\d+\.\d+\.\d+ cannot read the graph: .*NoSuchOperator.*upgrade it",
    ):
        save_openvino_model(model, tmp_path / "rgb.xml", precision="fp32")
    assert not (tmp_path / "rgb.xml").exists()


def test_weights_that_are_missing_are_an_artifact_error(
    model: onnx.ModelProto, tmp_path: Path
) -> None:
    xml, weights = save_openvino_model(model, tmp_path / "rgb.xml", precision="fp32")
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"rgb\.xml: OpenVINO .* cannot load the graph"):
        open_graph(xml, engine="openvino")


def test_importing_it_imports_neither_openvino_nor_torch() -> None:
    code = (
        "import sys, mmad_fast.export.openvino_model; "
        "print(sorted({'openvino', 'torch', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
