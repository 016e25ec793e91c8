"""A product with a constant matrix -> the same in 8 bits, as ONNX nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError

if TYPE_CHECKING:
    import onnx

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""Largest magnitude of the 8-bit numbers, by precision; -128 is not used, zero stays zero."""

MIN_CHANNEL_RANGE = 1e-6
"""The range that channels of constant 0 are given, so that no scale is 0."""

SMALLEST_FACTOR = 2.0**-10
"""Smallest factor of a column of a weight: its range relative to the widest column's. A column of
zeros has range 0."""

LARGEST_FP16 = 65504.0

SMALLEST_SCALE = {"fp32": 1e-12, "fp16": 2.0**-14}
"""Smallest scale of an activation, by the precision of the graph around the product: engines
multiply by the inverse, which fp16 must be able to hold."""


@dataclass
class Product:
    """A product of an activation and a constant matrix.

    Attributes:
        name: Of its output; unique in a graph, which nodes' names need not be.
        activation: Name of the activation (..., K).
        weight: (K, N) float32.
        ranges: (K,) float32: largest magnitude of each channel in the calibration scans.
        factors: (K,) what the channels are multiplied by in a node before the product, None if in
            none.
    """

    name: str
    activation: str
    weight: NDArray[np.float32]
    ranges: NDArray[np.float32]
    factors: NDArray[np.float32] | None = None


@dataclass
class NewParts:
    """What is put into a graph."""

    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]

    def add_node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """The output's name."""
        from onnx import helper

        name = f"{output}_{op_type}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name, **attributes))
        return output

    def add_constant(self, values: NDArray, name: str) -> str:
        """The constant's name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(values, name))
        return name


def add_product(parts: NewParts, product: Product, precision: str, rest: str) -> None:
    """Adds Q/DQ on both sides of the product, and the factors before and behind it.

    Args:
        parts: Gets the nodes and constants.
        product: With its ranges and factors.
        precision: A name in LARGEST.
        rest: "fp32" or "fp16".

    Raises:
        InvalidInputError: weights or activations that the rest's type cannot hold.
    """
    name, source = product.name, product.activation
    largest = max(float(product.ranges.max()), float(np.abs(product.weight).max()))
    if rest == "fp16" and largest > LARGEST_FP16:
        raise InvalidInputError(
            f"a factor of the product {name!r} reaches {largest:.4g}, and what is not 8-bit is "
            f"fp16, which ends at {LARGEST_FP16:.0f}; export with precision 'bf16' or 'fp32'"
        )
    if product.factors is not None:
        factors = parts.add_constant(product.factors, f"{name}_factors")
        source = parts.add_node("Mul", [source, factors], f"{name}_balanced")
    scale = max(product.ranges.max() / LARGEST[precision], SMALLEST_SCALE[rest])
    how = [
        parts.add_constant(_as_rest(scale, rest), f"{name}_scale"),
        parts.add_constant(np.zeros((), _number_type(precision)), f"{name}_zero"),
    ]
    source = parts.add_node("QuantizeLinear", [source, *how], f"{name}_rounded")
    source = parts.add_node("DequantizeLinear", [source, *how], f"{name}_input")

    numbers, scale, column_factors = _round_weight(product.weight, precision, rest)
    if precision == "int8" and rest == "fp16":
        weight = _add_weight(parts, name, numbers, scale)
        unscaled = parts.add_node("MatMul", [source, weight], f"{name}_unscaled")
        factors = parts.add_constant(column_factors, f"{name}_column_factors")
        parts.add_node("Mul", [unscaled, factors], name)
        return
    if precision == "fp8" and rest == "fp32":
        # ONNX Runtime makes one node of two DequantizeLinear and a MatMul, and has none for fp8.
        ones = _add_weight(parts, name, numbers, np.ones((), np.float32))
        factor = parts.add_constant(scale, f"{name}_weight_factor")
        weight = parts.add_node("Mul", [ones, factor], f"{name}_weight_scaled")
    else:
        weight = _add_weight(parts, name, numbers, scale * column_factors)
    parts.add_node("MatMul", [source, weight], name)


def _add_weight(parts: NewParts, name: str, numbers: NDArray, scale: NDArray[np.float32]) -> str:
    """The name of the weight: numbers (K, N) times the scale () or (N,)."""
    inputs = [
        parts.add_constant(numbers, f"{name}_weight_rounded"),
        parts.add_constant(scale, f"{name}_weight_scale"),
        parts.add_constant(np.zeros(scale.shape, numbers.dtype), f"{name}_weight_zero"),
    ]
    axis = {"axis": 1} if scale.ndim else {}
    return parts.add_node("DequantizeLinear", inputs, f"{name}_weight", **axis)


def _number_type(precision: str) -> np.dtype:
    """NumPy's type of the 8-bit numbers."""
    from onnx import TensorProto, helper

    name = {"int8": "INT8", "fp8": "FLOAT8E4M3FN"}[precision]
    return helper.tensor_dtype_to_np_dtype(getattr(TensorProto, name))


def _round_weight(
    weight: NDArray[np.float32], precision: str, rest: str
) -> tuple[NDArray, NDArray[np.float32], NDArray[np.float32]]:
    """(8-bit numbers (K, N), scale (), factors (N,) of the columns): their product is the weight.

    Apart from the factors there is one scale, since TensorRT-RTX hands the sums of a product with
    one scale per column to the next kernel unscaled and in fp16, which ends at 65504. The factors
    of fp8, whose rounding is relative, are a single 1.
    """
    column_ranges = np.abs(weight).max(axis=0)  # (N,)
    widest = max(float(column_ranges.max()), MIN_CHANNEL_RANGE)
    scale = _as_rest(max(widest / LARGEST[precision], SMALLEST_SCALE[rest]), rest)
    if precision == "fp8":
        factors = np.ones((), np.float32)
        numbers = weight / scale
    else:
        factors = _as_rest(np.maximum(column_ranges / widest, SMALLEST_FACTOR), rest)
        numbers = np.rint(weight / (scale * factors))
    numbers = np.clip(numbers, -LARGEST[precision], LARGEST[precision])
    return numbers.astype(_number_type(precision)), scale, factors


def _as_rest(values: NDArray | float, rest: str) -> NDArray[np.float32]:
    """The values rounded to the precision of the graph around the product, as float32: what is
    divided by a scale must be multiplied by the same number."""
    narrow = np.float16 if rest == "fp16" else np.float32
    return np.asarray(values, np.float32).astype(narrow).astype(np.float32)
