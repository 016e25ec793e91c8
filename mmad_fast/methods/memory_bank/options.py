"""Options of the families with memory banks. Both halves read them; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.options import MethodOptions, constant, option

BANK_PREFIX = "bank."
"""Of the tensors that hold the memory banks: "bank.point" (M, C)."""

EIGHT_BIT_STEP = 2 / 255
"""What rounding differences become in maps that are blurred in 8 bits. They move a bank's blurred
map by one grey level, not more: 1/255 of the bank's largest distance before the blur. Differences
are relative to the maximum of the answer, which the blur lowers: peaks of half that height are
allowed for."""


@dataclass(frozen=True)
class BankOptions(MethodOptions):
    """How a bank's answer becomes a score and a map.

    Attributes:
        reweighting: Of the image score; README.md has the formulas.
        blur: Of the maps: "pil8bit" (published, 8 bits) or "float".
        bank_dtype: Of the banks' rows: "float32", or "float16", which approximates.
        weight_epsilon: Added to the denominator of the weight, for reweighting="code".
        distance_divisor: Of the largest distance and the neighbours' distances, likewise.
    """

    reweighting: Literal["code", "paper", "none"] = option(
        "code", "Of the image score.", in_rows=True
    )
    blur: Literal["pil8bit", "float"] = option(
        "pil8bit", "Of the maps: in 8 bits as published, or in float.", in_rows=True
    )
    bank_dtype: str = option(
        "float32", "Of the banks; float16 approximates, at half the memory.",
        choices=("float32", "float16"), in_rows=True,
    )  # fmt: skip
    weight_epsilon: float = constant(0.0)
    distance_divisor: float = constant(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite({"weight_epsilon": self.weight_epsilon})
        check_finite({"distance_divisor": self.distance_divisor}, above_zero=True)

    @property
    def map_step(self) -> float:
        """What the anomaly maps of equal answers may differ by beyond rounding."""
        return EIGHT_BIT_STEP if self.blur == "pil8bit" else 0.0


def check_finite(numbers: dict[str, float], *, above_zero: bool = False) -> None:
    """Raises InvalidInputError where a number, given by name, is not finite, or not above 0."""
    for name, value in numbers.items():
        if not math.isfinite(value) or (above_zero and value <= 0):
            wanted = "a finite number above 0" if above_zero else "a finite number"
            raise InvalidInputError(f"{name} is {value}; it must be {wanted}")
