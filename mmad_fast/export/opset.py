"""The package onnx, and the version of ONNX that a graph is written in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmad_fast.errors import MissingDependencyError

if TYPE_CHECKING:
    import onnx

IR_VERSIONS = {19: 9, 21: 10, 22: 10, 23: 11}
"""By opset: the IR version that ONNX introduced it with."""


def require_opset(model: onnx.ModelProto, opset: int) -> None:
    """Raises the graph's opset to at least this one, a key of IR_VERSIONS.

    No operator of the backbones has changed its meaning between 18, which `export_graph` writes,
    and these; they have only learned more types.
    """
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = max(entry.version, opset)
    model.ir_version = max(model.ir_version, IR_VERSIONS[opset])


def import_onnx() -> Any:
    """The package onnx.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "exporting needs onnx, which is not installed; run pip install 'mmad-fast[export]'"
        ) from error
    return onnx
