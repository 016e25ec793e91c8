"""A graph of one matrix product, and inputs for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.random.default_rng(0).normal(size=(48, 33)).astype(np.float32)


def save_product(path: Path, *, rows: int | str = 5, columns: int | str = 48) -> Path:
    """The graph y (rows, 33) = x (rows, columns) @ WEIGHT + 1, and z = 2 y."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "one"], ["y"]),
        helper.make_node("Add", ["y", "y"], ["z"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {"x": (rows, columns), "y": (rows, 33), "z": (rows, 33)}.items()
    ]
    constants = {"weight": WEIGHT, "one": np.ones(1, np.float32)}
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], initializers)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def inputs(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(5, 48)).astype(np.float32)
