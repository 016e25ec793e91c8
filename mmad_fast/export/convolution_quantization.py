"""ONNX graph of convolutions -> the same graph in 8 bits, for processors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError, MissingDependencyError
from mmad_fast.whole_folder import whole_file


def quantize_convolutions(path: str | Path, inputs: Sequence[Mapping[str, NDArray]]) -> Path:
    """The path of the graph, which is int8 from now on.

    Weights are rounded to int8 once, with a scale per output channel; activations to uint8, with
    the range that they have in the given inputs. All maps between the convolutions are 8-bit:
    ONNX Runtime takes an 8-bit convolution only where its output is one, too. Rounding with the
    range of each scan, as `quantize_graph` does for products, would be slower than float32.

    An approximation; it is fast where the processor has 8-bit dot products.

    Args:
        path: A float32 ONNX file; it is replaced, whole or not at all.
        inputs: By name, of some nominal scans.

    Raises:
        InvalidInputError: no inputs.
        MissingDependencyError: onnx is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )
    except ImportError as error:
        raise MissingDependencyError(
            f"int8 graphs need {error.name}, which is not installed; run "
            "pip install 'mmad-fast[fit]'"
        ) from error
    if not inputs:
        raise InvalidInputError(
            "int8 convolutions need the inputs of some scans to find the ranges of activations, "
            "and there are none; give training scans"
        )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest: Iterator[Mapping[str, NDArray]] = iter(inputs)

        def get_next(self) -> Mapping[str, NDArray] | None:
            return next(self._rest, None)

    target = Path(path)
    previous = logging.root.manager.disable
    # It advises to preprocess the graph; the exporter has done that already.
    logging.disable(logging.WARNING)
    try:
        model = onnx.load_model(target)
        # The quantiser infers the inner shapes itself.
        del model.graph.value_info[:]
        with whole_file(target) as partial:
            quantize_static(
                model,
                partial,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    finally:
        logging.disable(previous)
    return target
