"""ONNX graph -> the same graph with int8 matrix products."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mmad_fast.errors import MissingDependencyError


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
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    previous = logging.root.manager.disable
    # It advises to preprocess the graph; the exporter has done that already.
    logging.disable(logging.WARNING)
    try:
        model = onnx.load_model(target)
        # The quantiser infers the inner shapes itself, and does not cope with given ones that its
        # inference cannot repeat.
        del model.graph.value_info[:]
        quantize_dynamic(
            model,
            partial,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            extra_options={"MatMulConstBOnly": True},
        )
        os.replace(partial, target)
    finally:
        logging.disable(previous)
        partial.unlink(missing_ok=True)
    return target
