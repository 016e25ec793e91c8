"""The constants of an M3DM detector, as the manifest holds them. Both halves read it; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.backbone_parameters import BackboneParameters

BANKS = ("point", "rgb", "fusion")
"""All memory banks, in the order of the public code's score columns."""

UFF_POINT_GRAPH = "uff_point"
UFF_RGB_GRAPH = "uff_rgb"
"""Graphs of the feature fusion."""

BANK_PREFIX = "bank."
"""Of the tensors that hold the memory banks: "bank.point" (M, C)."""

PATCH_GRIDS: dict[str, int | None] = {"56x56": 56, "28x28": 28, "groups": None}
"""Side of the grid of point patches by `point_patches`; None: the point groups are the patches."""

SINGLE_BANK_EPSILON = 1e-5
TWO_BANKS_DIVISOR = 1000.0


@dataclass(frozen=True)
class M3dmParameters(BackboneParameters):
    """What an M3DM detector was fitted with.

    Attributes:
        banks: The memory banks that are searched, a part of BANKS in its order.
        decision: How the banks' answers become one: "single" (there is one), "sum", or "svm" (two
            linear one-class SVMs). All three are the weighted sums below.
        point_patches: "56x56", "28x28", or "groups": the point groups themselves are the patches.
        uses_uff: The fused patch passes the feature fusion's networks; else it is the plain
            concatenation.
        bank_norm: "published" or "own", as the fit was asked.
        bank_scales: (mean, std) by bank: a feature x is compared as (x - mean) / std.
        reweighting: Of the image score: "code", "paper" or "none"; README.md has the formulas.
        weight_epsilon: Added to the denominator of the weight, for "code".
        distance_divisor: Of the largest distance and the neighbours' distances, for "code".
        blur: Of the maps: "pil8bit" (published, 8 bits) or "float".
        bank_dtype: Of the banks' rows: "float32", or "float16", which approximates.
        score_weights: By bank: the image score is sum_b score_weights[b] s_b + score_offset.
            Lambdas and weights of the SVM in one. A bank that is left out has weight 1.
        map_weights: By bank, of the maps, likewise.
        score_offset: See score_weights.
        map_offset: Added to every pixel of the map.
    """

    KNOWN_VALUES: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        **BackboneParameters.KNOWN_VALUES,
        "decision": ("single", "sum", "svm"),
        "point_patches": tuple(PATCH_GRIDS),
        "bank_norm": ("published", "own"),
        "reweighting": ("code", "paper", "none"),
        "blur": ("pil8bit", "float"),
        "bank_dtype": ("float32", "float16"),
        "uses_uff": (False, True),
    }

    banks: tuple[str, ...] = BANKS
    decision: str = "svm"
    point_patches: str = "56x56"
    uses_uff: bool = True
    bank_norm: str = "published"
    bank_scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reweighting: str = "code"
    weight_epsilon: float = 0.0
    distance_divisor: float = 1.0
    blur: str = "pil8bit"
    bank_dtype: str = "float32"
    score_weights: Mapping[str, float] = field(default_factory=dict)
    map_weights: Mapping[str, float] = field(default_factory=dict)
    score_offset: float = 0.0
    map_offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_banks(self.banks)
        if self.decision == "single" and len(self.banks) > 1:
            raise InvalidInputError(
                f"decision is 'single' and there are the banks {', '.join(self.banks)}; give one "
                "bank, or decision='sum' or 'svm'"
            )
        for name, filling in (
            ("bank_scales", (0.0, 1.0)),
            ("score_weights", 1.0),
            ("map_weights", 1.0),
        ):
            by_bank = dict(getattr(self, name))
            unknown = [bank for bank in by_bank if bank not in self.banks]
            if unknown:
                raise InvalidInputError(
                    f"{name} has {', '.join(map(repr, unknown))}; the banks are "
                    f"{', '.join(self.banks)}"
                )
            filled = {bank: by_bank.get(bank, filling) for bank in self.banks}
            object.__setattr__(self, name, filled)
        self._check_patches()
        self._check_numbers()

    def _check_patches(self) -> None:
        grid = self.patch_grid
        if "fusion" not in self.banks:
            return
        if grid is None:
            raise InvalidInputError(
                "point_patches is 'groups' and there is a fusion bank, whose patches need a grid; "
                "choose point_patches='56x56' or '28x28', or a method without that bank"
            )
        if grid % self.token_grid:
            raise InvalidInputError(
                f"the {grid}x{grid} patches are no multiple of the {self.token_grid}x"
                f"{self.token_grid} RGB tokens that they are fused with; choose another "
                "point_patches or RGB backbone"
            )

    def _check_numbers(self) -> None:
        positive: dict[str, float] = {"distance_divisor": self.distance_divisor}
        numbers = {
            "weight_epsilon": self.weight_epsilon,
            "score_offset": self.score_offset,
            "map_offset": self.map_offset,
        }
        for bank in self.banks:
            numbers[f"bank_scales[{bank!r}][0]"], positive[f"bank_scales[{bank!r}][1]"] = (
                self.bank_scales[bank]
            )
            numbers[f"score_weights[{bank!r}]"] = self.score_weights[bank]
            numbers[f"map_weights[{bank!r}]"] = self.map_weights[bank]
        for name, value in {**numbers, **positive}.items():
            if not math.isfinite(value) or (name in positive and value <= 0):
                wanted = "a finite number above 0" if name in positive else "a finite number"
                raise InvalidInputError(f"{name} is {value}; it must be {wanted}")

    @property
    def is_exact(self) -> bool:
        """The detector gives the published pipeline's answer, up to rounding."""
        return self.precision == "float32" and self.bank_dtype == "float32"

    @property
    def reads_rgb(self) -> bool:
        """A bank holds RGB features."""
        return "rgb" in self.banks or "fusion" in self.banks

    @property
    def reads_points(self) -> bool:
        """A bank holds point features."""
        return "point" in self.banks or "fusion" in self.banks

    @property
    def fuses(self) -> bool:
        """Patches pass the feature fusion's networks."""
        return self.uses_uff and "fusion" in self.banks

    @property
    def patch_grid(self) -> int | None:
        """Side of the grid of point patches; None where the point groups are the patches."""
        return PATCH_GRIDS[self.point_patches]


def reweighting_constants(banks: tuple[str, ...], reweighting: str) -> tuple[float, float]:
    """(weight_epsilon, distance_divisor) of a method with these banks.

    Source: the public code of M3DM; method facts 5.4.
    """
    if reweighting != "code":
        return 0.0, 1.0
    epsilon = SINGLE_BANK_EPSILON if banks in (("rgb",), ("point",)) else 0.0
    return epsilon, TWO_BANKS_DIVISOR if len(banks) == 2 else 1.0


def _check_banks(banks: tuple[str, ...]) -> None:
    if not banks or tuple(bank for bank in BANKS if bank in banks) != tuple(banks):
        raise InvalidInputError(
            f"banks is {banks!r}; it must be one or more of {', '.join(BANKS)}, in this order"
        )
