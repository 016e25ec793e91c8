"""An array on a CUDA device that belongs to no library."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.dlpack import CPU, CUDA, make_capsule

__all__ = ["DeviceBuffer"]

LEGACY_DEFAULT_STREAM = 1
"""How interfaces between libraries name the stream 0."""


@dataclass(eq=False, repr=False)
class DeviceBuffer:
    """A C-contiguous array on a CUDA device: what an op returns to a library that cannot take
    arrays over. Others read it by `__cuda_array_interface__` or `__dlpack__`.

    Its memory is freed with it, on its stream, which must live as long.

    Attributes:
        pointer: Device address of the first element.
        shape: Length of each axis.
        dtype: NumPy's name of the type, or "bfloat16".
        device: Index of the CUDA device.
        stream: On which its content is written; 0 is the legacy default stream.
        location: DLPack's device type of the memory.
        owner: Keeps the memory, where it is another's.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    stream: int
    location: int = CUDA
    owner: Any = None

    @classmethod
    def allocate(
        cls, shape: tuple[int, ...], dtype: str, device: int, stream: int, *, location: int = CUDA
    ) -> DeviceBuffer:
        """New memory, not initialised, in the order of the stream.

        Raises:
            BackendUnavailableError: the CUDA kernels are not built.
        """
        kernels = cuda_kernels.kernels()
        size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        pointer = kernels.allocate(device, size, stream)
        buffer = cls(pointer, shape, dtype, device, stream, location=location)
        weakref.finalize(buffer, kernels.free, device, pointer, stream)
        return buffer

    def copy_to_host(self) -> NDArray[Any]:
        """The content as a NumPy array, when the stream has written it.

        Raises:
            BackendUnavailableError: the CUDA kernels are not built.
            InvalidInputError: NumPy has no such type (bfloat16).
        """
        if self.dtype == "bfloat16":
            raise InvalidInputError("NumPy has no bfloat16; read the buffer with torch.from_dlpack")
        size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if size == 0:
            return np.empty(self.shape, self.dtype)
        content = cuda_kernels.kernels().copy_to_host(self.device, self.pointer, size, self.stream)
        return np.frombuffer(content, self.dtype).reshape(self.shape).copy()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceBuffer(shape={self.shape}, dtype={self.dtype}, cuda:{self.device})"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": "<V2" if self.dtype == "bfloat16" else np.dtype(self.dtype).str,
            "data": (self.pointer if math.prod(self.shape) else 0, False),
            "strides": None,
            "stream": self.stream or LEGACY_DEFAULT_STREAM,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CPU if self.location == CPU else CUDA), self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule of this memory.

        Args:
            stream: The consumer's; -1 if it takes care of the order. For another stream than its
                own the content is waited for on the host.
            max_version: Capsules are unversioned, which every consumer reads.
            dl_device, copy: Not offered.

        Raises:
            BufferError: another device or a copy is asked for.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("a DeviceBuffer is exported where it is, without a copy")
        stream = LEGACY_DEFAULT_STREAM if stream is None else stream
        if stream not in (-1, self.stream or LEGACY_DEFAULT_STREAM):
            self._wait()
        return make_capsule(self.pointer, self.shape, self.dtype, self.__dlpack_device__(), self)

    def _wait(self) -> None:
        """Returns when the stream has done what is queued on it."""
        if math.prod(self.shape):
            cuda_kernels.kernels().copy_to_host(self.device, self.pointer, 1, self.stream)
