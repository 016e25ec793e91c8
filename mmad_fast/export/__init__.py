"""Torch network -> ONNX -> engine. Needs the fit extra."""
