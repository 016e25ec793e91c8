"""Arrays on a CUDA device: those of any library are read, results are of the same kind.

What counts as one: anything whose `__dlpack_device__()` is a CUDA device (or CUDA managed memory),
and anything else with `__cuda_array_interface__`. NumPy arrays never do.

The contents of such an array are not looked at: that would make the host wait for the device. Type,
shape, layout and device are checked. Nothing is copied behind the caller's back, so an array that
is not C-contiguous is refused.

Streams: an op queues its work on one stream and returns without waiting. That is
- for torch tensors, torch's current stream of their device;
- for others with `__cuda_array_interface__`["stream"] (version 3; CuPy gives its current stream),
  that stream; None and version 2 leave the order to the caller and mean the legacy default stream;
- for those with `__dlpack__` and without such a stream, the legacy default stream: it is passed to
  `__dlpack__(stream=...)`, and the library makes it wait for the array.
The first array of a call decides. The others must be on the same device and stream, but for those
that come through DLPack, which are made to wait for.

Results: torch tensors for torch tensors. For other libraries memory is taken from the stream's pool
and handed over by the library's `from_dlpack`; where there is none, as a `DeviceBuffer`.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_buffer import LEGACY_DEFAULT_STREAM, DeviceBuffer
from mmad_fast.gpu.dlpack import CUDA, CUDA_MANAGED, read_capsule

__all__ = ["DeviceArray", "is_device_array", "read_device_array"]

DEVICE_TYPES = frozenset({CUDA, CUDA_MANAGED})
"""The DLPack devices whose arrays go to the GPU backends. Tests add the CPU."""


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A C-contiguous array on a CUDA device, as the kernels take it.

    Attributes:
        name: What the caller calls it.
        pointer: Device address of the first element.
        shape: Length of each axis.
        dtype: NumPy's name of the type, or "bfloat16".
        device: Index of the CUDA device.
        stream: On which work with it is queued; 0 is the legacy default stream.
        owner: The array it was made of; keeps the memory.
        location: DLPack's device type of the memory.
        capsule: What else keeps the memory.
    """

    name: str
    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    stream: int
    owner: Any
    location: int = CUDA
    capsule: Any = None

    def __len__(self) -> int:
        return self.shape[0]

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """New memory beside this array, for results and workspace; not initialised."""
        if _is_tensor(self.owner):
            import torch

            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.owner.device)
            return self.beside(tensor, shape, dtype)
        buffer = DeviceBuffer.allocate(
            shape, dtype, self.device, self.stream, location=self.location
        )
        return self.beside(buffer, shape, dtype)

    def beside(self, owner: Any, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """The record of a torch tensor or a DeviceBuffer on the same device and stream."""
        pointer = owner.pointer if isinstance(owner, DeviceBuffer) else owner.data_ptr()
        return replace(
            self, name="", pointer=pointer, shape=shape, dtype=dtype, owner=owner, capsule=None
        )

    def as_int64(self) -> DeviceArray:
        """This array of indices as int64: itself, or an int32 torch tensor converted on the stream.

        Raises:
            InvalidInputError: int32 of another library.
        """
        if self.dtype == "int64":
            return self
        if not _is_tensor(self.owner):
            raise InvalidInputError(
                f"{self.name} has dtype {self.dtype}; it must be int64: convert it on the device"
            )
        tensor = self.owner.long()
        return replace(self, pointer=tensor.data_ptr(), dtype="int64", owner=tensor)

    def give(self, result: Any) -> Any:
        """A result as an array of this one's kind.

        Args:
            result: What `empty` made, or a torch tensor on this device, which a Triton kernel or
                torch filled on this stream.
        """
        owner = result.owner if isinstance(result, DeviceArray) else result
        if _is_tensor(self.owner):
            return owner
        if not isinstance(owner, DeviceBuffer):
            owner = self._buffer(
                owner.data_ptr(), tuple(owner.shape), _torch_dtype(owner), keep=owner
            )
        from_dlpack = _find_from_dlpack(self.owner)
        return owner if from_dlpack is None else from_dlpack(owner)

    def tensor(self) -> Any:
        """The array as a torch tensor that shares its memory. Needs torch."""
        if _is_tensor(self.owner):
            return self.owner
        import torch

        return torch.from_dlpack(self._buffer(self.pointer, self.shape, self.dtype, keep=self))

    def upload(self, array: Any) -> Any:
        """A torch tensor beside this array, with the content of a NumPy array. Needs torch."""
        import torch

        return torch.from_numpy(array).to(self.torch_device)

    @property
    def torch_device(self) -> Any:
        """Torch's name of the device. Needs torch."""
        import torch

        return torch.device("cuda", self.device) if self._is_on_cuda else torch.device("cpu")

    def torch_stream(self) -> AbstractContextManager[Any]:
        """While it is entered, torch and Triton work on this array's device and stream."""
        if not self._is_on_cuda:
            return nullcontext()
        import torch

        if _is_tensor(self.owner):
            return torch.cuda.device(self.device)
        if self.stream == 0:
            return torch.cuda.stream(torch.cuda.default_stream(self.device))
        return torch.cuda.stream(torch.cuda.ExternalStream(self.stream, device=self.device))

    @property
    def _is_on_cuda(self) -> bool:
        return self.location in (CUDA, CUDA_MANAGED)

    def _buffer(self, pointer: int, shape: tuple[int, ...], dtype: str, *, keep: Any) -> Any:
        return DeviceBuffer(
            pointer, shape, dtype, self.device, self.stream, location=self.location, owner=keep
        )


def is_device_array(array: Any) -> bool:
    """Whether the ops take this to their GPU backends."""
    if isinstance(array, (np.ndarray, np.generic, list, tuple)):
        return False
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) in DEVICE_TYPES
    return hasattr(array, "__cuda_array_interface__")


def read_device_array(
    array: Any,
    name: str,
    *,
    shape: tuple[int | None, ...],
    dtypes: tuple[str, ...] = ("float32",),
    like: DeviceArray | None = None,
) -> DeviceArray:
    """The record of an array on a CUDA device.

    Args:
        array: Anything that `is_device_array` accepts.
        name: What the caller calls it.
        shape: The length of each axis, None where any is allowed.
        dtypes: The element types that are allowed.
        like: The first array of the call, which this one must be beside.

    Raises:
        InvalidInputError: no array on a CUDA device, another type or shape, not C-contiguous, on
            another device or stream than `like`.
    """
    if not is_device_array(array):
        raise InvalidInputError(
            f"{name} is a {_kind(array)}"
            + ("" if like is None else f" and {like.name} is on CUDA device {like.device}")
            + "; all arrays of one call must be on one CUDA device: move it there, e.g. with "
            f"torch.as_tensor({name}, device='cuda')"
        )
    found = _read_tensor(array, name) if _is_tensor(array) else _read_other(array, name, like)
    if found.dtype not in dtypes:
        raise InvalidInputError(
            f"{name} has dtype {found.dtype}; it must be {' or '.join(dtypes)}: convert it on the "
            "device"
        )
    if len(shape) != len(found.shape) or any(
        length is not None and length != given
        for length, given in zip(shape, found.shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise InvalidInputError(f"{name} has shape {found.shape}; it must be ({wanted})")
    if like is not None:
        _check_beside(found, like)
    return found


def _read_tensor(tensor: Any, name: str) -> DeviceArray:
    if tensor.requires_grad:
        raise InvalidInputError(
            f"{name} requires gradients, which the ops do not compute; pass {name}.detach()"
        )
    if not tensor.is_contiguous():
        _refuse_layout(name, tuple(tensor.shape), tuple(tensor.stride()))
    stream = 0
    if tensor.is_cuda:
        stream = sys.modules["torch"].cuda.current_stream(tensor.device).cuda_stream
    return DeviceArray(
        name,
        tensor.data_ptr(),
        tuple(tensor.shape),
        _torch_dtype(tensor),
        tensor.device.index or 0,
        stream,
        tensor,
        int(tensor.__dlpack_device__()[0]),
    )


def _read_other(array: Any, name: str, like: DeviceArray | None) -> DeviceArray:
    """The record of an array that is no torch tensor: from `__cuda_array_interface__` where that
    names the stream on which the array is ready or is all there is, else from DLPack."""
    location, device = CUDA, None
    if hasattr(array, "__dlpack_device__"):
        location, device = (int(part) for part in array.__dlpack_device__())
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None and ("stream" in interface or not hasattr(array, "__dlpack__")):
        return _read_interface(interface, array, name, device, location, like)
    stream = 0 if like is None else like.stream
    asked = (stream or LEGACY_DEFAULT_STREAM) if location in (CUDA, CUDA_MANAGED) else None
    capsule = array.__dlpack__(stream=asked)
    try:
        pointer, shape, strides, dtype = read_capsule(capsule)
    except ValueError as error:
        raise InvalidInputError(f"{name}, a {_kind(array)}, cannot be read: {error}") from error
    if not _is_contiguous(shape, strides):
        _refuse_layout(name, shape, strides)
    return DeviceArray(name, pointer, shape, dtype, device or 0, stream, array, location, capsule)


def _read_interface(
    interface: dict[str, Any],
    array: Any,
    name: str,
    device: int | None,
    location: int,
    like: DeviceArray | None,
) -> DeviceArray:
    shape = tuple(int(length) for length in interface["shape"])
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if interface.get("mask") is not None:
        raise InvalidInputError(f"{name} has a mask; the ops take arrays without one")
    if not dtype.isnative:
        raise InvalidInputError(f"{name} is not in this machine's byte order; convert it")
    if strides is not None:
        steps = tuple(stride // dtype.itemsize for stride in strides)
        if not _is_contiguous(shape, steps):
            _refuse_layout(name, shape, steps)
    if device is None:
        device = _only_device(name, array)
    stream = interface.get("stream")
    if stream is None:
        stream = 0 if like is None else like.stream
    elif stream == LEGACY_DEFAULT_STREAM:
        stream = 0
    pointer = int(interface["data"][0] or 0)
    return DeviceArray(name, pointer, shape, dtype.name, device, stream, array, location)


def _only_device(name: str, array: Any) -> int:
    count = cuda_kernels.num_devices()
    if count > 1:
        raise InvalidInputError(
            f"{name} is a {_kind(array)}, which does not say on which of {count} CUDA devices it "
            "is (it has no __dlpack_device__); pass it through torch.as_tensor or cupy.asarray"
        )
    return 0


def _check_beside(found: DeviceArray, like: DeviceArray) -> None:
    if found.device != like.device:
        raise InvalidInputError(
            f"{like.name} is on CUDA device {like.device} and {found.name} on CUDA device "
            f"{found.device}; all arrays of one call must be on one device: move one of them"
        )
    if found.stream != like.stream:
        raise InvalidInputError(
            f"{like.name} is on stream {like.stream:#x} and {found.name} on stream "
            f"{found.stream:#x}; all arrays of one call must be on one stream: make both under the "
            "same current stream, or synchronise and pass both through the same library"
        )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    if strides is None or 0 in shape:
        return True
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _refuse_layout(name: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    raise InvalidInputError(
        f"{name} of shape {shape} has strides {strides} (in elements); it must be C-contiguous: "
        f"pass {name}.contiguous() of a torch tensor, ascontiguousarray({name}) elsewhere"
    )


def _is_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _torch_dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _find_from_dlpack(array: Any) -> Any:
    """The function `from_dlpack` of the array's library, None if it has none."""
    namespace = getattr(array, "__array_namespace__", None)
    if namespace is not None:
        return namespace().from_dlpack
    library = sys.modules.get(type(array).__module__.partition(".")[0])
    return getattr(library, "from_dlpack", None)


def _kind(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"
