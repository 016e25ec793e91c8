"""From networks to engines: torch network -> ONNX graph (at fit time), artifact -> engines.

    report = mmad_fast.export.export_detector("runs/bagel", to="tensorrt-rtx", precision="fp16",
                                              sms=[86, 89])

Exporting an artifact needs the extra `export`, and no torch. Importing this package is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmad_fast.engine_record import PRECISIONS
    from mmad_fast.export.batch import Batch
    from mmad_fast.export.deployment_graph import TARGETS
    from mmad_fast.export.detector_export import ExportReport, export_detector

__all__ = ["PRECISIONS", "TARGETS", "Batch", "ExportReport", "export_detector"]

# Imported at first use, like the names of mmad_fast.
_HOMES = {
    "Batch": "mmad_fast.export.batch",
    "ExportReport": "mmad_fast.export.detector_export",
    "PRECISIONS": "mmad_fast.engine_record",
    "TARGETS": "mmad_fast.export.deployment_graph",
    "export_detector": "mmad_fast.export.detector_export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmad_fast.export' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
