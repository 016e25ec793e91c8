"""The graph that an engine is built from: an artifact's graph in another batch and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from mmad_fast.engine_record import PRECISIONS
from mmad_fast.engines.graph_check import check_onnx_graph
from mmad_fast.errors import InvalidInputError
from mmad_fast.export.attention import fuse_attention, merge_heads
from mmad_fast.export.batch import SINGLE, Batch, set_batch
from mmad_fast.export.folding import fold_constants
from mmad_fast.export.graph_cost import graph_cost
from mmad_fast.export.opset import import_onnx, require_opset
from mmad_fast.export.precision import to_precision

if TYPE_CHECKING:
    import onnx

TARGETS = ("onnx", "openvino", "tensorrt-rtx", "tensorrt")

HALF_PRECISIONS = ("fp16", "bf16")
QUANTIZED_PRECISIONS = ("int8", "fp8")
QUANTIZED_OPSETS = {"int8": 19, "fp8": 21}
"""The first that quantises fp16; the first that transposes fp8: ONNX Runtime moves a Q/DQ pair
before a Transpose."""
QUANTIZED_OPS = frozenset(
    {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear"}
)


def deployment_graph(
    source: Path,
    *,
    target: str,
    precision: str = "fp32",
    batch: Batch = SINGLE,
    calibration: Sequence[Mapping[str, NDArray]] = (),
    named: Path | None = None,
) -> onnx.ModelProto:
    """The graph of `source` as the target reads it best, checked.

    Inputs and outputs keep their names, their type float32 and all axes but the batch. Constants
    are folded. Attention is one Attention node per block (opset 23) for ONNX Runtime and OpenVINO,
    two products around a Softmax for TensorRT, which fuses either and has a kernel less around the
    latter. int8 and fp8 graphs have explicit QuantizeLinear and DequantizeLinear nodes around the
    products with constant matrices; the rest is fp32 for ONNX Runtime and OpenVINO, fp16 for
    TensorRT.

    Args:
        source: An artifact's graph: float32, batch 1, as `export_graph` writes it.
        target: One of TARGETS.
        precision: One of PRECISIONS.
        batch: The batch sizes; of a dynamic one only that it is dynamic is in the graph.
        calibration: Inputs by name of some scans, batch 1; needed for int8 and fp8.
        named: What messages call the source.

    Raises:
        InvalidInputError: an unknown name; a source that is quantised already, not of batch 1 or
            not written by `export_graph`; int8 or fp8 for a network of convolutions; no calibration
            inputs; weights beyond fp16.
        MissingDependencyError: onnx is not installed.
        ArtifactError: the source is not a graph that a detector can have.
    """
    _check_request(target, precision, calibration)
    model = _load(source, precision, named or source)
    fold_constants(model)
    set_batch(model, batch)
    is_tensorrt = target in ("tensorrt-rtx", "tensorrt")
    if is_tensorrt:
        merge_heads(model)
    else:
        fuse_attention(model)
    if precision in HALF_PRECISIONS:
        to_precision(model, precision)
    elif precision in QUANTIZED_PRECISIONS:
        from mmad_fast.export.quantization import quantize_with_calibration

        rest = "fp16" if is_tensorrt else "fp32"
        require_opset(model, QUANTIZED_OPSETS[precision])
        model = quantize_with_calibration(model, calibration, precision=precision, rest=rest)
    import_onnx().checker.check_model(model, full_check=True)
    return model


def check_choice(what: str, name: object, known: Sequence[str]) -> None:
    """Raises unless the name of `what` is one of the known ones.

    Raises:
        InvalidInputError: it is not, or no string.
    """
    if not isinstance(name, str) or name not in known:
        raise InvalidInputError(f"{what} is {name!r}; it must be one of {', '.join(known)}")


def _check_request(
    target: str, precision: str, calibration: Sequence[Mapping[str, NDArray]]
) -> None:
    check_choice("target", target, TARGETS)
    check_choice("precision", precision, PRECISIONS)
    if precision in QUANTIZED_PRECISIONS and not len(calibration):
        raise InvalidInputError(
            f"precision {precision!r} needs the inputs of some scans to find the ranges of "
            "activations, and there are none; give calibration scans"
        )


def check_source(source: Path, precision: str, *, named: Path | None = None) -> None:
    """Raises InvalidInputError unless `deployment_graph` can make a graph of that precision of the
    source: before scans are run for it.

    Raises:
        ArtifactError: the source is not a graph that a detector can have.
        MissingDependencyError: onnx is not installed.
    """
    _load(source, precision, named or source)


def _load(source: Path, precision: str, named: Path) -> onnx.ModelProto:
    """The source's graph, if it is one that can be turned into one of that precision."""
    onnx = import_onnx()
    check_onnx_graph(source, named=named)
    model = onnx.load_model(source, load_external_data=False)
    if any(node.op_type in QUANTIZED_OPS for node in model.graph.node):
        raise InvalidInputError(
            f"{named.name} is quantised already; export a detector that was fitted with "
            "precision='fp32'"
        )
    if precision in QUANTIZED_PRECISIONS:
        cost = graph_cost(model)
        if 2 * cost.convolution_multiply_adds > cost.multiply_adds:
            share = cost.convolution_multiply_adds / cost.multiply_adds
            raise InvalidInputError(
                f"{named.name} is a network of convolutions ({share:.0%} of its multiply-adds), "
                f"which {precision} leaves as they are; export with precision 'fp16', 'bf16' or "
                "'fp32'"
            )
    return model
