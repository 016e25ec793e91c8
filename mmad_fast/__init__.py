"""Fast, small RGB + 3D industrial anomaly detectors.

    detector = mmad_fast.load("runs/bagel")
    result = detector.infer(rgb, xyz)
    result.image_score, result.is_anomalous, result.anomaly_map

The run half (load, infer, Detector) needs no torch; `fit` does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmad_fast.detector import Detector, infer, load
    from mmad_fast.methods.fit_run import fit
    from mmad_fast.scan import Result, Scan

__version__ = "0.1.0"
__all__ = ["Detector", "Result", "Scan", "__version__", "fit", "infer", "load"]

# Imported at first use: importing the package, as every command line does, costs nothing.
_HOMES = {
    "Detector": "mmad_fast.detector",
    "Result": "mmad_fast.scan",
    "Scan": "mmad_fast.scan",
    "fit": "mmad_fast.methods.fit_run",
    "infer": "mmad_fast.detector",
    "load": "mmad_fast.detector",
}


def __getattr__(name: str) -> Any:
    if name == "export":  # the package, so that mmad_fast.export.export_detector needs no import
        return import_module("mmad_fast.export")
    if name not in _HOMES:
        raise AttributeError(f"module 'mmad_fast' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
