"""8-bit graphs: smaller, close to the float32 graph, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="exporting needs the export extra")

from export.conftest import run_graph  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mmad_fast.engines import open_graph  # noqa: E402
from mmad_fast.errors import InvalidInputError  # noqa: E402
from mmad_fast.export import quantization  # noqa: E402
from mmad_fast.export.batch import Batch  # noqa: E402
from mmad_fast.export.deployment_graph import deployment_graph  # noqa: E402
from mmad_fast.export.quantization import (  # noqa: E402
    quantize_graph,
    quantize_with_calibration,
)

NUM_PRODUCTS = 8
"""Of the small DINOv2: qkv, projection and two layers of the perceptron in each of two blocks."""
TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}

Feed = dict[str, NDArray]


@pytest.fixture
def perceptron(tmp_path: Path) -> Path:
    """Two Linear layers on tokens, as a transformer block has them."""
    torch = pytest.importorskip("torch", reason="fitting needs the fit extra")
    from mmad_fast.export.onnx_graph import export_graph

    torch.manual_seed(0)
    layers = (torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
    return export_graph(
        torch.nn.Sequential(*layers).eval(),
        {"tokens": torch.zeros(1, 50, 64)},
        tmp_path / "graph.onnx",
        output_name="tokens_",
    )


def test_products_are_int8_and_close(perceptron: Path) -> None:
    tokens = np.random.default_rng(0).standard_normal((1, 50, 64)).astype(np.float32)
    size = perceptron.stat().st_size
    expected = open_graph(perceptron).run({"tokens": tokens})["tokens_"]
    assert quantize_graph(perceptron) == perceptron
    assert perceptron.stat().st_size < 0.4 * size
    result = open_graph(perceptron).run({"tokens": tokens})["tokens_"]
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.03  # an int8 product is neither exact nor far off
    assert [file.name for file in perceptron.parent.iterdir()] == ["graph.onnx"]


def test_the_graph_says_nothing_of_the_machine(perceptron: Path) -> None:
    quantize_graph(perceptron)
    assert str(perceptron.parent).encode() not in perceptron.read_bytes()


@pytest.fixture(scope="module")
def source(small_graphs: dict[str, Path]) -> Path:
    return small_graphs["dinov2"]


@pytest.fixture(scope="module")
def model(source: Path) -> onnx.ModelProto:
    return deployment_graph(source, target="onnx")


@pytest.fixture(scope="module")
def images() -> list[Feed]:
    rng = np.random.default_rng(0)
    return [{"image": rng.normal(size=(1, 3, 64, 64)).astype(np.float32)} for _ in range(3)]


def nodes_of(model: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op_type]


def constants_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def relative_error(model: onnx.ModelProto, reference: onnx.ModelProto, feed: Feed) -> float:
    """Of the output, root of the mean square."""
    expected, result = run_graph(reference, feed), run_graph(model, feed)
    assert result.dtype == np.float32
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
@pytest.mark.parametrize(("precision", "bound"), [("int8", 0.03), ("fp8", 0.06)])
def test_calibrated_products_are_8_bit_and_close(
    model: onnx.ModelProto, images: list[Feed], precision: str, bound: float, rest: str
) -> None:
    before = model.SerializeToString()
    result = quantize_with_calibration(model, images, precision=precision, rest=rest)
    onnx.checker.check_model(result, full_check=True)
    assert model.SerializeToString() == before
    assert str(result.graph.input) == str(model.graph.input)
    assert str(result.graph.output) == str(model.graph.output)
    constants = constants_of(result)
    numbers = [
        constants[node.input[0]].data_type
        for node in nodes_of(result, "DequantizeLinear")
        if node.input[0] in constants
    ]
    assert numbers == [TYPES[precision]] * NUM_PRODUCTS
    assert len(nodes_of(result, "QuantizeLinear")) == NUM_PRODUCTS
    assert len(nodes_of(result, "Attention")) == len(nodes_of(model, "Attention")) == 2
    assert result.ByteSize() < 0.5 * model.ByteSize()
    assert 1e-3 < relative_error(result, model, images[0]) < bound


def test_zero_points_are_zero(model: onnx.ModelProto, images: list[Feed]) -> None:
    for precision in TYPES:
        result = quantize_with_calibration(model, images, precision=precision, rest="fp16")
        constants = constants_of(result)
        for op_type in ("QuantizeLinear", "DequantizeLinear"):
            for node in nodes_of(result, op_type):
                zero = numpy_helper.to_array(constants[node.input[2]])
                assert not zero.astype(np.float32).any()


def test_balanced_channels_round_less(
    model: onnx.ModelProto, images: list[Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some channels of the real DINOv2 are far wider than the others."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    constants = constants_of(wide)
    for norm in nodes_of(wide, "LayerNormalization")[:4]:
        scale = numpy_helper.to_array(constants[norm.input[1]]).copy()
        scale[[5, 40]] *= 10
        constants[norm.input[1]].CopyFrom(numpy_helper.from_array(scale, norm.input[1]))

    def error() -> float:
        result = quantize_with_calibration(wide, images, precision="int8", rest="fp32")
        return relative_error(result, wide, images[0])

    balanced = error()
    monkeypatch.setattr(quantization, "_balance", lambda model, products: None)
    assert balanced < 0.5 * error()


def test_a_norm_takes_the_factors_of_its_product(
    model: onnx.ModelProto, images: list[Feed]
) -> None:
    """Behind a LayerNormalization nothing is added; attention and GELU get a Mul."""
    result = quantize_with_calibration(model, images, precision="int8", rest="fp32")
    makers = {name: node.op_type for node in result.graph.node for name in node.output}
    sources = [makers[node.input[0]] for node in nodes_of(result, "QuantizeLinear")]
    assert sources == ["LayerNormalization", "Mul", "LayerNormalization", "Mul"] * 2


def test_fp16_sums_are_scaled_inside_the_product(
    model: onnx.ModelProto, images: list[Feed]
) -> None:
    """Scales per column would leave unscaled sums of int8 products, up to millions, in fp16."""
    for precision in TYPES:
        result = quantize_with_calibration(model, images, precision=precision, rest="fp16")
        constants = constants_of(result)
        scales = [constants[node.input[1]] for node in nodes_of(result, "DequantizeLinear")]
        assert {scale.data_type for scale in scales} == {TensorProto.FLOAT16}
        assert all(not scale.dims for scale in scales)
        assert min(float(numpy_helper.to_array(scale)) for scale in scales) >= 2.0**-14


def test_int8_weights_have_a_scale_per_column_in_fp32(
    model: onnx.ModelProto, images: list[Feed]
) -> None:
    result = quantize_with_calibration(model, images, precision="int8", rest="fp32")
    constants = constants_of(result)
    for node in nodes_of(result, "DequantizeLinear"):
        if node.input[0] in constants:
            weight = numpy_helper.to_array(constants[node.input[0]])
            assert constants[node.input[1]].dims == [weight.shape[1]]
            assert (np.abs(weight.astype(int)).max(axis=0) == 127).all()
            assert helper.get_node_attr_value(node, "axis") == 1


def test_the_ranges_are_the_widest_of_all_scans(model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(1)
    small, large = (
        {"image": scale * rng.normal(size=(1, 3, 64, 64)).astype(np.float32)} for scale in (1, 3)
    )

    def scales(inputs: list[Feed]) -> NDArray:
        result = quantize_with_calibration(model, inputs, precision="fp8", rest="fp32")
        constants = constants_of(result)
        return np.array(
            [
                float(numpy_helper.to_array(constants[node.input[1]]))
                for node in nodes_of(result, "QuantizeLinear")
            ]
        )

    both = scales([small, large])
    np.testing.assert_array_equal(both, np.maximum(scales([small]), scales([large])))
    np.testing.assert_array_equal(both, scales([large, small]))
    assert (both > scales([small])).any()


@pytest.mark.parametrize("batch", [Batch(2, 2, 2), Batch(1, 2, 4)])
def test_a_graph_of_another_batch_is_calibrated_with_single_scans(
    source: Path, images: list[Feed], batch: Batch
) -> None:
    feed = {"image": np.concatenate([images[0]["image"], images[1]["image"]])}
    single = deployment_graph(source, target="onnx", precision="int8", calibration=images)
    result = deployment_graph(
        source, target="onnx", precision="int8", calibration=images, batch=batch
    )
    expected = np.concatenate([run_graph(single, image) for image in images[:2]])
    np.testing.assert_allclose(run_graph(result, feed), expected, atol=1e-4)


def test_products_over_few_channels_stay(small_graphs: dict[str, Path]) -> None:
    """The coordinates of the point centres keep the sensor's precision."""
    reference = deployment_graph(small_graphs["points"], target="onnx")
    rng = np.random.default_rng(0)
    feed = {
        "tokens": rng.normal(size=(1, 20, 384)).astype(np.float32),
        "centers": (0.1 * rng.normal(size=(1, 20, 3))).astype(np.float32),
    }
    result = quantize_with_calibration(reference, [feed], precision="int8", rest="fp32")
    first = next(node for node in result.graph.node if "centers" in node.input)
    assert first.op_type == "MatMul"
    assert constants_of(result)[first.input[1]].data_type == TensorProto.FLOAT
    assert len(nodes_of(result, "QuantizeLinear")) == 9  # two blocks, the second Linear of centers
    assert relative_error(result, reference, feed) < 0.05


@pytest.fixture
def product() -> onnx.ModelProto:
    """y = |x| @ weight, (1, 5, 64) -> (1, 5, 32)."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 5, size))
        for name, size in (("x", 64), ("y", 32))
    )
    nodes = [
        helper.make_node("Abs", ["x"], ["z"]),
        helper.make_node("MatMul", ["z", "weight"], ["y"]),
    ]
    weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    weight[3] = weight[:, 7] = 0
    tensors = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "product", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("rest", ["fp32", "fp16"])
@pytest.mark.parametrize("calibrated_on", ["zeros", "ones", "some zeros", "small numbers"])
def test_degenerate_calibration_gives_finite_scales_and_numbers(
    product: onnx.ModelProto, precision: str, rest: str, calibrated_on: str
) -> None:
    x = np.random.default_rng(1).normal(size=(1, 5, 64)).astype(np.float32)
    some_zeros = x.copy()
    some_zeros[..., :8] = 0
    given = {
        "zeros": np.zeros_like(x),
        "ones": np.ones_like(x),
        "some zeros": some_zeros,
        "small numbers": 1e-6 * x,
    }[calibrated_on]
    result = quantize_with_calibration(product, [{"x": given}], precision=precision, rest=rest)
    constants = constants_of(result)
    for node in nodes_of(result, "QuantizeLinear") + nodes_of(result, "DequantizeLinear"):
        scale = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
        assert np.isfinite(scale).all()
        assert (scale > 0).all()
    error = np.abs(run_graph(result, {"x": given}) - run_graph(product, {"x": given}))
    magnitudes = np.abs(given) @ np.abs(numpy_helper.to_array(product.graph.initializer[0]))
    assert (error <= (2 * 2**-4 + 2**-8) * magnitudes + 1e-4).all()  # fp8 rounds by 2^-4 at most
    assert np.isfinite(run_graph(result, {"x": x})).all()


@pytest.mark.parametrize(("weight", "activation"), [(1e6, 1.0), (1.0, 1e6)])
def test_what_fp16_cannot_hold_is_refused(
    product: onnx.ModelProto, weight: float, activation: float
) -> None:
    tensor = product.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(weight * numpy_helper.to_array(tensor), "weight"))
    inputs = [{"x": np.full((1, 5, 64), activation, np.float32)}]
    quantize_with_calibration(product, inputs, precision="fp8", rest="fp32")
    with pytest.raises(InvalidInputError, match="'y' reaches .*e.06, .* fp16, which ends at 65504"):
        quantize_with_calibration(product, inputs, precision="fp8", rest="fp16")


def test_openvino_reads_them(model: onnx.ModelProto, images: list[Feed], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    result = quantize_with_calibration(model, images, precision="int8", rest="fp32")
    onnx.save(result, tmp_path / "rgb.onnx")
    tokens = open_graph(tmp_path / "rgb.onnx", engine="openvino").run(images[0])["tokens"]
    expected = run_graph(model, images[0])
    assert np.linalg.norm(tokens - expected) / np.linalg.norm(expected) < 0.03


@pytest.mark.parametrize(("precision", "sm"), [("int8", 75), ("int8", 120), ("fp8", 89)])
def test_tensorrt_multiplies_in_8_bit_and_fuses_attention(
    source: Path, images: list[Feed], tmp_path: Path, precision: str, sm: int
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    from mmad_fast.export.tensorrt_engine import build_engine

    target = "tensorrt-rtx"
    graph = deployment_graph(source, target=target, precision=precision, calibration=images)
    engine = build_engine(
        graph, tmp_path / "rgb.engine", target=target, precision=precision, sms=[sm]
    )
    products = [layer for layer in engine.layers if layer.kind == "gemm"]
    assert len(products) == NUM_PRODUCTS
    number = {"int8": "Int8", "fp8": "FP8"}[precision]
    assert {layer.inputs[0].dtype for layer in products} == {number}
    assert sum("_gemm_mha" in layer.name for layer in engine.layers) == 2


def without_inputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Feed]]:
    return model, []


def with_nan(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Feed]]:
    return model, [{"image": np.full((1, 3, 64, 64), np.nan, np.float32)}]


def with_another_name(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Feed]]:
    return model, [{"picture": np.zeros((1, 3, 64, 64), np.float32)}]


def with_another_shape(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Feed]]:
    return model, [{"image": np.zeros((1, 3, 32, 64), np.float32)}]


def with_several_scans(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Feed]]:
    return model, [{"image": np.zeros((3, 3, 64, 64), np.float32)}]


def of_an_older_opset(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Feed]]:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.opset_import[0].version = 18
    return other, [{"image": np.zeros((1, 3, 64, 64), np.float32)}]


def quantized_already(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Feed]]:
    feeds = [{"image": np.ones((1, 3, 64, 64), np.float32)}]
    return quantize_with_calibration(model, feeds, precision="int8", rest="fp32"), feeds


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (without_inputs, "needs the inputs of some scans .* there are none; give calibration"),
        (with_nan, "calibration input 0 makes activations that are not finite"),
        (with_another_name, r"calibration inputs are \['picture'\], the graph needs \['image'\]"),
        (with_another_shape, r"shape \(1, 3, 32, 64\), the graph needs \[1, 3, 64, 64\]"),
        (with_several_scans, r"shape \(3, 3, 64, 64\), the graph needs \[1, 3, 64, 64\]"),
        (of_an_older_opset, "of opset 18; calibration needs 19 or newer"),
        (quantized_already, "is quantised already; export a detector that was fitted with"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(model: onnx.ModelProto, case, message: str) -> None:
    given, inputs = case(model)
    with pytest.raises(InvalidInputError, match=message):
        quantize_with_calibration(given, inputs, precision="int8", rest="fp32")


def test_unknown_names_are_refused(model: onnx.ModelProto, images: list[Feed]) -> None:
    with pytest.raises(InvalidInputError, match="precision is 'int4'; it must be one of int8, fp8"):
        quantize_with_calibration(model, images, precision="int4", rest="fp32")
    with pytest.raises(InvalidInputError, match="rest is 'bf16'; it must be one of fp32, fp16"):
        quantize_with_calibration(model, images, precision="int8", rest="bf16")


@pytest.mark.own_process
def test_it_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; "
        "import mmad_fast.export.calibration, mmad_fast.export.quantization"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
