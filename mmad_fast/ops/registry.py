"""Which backend of an op runs here, and why the others do not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from mmad_fast.errors import BackendUnavailableError

logger = logging.getLogger("mmad_fast")

NOT_WRITTEN = (
    "no kernel in this version: only the CPU kernel is written; take backend='cpu' or 'auto'"
)
"""Why an op lacks a backend that would suit it."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: "reference", "cpu", "cuda", "triton" or "torch".
        function: The implementation; takes validated arrays.
        refusal: Returns None where the backend can run, else the reason: what was found, what is
            needed, what to do.
        device: Where its arrays lie: "cpu" (NumPy) or "cuda" (on a CUDA device).
    """

    name: str
    function: Callable[..., Any]
    refusal: Callable[[], str | None]
    device: str = "cpu"


def always() -> str | None:
    """The refusal of a backend that runs everywhere."""
    return None


@cache
def kernels_refusal() -> str | None:
    """None if the compiled kernels can be imported, else why not."""
    try:
        import mmad_fast._kernels  # noqa: F401
    except ImportError as error:
        return (
            f"the compiled kernels do not load ({error}); reinstall with: "
            "pip install --force-reinstall --no-deps mmad-fast"
        )
    return None


class Op:
    """The backends of one op, in the order in which "auto" tries them.

    Attributes:
        name: The op's stem.
        backends: The implementations.
        absent: Why there is no implementation, by backend name.
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
        self._told = False

    def resolve(self, backend: str = "auto") -> Backend:
        """The backend that runs: the named one, or with "auto" the first that can.

        Raises:
            BackendUnavailableError: unknown name, or the named backend cannot run here.
        """
        if backend == "auto":
            return self._resolve_auto()
        for candidate in self.backends:
            if candidate.name == backend:
                reason = candidate.refusal()
                if reason is not None:
                    raise BackendUnavailableError(
                        f"{self.name}: backend {backend!r} cannot run here: {reason}"
                    )
                return candidate
        if backend in self.absent:
            raise BackendUnavailableError(
                f"{self.name}: backend {backend!r} cannot run here: {self.absent[backend]}"
            )
        known = ", ".join(["auto", *(candidate.name for candidate in self.backends)])
        raise BackendUnavailableError(
            f"{self.name}: there is no backend {backend!r}; known are {known}"
        )

    def _resolve_auto(self) -> Backend:
        reasons: list[str] = []
        for candidate in self.backends:
            reason = candidate.refusal()
            if reason is None:
                if reasons and not self._told:
                    self._told = True
                    logger.warning(
                        "%s runs on %r because: %s", self.name, candidate.name, "; ".join(reasons)
                    )
                return candidate
            reasons.append(f"{candidate.name}: {reason}")
        raise BackendUnavailableError(f"{self.name}: no backend can run: {'; '.join(reasons)}")
