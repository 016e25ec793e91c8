"""Where the tests of the GPU backends run: interpreted and emulated, or on a CUDA device."""

from __future__ import annotations

import os

TEST_DEVICE = os.environ.get("MMAD_FAST_TEST_DEVICE", "cpu")
"""Torch's name of the device. "cpu": Triton's kernels are interpreted, the CUDA kernels emulated;
"cuda" (bench/on_gpu.py): both must run on the GPU."""

if TEST_DEVICE != "cuda":
    # Triton reads it when a kernel's module is imported.
    os.environ["TRITON_INTERPRET"] = "1"
