"""The GPU that is measured: what is missing, what it is, and how time on it is taken.

`Device` is the seam: with the name "cpu" every step runs at tiny sizes without a GPU, kernels
interpreted, times from the wall clock. on_gpu.py always takes "cuda".
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from settings import BENCH, read_toml, version_of

SMALLEST_MS = 1e-4
"""A CUDA event counts in half microseconds: shorter calls are not told from none."""
FLUSH_BYTES = 256 << 20
"""More than any second level cache holds."""
SMI_FIELDS = read_toml(BENCH / "sweeps" / "gpu.toml")["smi_fields"]
COMMAND_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Device:
    """Where arrays lie and how calls are timed.

    Attributes:
        name: Torch's name: "cuda", or "cpu" in tests.
    """

    name: str = "cuda"

    @property
    def is_cuda(self) -> bool:
        return self.name == "cuda"

    def tensor(self, array: NDArray) -> Any:
        """A tensor on the device with the array's content."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.name)

    def array(self, values: NDArray) -> Any:
        """What the public ops take as arrays of this device: a tensor; on the host NumPy's."""
        return self.tensor(values) if self.is_cuda else values

    def synchronize(self) -> None:
        if self.is_cuda:
            import torch

            torch.cuda.synchronize()

    def latencies_ms(
        self, function: Callable[[], object], *, num_warmup: int, num_runs: int, is_cold: bool
    ) -> list[float]:
        """Milliseconds on the device of each call, after some that do not count.

        Args:
            function: Hands work to the device; need not wait for it.
            num_warmup: Calls before, which also compile what is compiled at the first call.
            num_runs: Measured calls.
            is_cold: The second level cache is overwritten before each call. That also keeps the
                device busy while the host prepares the call, so that its launches are not in the
                time; without it they are, where they take longer than the work.
        """
        for _ in range(num_warmup):
            function()
        self.synchronize()
        if not self.is_cuda:
            return self._wall_latencies_ms(function, num_runs)
        import torch

        events = []
        for _ in range(num_runs):
            if is_cold:
                self._flush_buffer.zero_()
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [max(start.elapsed_time(end), SMALLEST_MS) for start, end in events]

    def wall_latencies_ms(
        self, function: Callable[[], object], *, num_warmup: int, num_runs: int
    ) -> list[float]:
        """Milliseconds by the wall clock of each call and the wait for its end."""
        for _ in range(num_warmup):
            function()
        self.synchronize()
        return self._wall_latencies_ms(function, num_runs)

    def peak_memory_mib(self, function: Callable[[], object]) -> float | None:
        """The most that torch's allocator held in a call, beyond what it held before; None on the
        host. What ONNX Runtime and the CUDA context take is not in it."""
        if not self.is_cuda:
            function()
            return None
        import torch

        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def used_memory_mib(self) -> float | None:
        """Memory of the device in use, by all processes: context and all allocators included."""
        if not self.is_cuda:
            return None
        import torch

        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20

    def _wall_latencies_ms(self, function: Callable[[], object], num_runs: int) -> list[float]:
        latencies = []
        for _ in range(num_runs):
            start = time.perf_counter()
            function()
            self.synchronize()
            latencies.append(max((time.perf_counter() - start) * 1e3, SMALLEST_MS))
        return latencies

    @cached_property
    def _flush_buffer(self) -> Any:
        import torch

        return torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.name)


def what_is_missing() -> str | None:
    """What keeps this machine from running on a GPU, with what to do; None if nothing does."""
    try:
        import torch
    except ImportError as error:
        return f"torch does not load ({error}); install torch's CUDA build, see pytorch.org"
    if torch.version.cuda is None:
        driver = "nvidia-smi is there" if shutil.which("nvidia-smi") else "nor is nvidia-smi there"
        return (
            f"torch {torch.__version__} is a build without CUDA, {driver}; install its CUDA "
            "build, see pytorch.org"
        )
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no CUDA device: check that the driver is installed "
            "(nvidia-smi), that it is new enough for CUDA "
            f"{torch.version.cuda}, and CUDA_VISIBLE_DEVICES"
        )
    return None


def device_report() -> dict[str, Any]:
    """The GPU, its clocks and limits, and the software that drives it; None: not known."""
    import torch

    names = ("name", "compute_capability", "memory_mib", "multiprocessors", "l2_mib")
    report: dict[str, Any] = {
        **dict.fromkeys(names),
        "nvidia_smi": nvidia_smi(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "onnxruntime": version_of("onnxruntime-gpu") or version_of("onnxruntime"),
        "nvcc": _first_line_with(("nvcc", "--version"), "release"),
        "machine": platform.machine(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        report |= {
            "name": properties.name,
            "compute_capability": 10 * properties.major + properties.minor,
            "memory_mib": properties.total_memory / 2**20,
            "multiprocessors": properties.multi_processor_count,
            "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20 or None,
        }
    return report


def nvidia_smi() -> dict[str, str] | None:
    """Clocks, limits and driver as nvidia-smi says; None where it is not there."""
    query = ("nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader")
    text = (_output(query) or "").strip()
    return parse_smi(text) if text else None


def parse_smi(text: str) -> dict[str, str]:
    """The first device's fields by name."""
    values = [value.strip() for value in text.splitlines()[0].split(",")]
    return dict(zip(SMI_FIELDS, values, strict=False))


def _first_line_with(command: tuple[str, ...], word: str) -> str | None:
    lines = (_output(command) or "").splitlines()
    return next((line.strip() for line in lines if word in line), None)


def _output(command: tuple[str, ...]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@contextmanager
def product_precision(dtype: str) -> Iterator[None]:
    """Float32 products and convolutions of torch in TF32 for "tf32", else in float32."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"  # torch's default is True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
