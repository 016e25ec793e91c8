"""What may be chosen when CFM is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmad_fast.methods.backbone_graphs import BackboneFitOptions
from mmad_fast.methods.cfm.training import TrainingRecipe
from mmad_fast.methods.fit_options import options_of
from mmad_fast.methods.fitting import FitRequest

SPEEDS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fast": {"pixel_stride": 2, "precision": "int8"},
}
"""What a speed stands for; a switch that is set itself wins. What each gains and costs stands in
docs/benchmarks/detectors.md."""


@dataclass(frozen=True)
class CfmFitOptions(BackboneFitOptions):
    """What may be chosen when CFM is fitted.

    Attributes:
        aggregation, mapping, score_norm, smoothing, hidden, pixel_stride: As in CfmParameters.
        epochs, pixels_per_step, learning_rate, schedule, batch_scans, patience: As in
            TrainingRecipe.
    """

    method: str = "cfm-s"
    recipe: str = "cfm"
    aggregation: str = "product"
    mapping: str = "crossmodal"
    hidden: str = "published"
    score_norm: str = "cfm"
    smoothing: str = "boxes53"
    pixel_stride: int = 1
    epochs: int | None = None
    pixels_per_step: int | None = 512
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    batch_scans: int = 4
    patience: int | None = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.training  # refuses its part now, not after the features are extracted

    @property
    def training(self) -> TrainingRecipe:
        """The training part of the options."""
        return TrainingRecipe(
            epochs=self.epochs,
            pixels_per_step=self.pixels_per_step,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            batch_scans=self.batch_scans,
            patience=self.patience,
            seed=self.seed,
        )

    @classmethod
    def of(cls, request: FitRequest) -> CfmFitOptions:
        """The options of a request; what it leaves open is what its speed stands for, else the
        default.

        Raises:
            InvalidInputError: no such speed, an option that CFM does not have, or one out of range.
        """
        return options_of(cls, request, SPEEDS)
