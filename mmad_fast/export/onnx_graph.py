"""Torch module -> checked, static ONNX graph in one file."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmad_fast.errors import InvalidInputError, MissingDependencyError, MmadFastError
from mmad_fast.export.folding import fold_constants
from mmad_fast.export.pixel_shuffle import shuffle_pixels
from mmad_fast.whole_folder import whole_file

OPSET = 18
"""LayerNormalization is one node since 17; ONNX Runtime, OpenVINO and TensorRT all read 18."""

MAX_GRAPH_BYTES = 2**31 - 2**20
"""A protobuf message, and so a graph with its weights inside, ends at 2 GiB."""

HEADS_AT_ONCE = 2
"""Attention weights of all heads would be a backbone's largest tensor, 30 MB for the 785 tokens of
DINO, and their softmax the same again. Two heads at a time take a sixth and no longer."""

TOLERANCE = 1e-4
"""Largest difference to torch, relative to the output's largest magnitude (at least 1)."""

# The batch statistics of a training BatchNormalization are found by its attribute.
RANDOM_OPS = frozenset(
    {"Bernoulli", "Dropout", "Multinomial"}
    | {f"Random{kind}{like}" for kind in ("Normal", "Uniform") for like in ("", "Like")}
)
CHATTY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def export_graph(
    module: nn.Module,
    example_inputs: Mapping[str, Tensor],
    path: str | Path,
    *,
    output_name: str | Sequence[str],
) -> Path:
    """The path of the module's ONNX graph, written when it has passed its checks.

    The graph is static, in float32, of opset 18, in one file with its weights; constants are
    folded, transposed convolutions are 1 x 1 ones and pixel shuffles (pixel_shuffle.py), no
    initialiser is unused, nothing in it tells of the machine that wrote it. The file appears whole
    or not at all.

    Args:
        module: In evaluation mode; takes the tensors in the order of `example_inputs` and returns
            one tensor, or a tuple of them.
        example_inputs: Tensor by the name it gets in the graph, float32. Their shapes are the
            graph's.
        path: Where to write; an existing file is replaced.
        output_name: Name of the output; of a tuple, one for each.

    Raises:
        InvalidInputError: the module draws random numbers, has weights of over 2 GiB, or an input
            or the output is not float32.
        MissingDependencyError: onnx or onnxscript is not installed.
        MmadFastError: the graph does not give what torch gives, or cannot be written.
    """
    onnx = _import_onnx()
    target = Path(path)
    names = (output_name,) if isinstance(output_name, str) else tuple(output_name)
    outputs = _run_torch(module, example_inputs)
    if len(outputs) != len(names):
        raise InvalidInputError(
            f"the module returns {len(outputs)} tensors, and the names of {len(names)} are given; "
            "one for each is needed"
        )
    expected = dict(zip(names, outputs, strict=True))
    weights_bytes = sum(
        tensor.numel() * tensor.element_size()
        for tensor in (*module.parameters(), *module.buffers())
    )
    if weights_bytes > MAX_GRAPH_BYTES:
        raise InvalidInputError(
            f"the module's weights take {weights_bytes / 2**30:.1f} GiB; a graph in one file holds "
            "2 GiB. Export it in parts"
        )
    model = _to_model(module, example_inputs, names)
    _clean(model)
    fold_constants(model)
    shuffle_pixels(model)
    _check_static(model)
    with whole_file(target) as partial:
        try:
            onnx.save_model(model, partial)
        except OSError as error:
            raise MmadFastError(
                f"{target}: the graph cannot be written ({error.strerror}); free some space there, "
                "or choose a folder on a larger disk (that of a fit: set TMPDIR)"
            ) from error
        onnx.checker.check_model(str(partial), full_check=True)
        _check_outputs(partial, example_inputs, expected)
    return target


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting needs {error.name}, which is not installed; run "
            "pip install 'mmad-fast[fit]'"
        ) from error
    return onnx


def _run_torch(module: nn.Module, example_inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    for name, tensor in example_inputs.items():
        if tensor.dtype != torch.float32:
            raise InvalidInputError(f"input {name!r} has dtype {tensor.dtype}; float32 is needed")
    with torch.inference_mode():
        returned = module(*example_inputs.values())
    outputs = returned if isinstance(returned, tuple) else (returned,)
    for output in outputs:
        if not isinstance(output, Tensor) or output.dtype != torch.float32:
            found = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise InvalidInputError(f"the module returns {found}; a float32 tensor is needed")
    return [output.numpy() for output in outputs]


def _to_model(
    module: nn.Module, example_inputs: Mapping[str, Tensor], output_names: Sequence[str]
) -> Any:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(example_inputs.values()),
            input_names=list(example_inputs),
            output_names=output_names,
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            custom_translation_table={
                torch.ops.aten.gelu.default: _gelu,
                torch.ops.aten.scaled_dot_product_attention.default: _attention,
            },
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _gelu(x: Any, approximate: str = "none") -> Any:
    """GELU as x * (1 + erf(x / sqrt(2))) * 0.5 in nodes of onnxscript.

    The exporter halves before it multiplies by x. ONNX Runtime does not recognise that order and
    runs five nodes over the widest tensor of a block instead of one.
    """
    from onnxscript import opset18 as ops

    if approximate != "none":
        raise InvalidInputError(f"GELU approximated by {approximate!r} cannot be exported")
    twice = ops.Mul(x, ops.Add(ops.Erf(ops.Div(x, math.sqrt(2.0))), 1.0))
    return ops.Mul(twice, 0.5)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The attended values (B, H, T, D) in nodes of onnxscript, HEADS_AT_ONCE heads after others."""
    from onnxscript import opset18 as ops

    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        raise InvalidInputError("attention with a mask, dropout or shared keys cannot be exported")
    num_heads, head_size = query.shape[1], query.shape[3]
    attended = []
    for first in range(0, num_heads, HEADS_AT_ONCE):
        window: Any = [first], [min(first + HEADS_AT_ONCE, num_heads)], [1]
        q, k, v = (ops.Slice(part, *window) for part in (query, key, value))
        scaled = ops.Mul(q, head_size**-0.5 if scale is None else scale)
        weights = ops.MatMul(scaled, ops.Transpose(k, perm=[0, 1, 3, 2]))
        attended.append(ops.MatMul(ops.Softmax(weights, axis=-1), v))
    return ops.Concat(*attended, axis=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes about itself off the user's terminal."""
    loggers = [logging.getLogger(name) for name in CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _clean(model: Any) -> None:
    """Takes out what no engine reads, stack traces with paths; refuses what is not repeatable."""
    graph = model.graph
    del model.metadata_props[:]
    del graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for node in graph.node:
        is_training = any(a.name == "training_mode" and a.i for a in node.attribute)
        if node.op_type in RANDOM_OPS or is_training:
            raise InvalidInputError(
                f"the module contains {node.op_type}, which draws random numbers or trains; build "
                "it for inference (drop_path='off', module.eval())"
            )


def _check_static(model: Any) -> None:
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if any(not dimension.HasField("dim_value") for dimension in dimensions):
            shown = [dimension.dim_param or dimension.dim_value for dimension in dimensions]
            raise MmadFastError(f"{value.name!r} of the graph has shape {shown}; all must be fixed")


def _check_outputs(
    path: Path, example_inputs: Mapping[str, Tensor], expected: Mapping[str, np.ndarray]
) -> None:
    from mmad_fast.engines.onnx_runtime import OnnxRuntimeEngine

    engine = OnnxRuntimeEngine(path, num_threads=torch.get_num_threads())
    outputs = engine.run({name: x.numpy() for name, x in example_inputs.items()})
    for name, wanted in expected.items():
        output = outputs[name]
        scale = max(1.0, float(np.abs(wanted).max()))
        difference = float(np.abs(output - wanted).max()) / scale
        if output.shape != wanted.shape or not difference <= TOLERANCE:
            raise MmadFastError(
                f"the exported graph gives {output.shape} where torch gives {wanted.shape}, and "
                f"differs by {difference:.2g} of the largest value (at most {TOLERANCE:g} is "
                "accepted); nothing was written. Check that the module is deterministic and in "
                "evaluation mode"
            )
