"""The CUDA driver and one device's primary context, through cuda-bindings: needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mmad_fast.errors import BackendUnavailableError, MissingDependencyError, MmadFastError


class DriverError(MmadFastError, RuntimeError):
    """The CUDA driver, or a library on top of it, refused a call."""


@dataclass(frozen=True)
class Advice:
    """What the errors of a user of the driver say.

    Attributes:
        purpose: What needs cuda-bindings, as in "launching kernels needs cuda-bindings".
        install: The command that installs it.
        instead: What to take where there is no device, e.g. "backend='cpu'".
        on_failure: What to do after a refused call, besides a look at nvidia-smi.
    """

    purpose: str
    install: str
    instead: str
    on_failure: str


class DeviceContext:
    """The primary context of a device, which torch and the CUDA runtime use too.

    Calls may come from any thread: it is made current for the time of a `with current()`.

    Attributes:
        driver: cuda.bindings.driver, or what stands in for it.
        sm: The device's compute capability, as 89.
    """

    def __init__(self, device: int, advice: Advice, *, driver: Any = None) -> None:
        """Starts the driver; the context is had by `retain`.

        Args:
            device: The CUDA device's index.
            advice: What the errors say.
            driver: Stands in for cuda.bindings.driver.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            BackendUnavailableError: there is no driver or no such device.
            DriverError: the driver refused a call.
        """
        self._advice = advice
        self._context: Any = None
        self.driver = import_driver(advice) if driver is None else driver
        self._start(device)
        self._device = self.call("cuDeviceGet", device)
        self.sm = compute_capability(
            self.driver, lambda name: self.call("cuDeviceGetAttribute", name, self._device)
        )

    @property
    def is_retained(self) -> bool:
        """Between `retain` and `release`."""
        return self._context is not None

    def retain(self) -> None:
        """Takes a share of the primary context; the driver counts them."""
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)

    def release(self) -> None:
        """Gives the share back."""
        if self._context is not None:
            self._context = None
            self.call("cuDevicePrimaryCtxRelease", self._device)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the context this thread's current one; afterwards it is again what it was."""
        self.call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent")

    def call(self, function: str, *arguments: Any, doing: str = "") -> Any:
        """The value that a function of the driver returns besides its code.

        Raises:
            DriverError: the code is not CUDA_SUCCESS.
        """
        code, *values = getattr(self.driver, function)(*arguments)
        if code != self.driver.CUresult.CUDA_SUCCESS:
            of = f" for {doing}" if doing else ""
            raise DriverError(
                f"{function} failed{of}: {self._describe(code)}; check with `nvidia-smi` that the "
                f"device works and has memory left{self._advice.on_failure}"
            )
        return values[0] if values else None

    def _start(self, device: int) -> None:
        """Initialises the driver.

        Raises:
            BackendUnavailableError: there is no driver or no such device.
        """
        advice = f"install NVIDIA's driver, or take {self._advice.instead}"
        try:
            (code,) = self.driver.cuInit(0)
        except RuntimeError as error:  # libcuda.so.1 is not found
            raise BackendUnavailableError(f"no CUDA driver: {error}; {advice}") from error
        if code != self.driver.CUresult.CUDA_SUCCESS:
            raise BackendUnavailableError(
                f"the CUDA driver does not start: {self._describe(code)}; {advice}"
            )
        count = self.call("cuDeviceGetCount")
        if not 0 <= device < count:
            raise BackendUnavailableError(
                f"there is no CUDA device {device}: the driver has {count}; {advice}"
            )

    def _describe(self, code: Any) -> str:
        texts = []
        for function in (self.driver.cuGetErrorName, self.driver.cuGetErrorString):
            known, text = function(code)
            if known == self.driver.CUresult.CUDA_SUCCESS:
                texts.append(text.decode())
        return ": ".join(texts) or f"error {int(code)}"


def compute_capability(driver: Any, attribute: Callable[[Any], int]) -> int:
    """A device's, as 89 for 8.9; `attribute` gives the value of one of its attributes."""
    names = driver.CUdevice_attribute
    major = attribute(names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
    return 10 * major + attribute(names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)


def import_driver(advice: Advice) -> Any:
    """cuda.bindings.driver.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingDependencyError(
            f"{advice.purpose} needs cuda-bindings, which does not load here ({error}); install "
            f"it with: {advice.install}"
        ) from error
    return driver
