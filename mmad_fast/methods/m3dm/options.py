"""Options of M3DM. Both halves read them; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.branches.point_groups.options import PointGroupOptions
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.methods.memory_bank.options import BankOptions, check_finite
from mmad_fast.methods.options import constant, option

BANKS = ("point", "rgb", "fusion")
"""All memory banks, in the order of the public code's score columns."""

UFF_POINT_GRAPH = "uff_point"
UFF_RGB_GRAPH = "uff_rgb"
"""Graphs of the feature fusion."""

PATCH_GRIDS: dict[str, int | None] = {"56x56": 56, "28x28": 28, "groups": None}
"""Side of the grid of point patches by `point_patches`; None: the point groups are the patches."""

SINGLE_BANK_EPSILON = 1e-5
TWO_BANKS_DIVISOR = 1000.0


@dataclass(frozen=True)
class M3dmOptions(BankOptions, VitTokenOptions, PointGroupOptions):
    """What an M3DM detector is fitted with.

    Attributes:
        point_patches: "56x56", "28x28", or "groups": the point groups themselves are the patches,
            which leaves no fusion bank.
        uff: The feature fusion of the fusion bank: "train" (on the training scans), "none" (plain
            concatenation), or a file: ours or an official checkpoint.
        uff_pairing, uff_schedule, uff_updates: How it is trained, see uff_training.UffRecipe.
        bank_norm: "published" (shared by the banks) or "own", see memory_banks.bank_scales.
        coreset: How many rows the banks keep, see memory_banks.coreset_sizes.
        dlf_scores: What the decision layer answers: "score_samples" (published) or
            "decision_function", which subtracts the machine's offset.
        dlf_schedule: How it is trained, see decision_layer.DecisionRecipe.
        point_lambda, rgb_lambda, fusion_lambda: Factors of each bank's scores and maps where there
            are several.
        banks: The memory banks that are searched, a part of BANKS in its order.
        decision: How the banks' answers become one: "single" (there is one), "sum", or "svm" (two
            linear one-class SVMs). All three are the weighted sums below.
        uses_uff: The fused patch passes the feature fusion's networks; else it is the plain
            concatenation.
        bank_scales: (mean, std) by bank: a feature x is compared as (x - mean) / std.
        score_weights: By bank: the image score is sum_b score_weights[b] s_b + score_offset.
            Lambdas and weights of the SVM in one. A bank that is left out has weight 1.
        map_weights: By bank, of the maps, likewise.
        score_offset: See score_weights.
        map_offset: Added to every pixel of the map.
    """

    point_patches: Literal["56x56", "28x28", "groups"] = option(
        "56x56", "The grid of point patches; groups: the point groups are the patches.",
        in_rows=True,
    )  # fmt: skip
    uff: str = option(
        "train", "Feature fusion: train, none (plain concatenation), or a FILE of its weights.",
        fit_only=True,
    )  # fmt: skip
    uff_pairing: Literal["aligned", "published_dump"] = option(
        "aligned", "Pairs that the feature fusion learns from.", fit_only=True, in_rows=True
    )
    uff_schedule: Literal["quick", "code", "paper"] = option(
        "quick", "How long the feature fusion is trained.", fit_only=True, in_rows=True
    )
    uff_updates: int | None = option(
        None, "Steps of the feature fusion's optimiser; default: the schedule's.",
        minimum=1, fit_only=True,
    )  # fmt: skip
    bank_norm: Literal["published", "own"] = option(
        "published", "Scale of the banks: shared as published, or each its own.", in_rows=True
    )
    coreset: Literal["code", "paper"] = option(
        "code", "How many rows the banks keep.", fit_only=True, in_rows=True
    )
    dlf_scores: Literal["score_samples", "decision_function"] = option(
        "score_samples", "What the decision layer answers.", fit_only=True, in_rows=True
    )
    dlf_schedule: Literal["code", "paper"] = option(
        "code", "How the decision layer is trained.", fit_only=True, in_rows=True
    )
    point_lambda: float = option(
        1.0, "Factor of the point bank.", above=0, fit_only=True, in_rows=True
    )
    rgb_lambda: float = option(0.1, "Factor of the RGB bank.", above=0, fit_only=True, in_rows=True)
    fusion_lambda: float = option(
        1.0, "Factor of the fusion bank.", above=0, fit_only=True, in_rows=True
    )
    banks: tuple[str, ...] = constant(BANKS)
    decision: Literal["single", "sum", "svm"] = constant("svm")
    uses_uff: bool = constant(True, choices=(False, True), in_rows=True)
    bank_scales: Mapping[str, tuple[float, float]] = constant(default_factory=dict)
    score_weights: Mapping[str, float] = constant(default_factory=dict)
    map_weights: Mapping[str, float] = constant(default_factory=dict)
    score_offset: float = constant(0.0)
    map_offset: float = constant(0.0)

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
        check_finite({"score_offset": self.score_offset, "map_offset": self.map_offset})
        for bank in self.banks:
            mean, std = self.bank_scales[bank]
            check_finite(
                {
                    f"bank_scales[{bank!r}][0]": mean,
                    f"score_weights[{bank!r}]": self.score_weights[bank],
                    f"map_weights[{bank!r}]": self.map_weights[bank],
                }
            )
            check_finite({f"bank_scales[{bank!r}][1]": std}, above_zero=True)

    def with_constants(self) -> M3dmOptions:
        """With what is known before the detector is fitted."""
        epsilon, divisor = reweighting_constants(self.banks, self.reweighting)
        weights = {} if len(self.banks) == 1 else self.lambdas
        return replace(
            super().with_constants(),
            uses_uff="fusion" in self.banks and self.uff != "none",
            weight_epsilon=epsilon,
            distance_divisor=divisor,
            score_weights=weights,
            map_weights=weights,
        )

    def without_effect(self) -> dict[str, str]:
        """The options that the method has no use for."""
        idle = [
            f"{bank}_lambda" for bank in BANKS if len(self.banks) == 1 or bank not in self.banks
        ]
        if self.banks == ("rgb",):
            idle.append("point_patches")
        if "fusion" not in self.banks:
            idle.append("uff")
        if not self.uses_uff:
            idle += ["uff_pairing", "uff_schedule", "uff_updates"]
        if self.decision != "svm":
            idle += ["dlf_scores", "dlf_schedule"]
        uff = self.uff if "fusion" in self.banks else "none"
        why = f"banks: {', '.join(self.banks)}; decision: {self.decision}; uff: {uff}"
        return dict.fromkeys(idle, why)

    @property
    def is_exact(self) -> bool:
        """The detector gives the published pipeline's answer, up to rounding."""
        return self.precision == "fp32" and self.bank_dtype == "float32"

    @property
    def lambdas(self) -> dict[str, float]:
        """Factor of each bank's scores and maps."""
        return {bank: getattr(self, f"{bank}_lambda") for bank in self.banks}

    @property
    def trains_uff(self) -> bool:
        """A fit trains the feature fusion on its own scans."""
        return "fusion" in self.banks and self.uff == "train"

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
