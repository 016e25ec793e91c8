"""Options of the family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmad_fast.methods.options import MethodOptions, option


@dataclass(frozen=True)
class PatchColorOptions(MethodOptions):
    """What a detector is fitted with.

    Attributes:
        patch_size: Side of a patch in pixels.
        spread_floor: Smallest spread of a channel that a difference is divided by.
    """

    patch_size: Literal[16, 32] = option(16, "Side of a patch in pixels.", in_rows=True)
    spread_floor: float = option(0.1, "Smallest spread of a channel.", minimum=0.001, fit_only=True)

    @property
    def is_exact(self) -> bool:
        """A detector with finer patches is the published one."""
        return self.patch_size == 16
