"""DLPack capsules without a library: where the array in one lies, and new ones.

Source: dlpack.h 1.1 and "Python Specification for DLPack".
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

CPU, CUDA, CUDA_MANAGED = 1, 2, 13
"""DLDeviceType: where an array lies."""

_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}  # DLDataTypeCode
_CODES = {kind: code for code, kind in _KINDS.items()}


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("manager_context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _VersionedTensor(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class Layout(NamedTuple):
    """What a capsule says of its array.

    Attributes:
        pointer: Address of the first element.
        shape: Length of each axis.
        strides: In elements; None if C-contiguous.
        dtype: NumPy's name, or "bfloat16".
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str


_UNVERSIONED, _VERSIONED = b"dltensor", b"dltensor_versioned"
_api = ctypes.pythonapi
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
# For a capsule that is being destroyed: py_object would count references to it.
_is_valid_at = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_address_at = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", _api)
)


def read_capsule(capsule: Any) -> Layout:
    """Where the array of a capsule lies. The array lives as long as the capsule: keep it; its own
    destructor calls the deleter, since nobody takes the array over.

    Raises:
        ValueError: no DLPack capsule, one that was taken over, a major version other than 1, or
            elements that are no plain numbers.
    """
    if _is_valid(capsule, _VERSIONED):
        versioned = _VersionedTensor.from_address(_address(capsule, _VERSIONED))
        if versioned.major != 1:
            raise ValueError(f"the capsule is of DLPack {versioned.major}; version 1 is known")
        tensor = versioned.tensor
    elif _is_valid(capsule, _UNVERSIONED):
        tensor = _ManagedTensor.from_address(_address(capsule, _UNVERSIONED)).tensor
    else:
        raise ValueError("__dlpack__() returned no DLPack capsule, or one that was used before")
    element = tensor.dtype
    if element.code not in _KINDS or element.lanes != 1:
        raise ValueError(
            f"DLPack type (code {element.code}, {element.bits} bits, {element.lanes} lanes) is "
            "none of integers and floats"
        )
    return Layout(
        (tensor.data or 0) + tensor.byte_offset,
        tuple(tensor.shape[: tensor.ndim]),
        tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None,
        f"{_KINDS[element.code]}{element.bits}",
    )


_exported: dict[int, tuple[Any, ...]] = {}
"""What each capsule of ours keeps alive, by the address of its tensor, until its deleter runs."""


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _delete(address: int) -> None:
    _exported.pop(address, None)


@_Destructor
def _destroy(capsule: int) -> None:
    if _is_valid_at(capsule, _UNVERSIONED):  # else somebody took the array over
        _delete(_address_at(capsule, _UNVERSIONED))


def make_capsule(
    pointer: int, shape: tuple[int, ...], dtype: str, location: tuple[int, int], owner: Any
) -> Any:
    """A new capsule of a C-contiguous array.

    Args:
        pointer: Address of the first element.
        shape: Length of each axis.
        dtype: NumPy's name of an integer or float type, or "bfloat16".
        location: (DLDeviceType, device).
        owner: Kept alive until the consumer deletes the array.
    """
    kind = dtype.rstrip("0123456789")
    extent = (ctypes.c_int64 * len(shape))(*shape)
    managed = _ManagedTensor()
    managed.tensor.data = pointer
    managed.tensor.device = _Device(*location)
    managed.tensor.ndim = len(shape)
    managed.tensor.dtype = _DataType(_CODES[kind], int(dtype[len(kind) :]), 1)
    managed.tensor.shape = extent
    managed.deleter = ctypes.cast(_delete, ctypes.c_void_p)
    address = ctypes.addressof(managed)
    _exported[address] = (managed, extent, owner)
    return _new(address, _UNVERSIONED, _destroy)
