"""Which backend of an op runs here, and why the others do not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mmad_fast.errors import BackendUnavailableError
from mmad_fast.gpu.device_arrays import is_device_array

logger = logging.getLogger("mmad_fast")

ARRAYS = {"cpu": "NumPy arrays", "cuda": "arrays on a CUDA device"}
"""What lies on a backend's device, in words."""


def device_of(array: Any) -> str:
    """Where the array of a call lies: a key of ARRAYS."""
    return "cuda" if is_device_array(array) else "cpu"


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: "reference", "cpu", "cuda", "triton" or "torch".
        function: The implementation; takes validated arrays.
        refusal: Returns None where the backend can run, else the reason: what was found, what is
            needed, what to do.
        device: Where its arrays lie: a key of ARRAYS.
    """

    name: str
    function: Callable[..., Any]
    refusal: Callable[[], str | None]
    device: str = "cpu"


def always() -> str | None:
    """The refusal of a backend that runs everywhere."""
    return None


class Op:
    """The backends of one op, in the order in which "auto" tries them.

    Attributes:
        name: The op's stem.
        backends: The implementations.
        absent: Why there is no implementation, by backend name. All of these would take arrays on a
            CUDA device.
    """

    def __init__(
        self,
        name: str,
        backends: tuple[Backend, ...],
        *,
        absent: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self.backends = backends
        self.absent = absent
        self._told: set[str] = set()

    def backends_of(self, device: str) -> tuple[Backend, ...]:
        """Those that take the arrays of a device, in the order in which "auto" tries them."""
        return tuple(backend for backend in self.backends if backend.device == device)

    def resolve(self, backend: str = "auto", *, device: str = "cpu") -> Backend:
        """The backend that runs: the named one, or with "auto" the first that can.

        Arrays on a CUDA device are never brought to the host to compute there.

        Args:
            backend: A name, or "auto".
            device: Where the arrays of the call lie: a key of ARRAYS.

        Raises:
            BackendUnavailableError: unknown name, the named backend cannot run here or takes arrays
                of the other device, or none can run.
        """
        if backend == "auto":
            return self._resolve_auto(device)
        for candidate in self.backends:
            if candidate.name == backend:
                return self._resolve_named(candidate, device)
        if isinstance(backend, str) and backend in self.absent:
            raise BackendUnavailableError(
                f"{self.name}: backend {backend!r} cannot run here: {self.absent[backend]}"
            )
        known = ", ".join(["auto", *(candidate.name for candidate in self.backends)])
        raise BackendUnavailableError(
            f"{self.name}: there is no backend {backend!r}; known are {known}"
        )

    def _resolve_named(self, backend: Backend, device: str) -> Backend:
        if backend.device != device:
            names = ", ".join(["auto", *(other.name for other in self.backends_of(device))])
            raise BackendUnavailableError(
                f"{self.name}: backend {backend.name!r} takes {ARRAYS[backend.device]} and was "
                f"given {ARRAYS[device]}; those go to {names}"
            )
        reason = backend.refusal()
        if reason is not None:
            raise BackendUnavailableError(
                f"{self.name}: backend {backend.name!r} cannot run here: {reason}"
            )
        return backend

    def _resolve_auto(self, device: str) -> Backend:
        reasons: list[str] = []
        for candidate in self.backends_of(device):
            reason = candidate.refusal()
            if reason is None:
                if reasons and device not in self._told:
                    self._told.add(device)
                    logger.warning(
                        "%s runs on %r because: %s", self.name, candidate.name, "; ".join(reasons)
                    )
                return candidate
            reasons.append(f"{candidate.name}: {reason}")
        if device == "cpu":
            raise BackendUnavailableError(f"{self.name}: no backend can run: {'; '.join(reasons)}")
        reasons.extend(f"{name}: {reason}" for name, reason in self.absent.items())
        raise BackendUnavailableError(
            f"{self.name}: no backend can run on {ARRAYS[device]}: {'; '.join(reasons)}; or bring "
            "them to the host and pass NumPy arrays"
        )
