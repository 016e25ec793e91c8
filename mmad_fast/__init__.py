"""Fast, small RGB + 3D industrial anomaly detectors."""

__version__ = "0.1.0"
