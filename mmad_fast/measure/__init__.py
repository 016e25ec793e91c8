"""Accuracy, time, memory, and the tables made of them.

Nothing is imported here: `measure.detector_process` runs in a process that must stay free of the
fit half, and `measure.metrics` needs scikit-learn and scipy (the `fit` extra).
"""
