"""Fast, small RGB + 3D industrial anomaly detectors.

    detector = mmad_fast.load("runs/bagel")
    result = detector.infer(rgb, xyz)
    result.image_score, result.is_anomalous, result.anomaly_map

The run half (load, infer, Detector) needs no torch; `fit` does.
"""

from mmad_fast.detector import Detector, infer, load
from mmad_fast.methods.fitting import fit
from mmad_fast.scan import Result, Scan

__version__ = "0.1.0"
__all__ = ["Detector", "Result", "Scan", "__version__", "fit", "infer", "load"]
