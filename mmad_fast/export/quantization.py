"""ONNX graph -> the same graph with 8-bit matrix products.

`quantize_graph` rounds activations with the range of each scan, for processors;
`quantize_with_calibration` with fixed ranges in explicit Q/DQ nodes, for engines that are built.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError, MissingDependencyError
from mmad_fast.export.quantized_product import (
    LARGEST,
    MIN_CHANNEL_RANGE,
    NewParts,
    Product,
    add_product,
)
from mmad_fast.threads import get_num_threads
from mmad_fast.whole_folder import whole_file

if TYPE_CHECKING:
    import onnx

OPSET = 19
"""Of the graphs that are calibrated, at least: the first that quantises fp16."""

RESTS = ("fp32", "fp16")

MIN_CHANNELS = 32
"""Products over fewer channels stay as they are: a tensor core takes 32 at a time, and the point
centres' coordinates (3) would lose the sensor's precision."""

BALANCE = 0.75
"""How much of an activation channel's range int8 moves into the weights; 1 makes all channels
equally wide. The best of 0.5 to 1 for DINOv2, see docs/decisions.md."""


def quantize_graph(path: str | Path) -> Path:
    """The path of the graph, whose products with constant matrices are int8 from now on.

    Weights are rounded to int8 once, with a scale per output channel; the other factor is rounded
    to uint8 at run time, with the range that it has in each scan, so no calibration scans are
    needed. Products of two activations, as in attention, stay in float32.

    An approximation: its price in accuracy is in docs/benchmarks/detectors.md. It is fast where the
    processor has 8-bit dot products (AVX-512 VNNI, AVX-VNNI, ARM dot product); x86 processors
    without them may also saturate, which `mmad-fast doctor ARTIFACT` shows.

    Args:
        path: An ONNX file; it is replaced, whole or not at all.

    Raises:
        MissingDependencyError: onnx is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise MissingDependencyError(
            f"int8 graphs need {error.name}, which is not installed; run "
            "pip install 'mmad-fast[fit]'"
        ) from error
    target = Path(path)
    previous = logging.root.manager.disable
    # It advises to preprocess the graph; the exporter has done that already.
    logging.disable(logging.WARNING)
    try:
        model = onnx.load_model(target)
        # The quantiser infers the inner shapes itself, and does not cope with given ones that its
        # inference cannot repeat.
        del model.graph.value_info[:]
        with whole_file(target) as partial:
            quantize_dynamic(
                model,
                partial,
                per_channel=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],
                extra_options={"MatMulConstBOnly": True},
            )
    finally:
        logging.disable(previous)
    return target


def quantize_with_calibration(
    model: onnx.ModelProto,
    inputs: Sequence[Mapping[str, NDArray]],
    *,
    precision: str,
    rest: str,
) -> onnx.ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear around its products with constant
    matrices.

    Zero points are 0. Activations have one scale each, from their largest magnitude in the
    calibration scans: clipping outliers costs more than their range. int8 first balances the
    channels, which changes nothing but rounding (SmoothQuant: factors in the LayerNormalization or
    a Mul before the product, their inverses in the weight), and rounds weights with a scale per
    output channel; fp8, whose rounding is relative, needs neither. Figures and reasons are in
    docs/decisions.md.

    Args:
        model: In fp32, folded, of opset 19 or newer (`deployment_graph`); it is not changed.
        inputs: Inputs by name of some scans, of batch 1 or the model's.
        precision: "int8" or "fp8" (E4M3).
        rest: Of everything else: "fp32", or "fp16" for the TensorRT targets.

    Returns:
        The graph, its inputs and outputs as before.

    Raises:
        InvalidInputError: no inputs, other inputs than the model's, inputs that make activations
            without finite values, or weights or activations that the rest's type cannot hold; a
            model of an older opset or that is quantised already; an unknown precision or rest.
    """
    _check_request(model, inputs, precision, rest)
    nodes = _product_nodes(model)
    ranges = _measure_ranges(model, nodes, inputs)
    products = _products(model, nodes, ranges)
    model = _without_weights(model, nodes)
    if precision == "int8":
        _balance(model, products)
    _insert_nodes(model, products, precision, rest)
    from mmad_fast.export.folding import remove_unused
    from mmad_fast.export.precision import to_precision

    remove_unused(model)
    if rest == "fp16":
        to_precision(model, "fp16")
    return model


def _check_request(
    model: onnx.ModelProto, inputs: Sequence[Mapping[str, NDArray]], precision: str, rest: str
) -> None:
    for what, given, known in (("precision", precision, (*LARGEST,)), ("rest", rest, RESTS)):
        if given not in known:
            raise InvalidInputError(f"{what} is {given!r}; it must be one of {', '.join(known)}")
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset is None or opset < OPSET:
        raise InvalidInputError(
            f"the graph is of opset {opset}; calibration needs {OPSET} or newer: make it with "
            "mmad_fast.export.deployment_graph"
        )
    if any("Quantize" in node.op_type or "Integer" in node.op_type for node in model.graph.node):
        raise InvalidInputError(
            "the graph is quantised already; export a detector that was fitted with "
            "precision='fp32'"
        )
    if not len(inputs):
        raise InvalidInputError(
            f"{precision} needs the inputs of some scans to find the ranges of activations, and "
            "there are none; give calibration scans"
        )


def _product_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The products that become 8-bit, in the graph's order."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        shape = shapes.get(node.input[1]) if node.op_type == "MatMul" else None
        if shape is not None and len(shape) == 2 and shape[0] >= MIN_CHANNELS:
            nodes.append(node)
    return nodes


def _products(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], ranges: Sequence[NDArray]
) -> list[Product]:
    """The same with their weights and the ranges of their activations."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        Product(
            node.output[0], node.input[0], numpy_helper.to_array(constants[node.input[1]]), widest
        )
        for node, widest in zip(nodes, ranges, strict=True)
    ]


def _without_weights(model: onnx.ModelProto, products: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """A copy of the model that lacks the matrices of the products, which are most of its size."""
    import onnx

    outputs = {node.output[0] for node in products}
    read_elsewhere = {
        name for node in model.graph.node if node.output[0] not in outputs for name in node.input
    }
    left_out = {node.input[1] for node in products} - read_elsewhere
    graph = onnx.helper.make_graph(
        model.graph.node,
        model.graph.name,
        model.graph.input,
        model.graph.output,
        [tensor for tensor in model.graph.initializer if tensor.name not in left_out],
    )
    copy = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    copy.producer_name, copy.producer_version = model.producer_name, model.producer_version
    return copy


def _measure_ranges(
    model: onnx.ModelProto,
    products: Sequence[onnx.NodeProto],
    inputs: Sequence[Mapping[str, NDArray]],
) -> list[NDArray[np.float32]]:
    """Per product, the largest magnitude (K,) of each channel of its activation.

    The graph itself reduces its activations: what leaves it is one number per channel, whatever
    the number of scans and of layers.
    """
    if not products:
        return []
    names = [f"{node.output[0]}_ranges" for node in products]
    session = _measuring_session(model, products, names)
    ranges: list[NDArray[np.float32]] = []
    for position, feed in enumerate(inputs):
        found = session.run(names, _checked_feed(model, feed))
        ranges = [np.maximum(*pair) for pair in zip(ranges or found, found, strict=True)]
        if not all(np.isfinite(widest).all() for widest in ranges):
            raise InvalidInputError(
                f"calibration input {position} makes activations that are not finite; check "
                "the scan, and the weights with `mmad-fast doctor ARTIFACT`"
            )
    return ranges


def _measuring_session(
    model: onnx.ModelProto, products: Sequence[onnx.NodeProto], names: Sequence[str]
) -> Any:
    """ONNX Runtime on the graph with one more output per product, of these names."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph  # not of a copy, which for a ViT-B is 350 MB
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    fields = (graph.node, graph.output, graph.initializer)
    lengths = [len(field) for field in fields]
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first_axis"))
    for node, ranges in zip(products, names, strict=True):
        num_channels = shapes[node.input[1]][0]
        shape = numpy_helper.from_array(
            np.array([-1, num_channels], np.int64), f"{ranges}_rows_shape"
        )
        graph.initializer.append(shape)
        rows, magnitudes = f"{ranges}_reshaped", f"{ranges}_magnitudes"
        graph.node.extend(
            [
                helper.make_node("Reshape", [node.input[0], shape.name], [rows]),
                helper.make_node("Abs", [rows], [magnitudes]),
                helper.make_node("ReduceMax", [magnitudes, "first_axis"], [ranges], keepdims=0),
            ]
        )
        graph.output.append(
            helper.make_tensor_value_info(ranges, TensorProto.FLOAT, [num_channels])
        )
    content = model.SerializeToString()
    for field, length in zip(fields, lengths, strict=True):
        del field[length:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = get_num_threads()
    options.log_severity_level = 3
    # Another copy of the weights, to be a little faster on a few scans.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _checked_feed(model: onnx.ModelProto, feed: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The inputs of one scan in float32, repeated to the model's batch."""
    wanted = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    if set(feed) != set(wanted):
        raise InvalidInputError(
            f"calibration inputs are {sorted(feed)}, the graph needs {sorted(wanted)}"
        )
    result = {}
    for name, shape in wanted.items():
        array = np.asarray(feed[name], np.float32)
        if array.ndim == len(shape) and array.shape[0] == 1 and shape[0] > 1:
            array = np.repeat(array, shape[0], axis=0)
        fits = [given for given, axis in zip(array.shape, shape, strict=False) if axis] == [
            axis for axis in shape if axis
        ]
        if array.ndim != len(shape) or not fits:
            raise InvalidInputError(
                f"calibration input {name!r} has shape {array.shape}, the graph needs {shape} (0: "
                "any)"
            )
        result[name] = array
    return result


def _balance(model: onnx.ModelProto, products: Sequence[Product]) -> None:
    """Brings the channels of each activation nearer to one range; weights take the inverse.

    Where a LayerNormalization makes the activation for one product alone, the factors go into its
    scale and bias; elsewhere the product gets `factors`.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers = [name for node in graph.node for name in node.input]
    readers += [value.name for value in graph.output]
    for product in products:
        weight_ranges = np.maximum(np.abs(product.weight).max(axis=1), MIN_CHANNEL_RANGE)
        spread = np.maximum(product.ranges, MIN_CHANNEL_RANGE) ** BALANCE / weight_ranges ** (
            1 - BALANCE
        )
        factors = (np.exp(np.log(spread).mean()) / spread).astype(np.float32)  # (K,)
        product.weight = product.weight / factors[:, None]
        product.ranges = product.ranges * factors
        maker = makers.get(product.activation)
        if (
            maker is None
            or maker.op_type != "LayerNormalization"
            or readers.count(product.activation) > 1
        ):
            product.factors = factors
            continue
        for position, name in list(enumerate(maker.input))[1:]:
            values = numpy_helper.to_array(constants[name]) * factors
            maker.input[position] = f"{product.name}_norm_{position}"
            graph.initializer.append(numpy_helper.from_array(values, maker.input[position]))


def _insert_nodes(
    model: onnx.ModelProto, products: Sequence[Product], precision: str, rest: str
) -> None:
    """Replaces each product's node by its 8-bit form."""
    graph = model.graph
    by_output = {product.name: product for product in products}
    parts = NewParts([], [])
    for node in graph.node:
        product = by_output.get(node.output[0])
        if product is not None:
            add_product(parts, product, precision, rest)
        else:
            parts.nodes.append(node)
    _keep_biases_apart(parts, graph.initializer, set(by_output))
    nodes = [deepcopy(node) for node in parts.nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(parts.constants)


def _keep_biases_apart(
    parts: NewParts, constants: Sequence[onnx.TensorProto], products: set[str]
) -> None:
    """Gives the biases behind the products the shape (1, 1, N).

    Of a product and a bias (N,) ONNX Runtime makes a Gemm, which it does not run in int8, and
    version 1.31 then refuses its own graph for a wrong type.
    """
    from onnx import numpy_helper

    by_name = {tensor.name: tensor for tensor in constants}
    for node in parts.nodes:
        if node.op_type != "Add" or node.input[0] not in products:
            continue
        bias = by_name.get(node.input[1])
        if bias is not None and len(bias.dims) == 1:
            values = numpy_helper.to_array(bias).reshape(1, 1, -1)
            node.input[1] = parts.add_constant(values, f"{node.output[0]}_bias")
