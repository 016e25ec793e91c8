"""Arrays of any library on a CUDA device: fake ones around torch tensors on the test device."""

from __future__ import annotations

import gc
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gpu_test_device import TEST_DEVICE
from ops.cases import uniform_cloud

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu import cuda_kernels, device_arrays
from mmad_fast.gpu.device_arrays import is_device_array, read_device_array
from mmad_fast.gpu.device_buffer import DeviceBuffer
from mmad_fast.gpu.dlpack import CPU, CUDA, CUDA_MANAGED, make_capsule, read_capsule
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import inverse_distance_weights
from mmad_fast.ops.knn_grouping import knn_grouping

POINTS = uniform_cloud(50)
LOCATION = CUDA if TEST_DEVICE == "cuda" else CPU


def tensor_of(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C")).to(TEST_DEVICE)


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interface without DLPack does not say on which device it is."""
    monkeypatch.setattr(cuda_kernels, "num_devices", lambda: 1)


class Interface:
    """A bare producer with __cuda_array_interface__, like a Numba device array."""

    def __init__(self, array: Any, **entries: Any) -> None:
        array = np.asarray(array)
        self.tensor = tensor_of(array)
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.tensor.data_ptr(), False),
        } | entries


class Exporter:
    """A bare producer with DLPack; says that it is where it is told to be."""

    def __init__(
        self, array: Any, location: int = LOCATION, device: int = 0, *, versioned: bool = False
    ) -> None:
        self.tensor = array if isinstance(array, torch.Tensor) else tensor_of(array)
        self._where = location, device
        self._max_version = (1, 0) if versioned else None
        self.asked: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._where

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.asked.append(stream)
        stream = stream if self.tensor.is_cuda else None
        return self.tensor.__dlpack__(stream=stream, max_version=self._max_version)


class LibraryArray(Exporter):
    """An array of a library that takes others over, like CuPy's or JAX's."""

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda other: LibraryArray(torch.from_dlpack(other)))


def read(array: Any, **options: Any) -> Any:
    return read_device_array(array, "points", **({"shape": (None, 3)} | options))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (POINTS, False),
        (POINTS[0, 0], False),
        ([[0.0, 0.0, 0.0]], False),
        (None, False),
        (torch.ones(3, 3), False),
        (Exporter(POINTS, CPU), False),
        (Exporter(POINTS, CUDA), True),
        (Exporter(POINTS, CUDA_MANAGED), True),
        (Interface(POINTS), True),
    ],
)
def test_what_counts_as_a_device_array(array: Any, expected: bool) -> None:
    assert is_device_array(array) is expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [({}, 0), ({"stream": None}, 0), ({"stream": 1}, 0), ({"stream": 66}, 66)],
)
def test_an_interface_is_read_with_its_stream(stream: dict[str, Any], expected: int) -> None:
    producer = Interface(POINTS, strides=(12, 4), **stream)
    found = read(producer)
    assert (found.pointer, found.shape, found.dtype) == (
        producer.tensor.data_ptr(),
        (50, 3),
        "float32",
    )
    assert (found.device, found.stream, found.owner) == (0, expected, producer)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "int32", "uint8"])
def test_a_capsule_is_read(dtype: str, versioned: bool) -> None:
    tensor = torch.arange(24, device=TEST_DEVICE).to(getattr(torch, dtype)).reshape(8, 3)
    producer = Exporter(tensor[2:], CUDA, versioned=versioned)
    found = read(producer, dtypes=(dtype,))
    assert (found.pointer, found.shape, found.dtype) == (tensor[2:].data_ptr(), (6, 3), dtype)
    assert producer.asked == [1]


def test_a_capsule_is_asked_for_the_stream_of_the_call() -> None:
    first = read(Interface(POINTS, stream=66))
    producer = Exporter(POINTS, CUDA_MANAGED)
    asked: list[Any] = producer.asked
    if TEST_DEVICE == "cuda":
        producer.tensor = producer.tensor.cpu()  # torch knows no stream 66
    assert read(producer, like=first).stream == 66
    assert asked == [66]


def test_an_interface_without_a_stream_gives_way_to_dlpack() -> None:
    both = Exporter(POINTS, CUDA)
    both.__cuda_array_interface__ = {"version": 2}  # type: ignore[attr-defined]
    assert read(both).pointer == both.tensor.data_ptr()
    assert both.asked == [1]


class Given:
    """A producer of the given capsule."""

    def __init__(self, capsule: Any) -> None:
        self._capsules = [capsule]

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, 0

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self._capsules.pop()


def test_a_capsule_keeps_its_array_until_the_record_goes() -> None:
    owner = Exporter(POINTS)
    gone = weakref.ref(owner)
    found = read(Given(make_capsule(1 << 20, (4, 3), "float32", (CUDA, 0), owner)))
    del owner
    gc.collect()
    assert gone() is not None
    assert found.pointer == 1 << 20
    del found
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("producer", "words"),
    [
        (Interface(POINTS.T.copy().T, strides=(4, 200)), r"has strides \(1, 50\) .*C-contiguous"),
        (Exporter(tensor_of(POINTS.T).T, CUDA), r"has strides \(1, 50\) .*ascontiguousarray"),
        (Interface(POINTS, mask=POINTS), "points has a mask"),
        (Interface(POINTS, typestr=">f4"), "byte order"),
        (Interface(POINTS, typestr="<f8"), "dtype float64; it must be float32: convert it"),
        (Exporter(tensor_of(POINTS) > 0, CUDA), r"cannot be read: DLPack type \(code 6, 8 bits"),
        (Exporter(POINTS[0], CUDA), r"shape \(3,\); it must be \(any, 3\)"),
        (POINTS, r"points is a numpy.ndarray; all arrays of one call must be on one CUDA device"),
    ],
)
def test_what_cannot_be_read_is_refused(producer: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        read(producer)


def test_a_capsule_that_was_used_is_refused() -> None:
    capsule = tensor_of(POINTS).__dlpack__()
    torch.from_dlpack(capsule)
    with pytest.raises(ValueError, match="no DLPack capsule, or one that was used before"):
        read_capsule(capsule)


def test_axes_of_length_one_and_empty_arrays_are_contiguous() -> None:
    assert read(Interface(POINTS[:1], strides=(999, 4))).shape == (1, 3)
    assert read(Interface(POINTS[:0], strides=(7, 7), data=(0, False))).pointer == 0


def test_arrays_of_a_call_must_be_on_one_device() -> None:
    first = read_device_array(Exporter(POINTS, CUDA, 0), "points", shape=(None, 3))
    with pytest.raises(
        InvalidInputError, match="points is on CUDA device 0 and centers on CUDA device 1; all"
    ):
        read_device_array(Exporter(POINTS, CUDA, 1), "centers", shape=(None, 3), like=first)


def test_arrays_of_a_call_must_be_on_one_stream() -> None:
    first = read(Interface(POINTS, stream=66))
    assert read(Interface(POINTS, stream=None), like=first).stream == 66
    with pytest.raises(InvalidInputError, match="on stream 0x42 and points on stream 0x43"):
        read(Interface(POINTS, stream=67), like=first)


def test_an_interface_that_hides_its_device_is_refused_among_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_kernels, "num_devices", lambda: 2)
    with pytest.raises(InvalidInputError, match="does not say on which of 2 CUDA devices it is"):
        read(Interface(POINTS))


class Kernels:
    """Memory on the host, and what was done with it."""

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.waits: list[int] = []

    def allocate(self, device: int, size: int, stream: int) -> int:
        block = np.zeros(size, np.uint8)
        self.blocks[block.ctypes.data] = block
        return int(block.ctypes.data)

    def free(self, device: int, pointer: int, stream: int) -> None:
        del self.blocks[pointer]

    def copy_to_host(self, device: int, pointer: int, size: int, stream: int) -> bytes:
        self.waits.append(stream)
        return self.blocks[pointer][:size].tobytes()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    recorder = Kernels()
    monkeypatch.setattr(cuda_kernels, "kernels", lambda: recorder)
    return recorder


def test_a_buffer_lives_as_long_as_anything_that_reads_it(kernels: Kernels) -> None:
    buffer = DeviceBuffer.allocate((2, 3), "float32", 0, 0, location=CPU)
    content = kernels.blocks[buffer.pointer]
    view = torch.from_dlpack(buffer)
    view[:] = torch.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(buffer.copy_to_host(), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(content.view(np.float32), np.arange(6))
    assert len(buffer) == 2
    del buffer
    gc.collect()
    assert len(kernels.blocks) == 1
    part = view[1]
    del view
    gc.collect()
    assert part.tolist() == [3, 4, 5]
    del part
    gc.collect()
    assert kernels.blocks == {}


def test_a_capsule_that_nobody_takes_releases_its_buffer(kernels: Kernels) -> None:
    buffer = DeviceBuffer.allocate((2,), "int64", 0, 0)
    capsule = buffer.__dlpack__()
    assert read_capsule(capsule) == (buffer.pointer, (2,), None, "int64")
    del buffer
    gc.collect()
    assert len(kernels.blocks) == 1
    del capsule
    gc.collect()
    assert kernels.blocks == {}


@pytest.mark.parametrize(("asked", "waits"), [(7, []), (-1, []), (8, [7]), (1, [7]), (None, [7])])
def test_another_stream_waits_for_a_buffer(
    asked: int | None, waits: list[int], kernels: Kernels
) -> None:
    DeviceBuffer.allocate((2,), "int64", 0, 7).__dlpack__(stream=asked)
    assert kernels.waits == waits


def test_a_buffer_is_read_by_its_interface(kernels: Kernels) -> None:
    buffer = DeviceBuffer.allocate((4, 3), "float32", 2, 7)
    found = read(buffer)
    assert (found.pointer, found.device, found.stream) == (buffer.pointer, 2, 7)
    assert DeviceBuffer.allocate((0, 3), "int64", 0, 0).copy_to_host().shape == (0, 3)
    with pytest.raises(BufferError, match="without a copy"):
        buffer.__dlpack__(copy=True)
    with pytest.raises(InvalidInputError, match="no bfloat16"):
        DeviceBuffer(1, (1,), "bfloat16", 0, 0).copy_to_host()


@pytest.mark.usefixtures("pretend_device")
@pytest.mark.parametrize("producer", [Interface, Exporter])
def test_bare_producers_get_buffers_that_the_ops_take_again(producer: type) -> None:
    points = _pretended(producer(POINTS))
    chosen = farthest_point_sampling(points, 5)
    indices, groups = knn_grouping(points, chosen, 4)
    for found in (chosen, indices, groups):
        assert isinstance(found, DeviceBuffer)
    host_chosen = farthest_point_sampling(POINTS, 5)
    expected = knn_grouping(POINTS, host_chosen, 4)
    np.testing.assert_array_equal(chosen.copy_to_host(), host_chosen)
    np.testing.assert_array_equal(indices.copy_to_host(), expected.indices)
    np.testing.assert_array_equal(groups.copy_to_host(), expected.groups)


@pytest.mark.usefixtures("pretend_device")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(
    ("producer", "kind"),
    [(Interface, DeviceBuffer), (Exporter, DeviceBuffer), (LibraryArray, LibraryArray)],
)
def test_results_are_of_the_producers_kind(producer: type, kind: type, backend: str) -> None:
    points, centers = (_pretended(producer(array)) for array in (POINTS, POINTS[:7]))
    expected = inverse_distance_weights(POINTS, POINTS[:7])
    found = inverse_distance_weights(points, centers, backend=backend)
    for got, want in zip(found, expected, strict=True):
        assert isinstance(got, kind)
        np.testing.assert_array_equal(torch.from_dlpack(_host_view(got)).cpu().numpy(), want)


def _pretended(producer: Any) -> Any:
    """An interface does not say that it is in host memory: here it must, for torch to read it."""
    if isinstance(producer, Interface) and TEST_DEVICE != "cuda":
        producer.__dlpack_device__ = lambda: (CPU, 0)
    return producer


def _host_view(array: Any) -> Any:
    return array.tensor if isinstance(array, LibraryArray) else array


def test_the_library_of_an_array_takes_results_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_arrays._find_from_dlpack(Exporter(POINTS)) is None
    library = SimpleNamespace(from_dlpack=lambda other: ("taken over", other))
    monkeypatch.setitem(sys.modules, "old_library", library)
    kind = type("ndarray", (Exporter,), {"__module__": "old_library.core"})
    assert device_arrays._find_from_dlpack(kind(POINTS))(1) == ("taken over", 1)
