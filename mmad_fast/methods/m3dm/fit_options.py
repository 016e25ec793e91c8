"""What may be chosen when M3DM is fitted."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.backbone_graphs import BackboneFitOptions, backbone_parameters
from mmad_fast.methods.backbone_parameters import BackboneParameters
from mmad_fast.methods.fit_options import options_of
from mmad_fast.methods.fitting import FitRequest
from mmad_fast.methods.m3dm.decision_layer import DecisionRecipe
from mmad_fast.methods.m3dm.memory_banks import CORESETS
from mmad_fast.methods.m3dm.parameters import BANKS, M3dmParameters, reweighting_constants
from mmad_fast.methods.m3dm.uff_training import UffRecipe
from mmad_fast.methods.variants import VARIANTS, get_variant

SPEEDS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fast": {"bank_dtype": "float16", "precision": "int8"},
}
"""What a speed stands for; a switch that is set itself wins. What each gains and costs stands in
docs/benchmarks/m3dm_accuracy.md."""


@dataclass(frozen=True)
class M3dmFitOptions(BackboneFitOptions):
    """What may be chosen when M3DM is fitted, beside the backbones.

    Attributes:
        point_patches: "56x56", "28x28", or "groups": the point groups are the patches, which leaves
            no fusion bank.
        uff: The feature fusion of the fusion bank: "train" (on the training scans), "none" (plain
            concatenation), or a file: ours or an official checkpoint.
        uff_pairing, uff_schedule: How it is trained, see UffRecipe.
        bank_norm: "published" (shared by the banks) or "own", see memory_banks.bank_scales.
        coreset: "code" or "paper": how many rows the banks keep, see memory_banks.coreset_sizes.
        reweighting: Of the image score: "code", "paper" or "none".
        blur: Of the maps: "pil8bit" (published) or "float".
        dlf_scores: What the decision layer answers: "score_samples" (published) or
            "decision_function", which subtracts the machine's offset.
        dlf_schedule: How it is trained: "code" or "paper", see DecisionRecipe.
        point_lambda, rgb_lambda, fusion_lambda: Factors of each bank's scores and maps where there
            are several.
        bank_dtype: "float32", or "float16", which approximates at half the memory.
    """

    method: str = "m3dm"
    recipe: str = "m3dm"
    point_patches: Literal["56x56", "28x28", "groups"] = "56x56"
    uff: str | Path = "train"
    uff_pairing: str = "aligned"
    uff_schedule: str = "quick"
    bank_norm: Literal["published", "own"] = "published"
    coreset: Literal["code", "paper"] = "code"
    reweighting: Literal["code", "paper", "none"] = "code"
    blur: Literal["pil8bit", "float"] = "pil8bit"
    dlf_scores: Literal["score_samples", "decision_function"] = "score_samples"
    dlf_schedule: Literal["code", "paper"] = "code"
    point_lambda: float = 1.0
    rgb_lambda: float = 0.1
    fusion_lambda: float = 1.0
    bank_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if get_variant(self.method).family != "m3dm":
            known = ", ".join(name for name, one in VARIANTS.items() if one.family == "m3dm")
            raise InvalidInputError(f"{self.method} is no method of M3DM; choose one of {known}")
        for name in ("point_lambda", "rgb_lambda", "fusion_lambda"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInputError(
                    f"{name} is {getattr(self, name)}; it must be a positive number"
                )
        if self.coreset not in CORESETS:
            raise InvalidInputError(
                f"coreset is {self.coreset!r}; it must be one of {', '.join(CORESETS)}"
            )
        # Refused now, not after the features are extracted.
        _ = self.parameters(backbone_parameters(self))
        _ = self.decision, self.uff_training

    @property
    def banks(self) -> tuple[str, ...]:
        """The memory banks of the method."""
        banks: tuple[str, ...] = get_variant(self.method).settings["banks"]
        return banks

    @property
    def lambdas(self) -> dict[str, float]:
        """Factor of each bank's scores and maps."""
        factors = {
            "point": self.point_lambda,
            "rgb": self.rgb_lambda,
            "fusion": self.fusion_lambda,
        }
        return {bank: factors[bank] for bank in self.banks}

    @property
    def decision(self) -> DecisionRecipe:
        """The decision layer's part of the options."""
        return DecisionRecipe(scores=self.dlf_scores, schedule=self.dlf_schedule)

    @property
    def uff_training(self) -> UffRecipe:
        """The feature fusion's part of the options."""
        return UffRecipe(pairing=self.uff_pairing, schedule=self.uff_schedule, seed=self.seed)

    def parameters(self, backbones: BackboneParameters) -> M3dmParameters:
        """The detector's constants as far as they are known before it is fitted.

        Raises:
            InvalidInputError: a value is out of range, or does not go with another or the backbone.
        """
        epsilon, divisor = reweighting_constants(self.banks, self.reweighting)
        weights = {} if len(self.banks) == 1 else self.lambdas
        return M3dmParameters(
            **asdict(backbones),
            banks=self.banks,
            decision=get_variant(self.method).settings["decision"],
            point_patches=self.point_patches,
            uses_uff="fusion" in self.banks and self.uff != "none",
            bank_norm=self.bank_norm,
            reweighting=self.reweighting,
            weight_epsilon=epsilon,
            distance_divisor=divisor,
            blur=self.blur,
            bank_dtype=self.bank_dtype,
            score_weights=weights,
            map_weights=weights,
        )

    @classmethod
    def of(cls, request: FitRequest) -> M3dmFitOptions:
        """The options of a request; what it leaves open is what its speed stands for, else the
        default.

        Raises:
            InvalidInputError: no such speed, an option that M3DM does not have, one that changes
                nothing in this method, or one out of range.
        """
        options = options_of(cls, request, SPEEDS)
        for name in request.options:
            if name in _without_effect(options):
                settings = get_variant(request.method).settings
                raise InvalidInputError(
                    f"{name} changes nothing in {request.method} (banks: "
                    f"{', '.join(settings['banks'])}; decision: {settings['decision']}; uff: "
                    f"{options.uff if 'fusion' in settings['banks'] else 'none'}); leave it out"
                )
        return options


def _without_effect(options: M3dmFitOptions) -> set[str]:
    """The options that the method has no use for."""
    banks = options.banks
    idle = {f"{bank}_lambda" for bank in BANKS if len(banks) == 1 or bank not in banks}
    if banks == ("rgb",):
        idle.add("point_patches")
    if "fusion" not in banks:
        idle.add("uff")
    if "fusion" not in banks or options.uff == "none":
        idle |= {"uff_pairing", "uff_schedule"}
    if get_variant(options.method).settings["decision"] != "svm":
        idle |= {"dlf_scores", "dlf_schedule"}
    return idle
