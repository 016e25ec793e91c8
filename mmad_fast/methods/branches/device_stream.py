"""The CUDA stream of a detector's work. Needs torch, whose tensors hold the arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mmad_fast.engines import DeviceEngine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

Tensor = Any
"""A torch tensor on the device. The ops, declared for NumPy arrays, return the kind they get."""

TORCH_DEVICE = "cuda"
"""Torch's name of the device."""


@dataclass(frozen=True)
class DeviceStream:
    """A CUDA device and the stream on it in which all work of one detector is done, in order: the
    Place of a detector on a device.

    Attributes:
        device: Torch's device.
        stream: Its stream; None is for tests on the host.
    """

    device_kind: ClassVar[str] = "cuda"

    device: torch.device
    stream: torch.cuda.Stream | None

    @classmethod
    def new(cls) -> DeviceStream:
        """A new stream on torch's current CUDA device."""
        device = torch.device(TORCH_DEVICE)
        if device.type != "cuda":
            return cls(device, None)
        device = torch.device(TORCH_DEVICE, torch.cuda.current_device())
        return cls(device, torch.cuda.Stream(device))

    @contextmanager
    def current(self) -> Iterator[None]:
        """This device and stream for the tensors and launches of this thread."""
        if self.stream is None:
            yield
            return
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            yield

    def open_graph(self, choice: EngineChoice, name: str) -> DeviceEngine:
        """The graph of that name, run in this stream as the choice says.

        Raises:
            BackendUnavailableError: the engine cannot use the device.
        """
        return choice.open_on_device(
            name,
            device_index=self.device.index or 0,
            stream=0 if self.stream is None else self.stream.cuda_stream,
        )

    def run(self, engine: DeviceEngine, **inputs: Tensor) -> Tensor:
        """The one output of a graph."""
        (output,) = self.run_all(engine, **inputs).values()
        return output

    def run_all(self, engine: DeviceEngine, **inputs: Tensor) -> Mapping[str, Tensor]:
        """All outputs of a graph by name."""
        outputs = {
            name: torch.empty(shape, dtype=torch.float32, device=self.device)
            for name, shape in engine.output_shapes.items()
        }
        contiguous = {name: tensor.contiguous() for name, tensor in inputs.items()}
        engine.run_bound(
            {name: tensor.data_ptr() for name, tensor in contiguous.items()},
            {name: tensor.data_ptr() for name, tensor in outputs.items()},
        )
        return outputs

    def upload_scan(self, prepared: PreparedScan, clock: StageClock) -> tuple[Tensor, Tensor]:
        """(image (1, 3, R, R), points (N, 3)) of a scan, on the device."""
        with clock.stage("upload"):
            return self.upload(prepared.rgb[None]), self.upload(prepared.points)

    def upload(self, array: NDArray) -> Tensor:
        """A copy on the device. Waits for what was launched before: upload first, then launch."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def upload_rows(self, rows: SparseRows) -> SparseRows:
        """The same rows with their arrays on the device."""
        return SparseRows(
            self.upload(rows.offsets),
            self.upload(rows.columns),
            self.upload(rows.values),
            rows.num_columns,
        )
