"""What may be chosen when CFM is fitted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.cfm.training import TrainingRecipe
from mmad_fast.methods.fitting import FitRequest
from mmad_fast.preprocess.recipes import RECIPES
from mmad_fast.scan import Unit

SPEEDS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fast": {"pixel_stride": 2, "precision": "int8"},
}
"""What a speed stands for; a switch that is set itself wins. What each gains and costs stands in
docs/benchmarks/detectors.md."""


@dataclass(frozen=True)
class CfmFitOptions:
    """What may be chosen when CFM is fitted.

    Attributes:
        method: A name of the variants table.
        rgb_backbone, rgb_layers, point_layers: Override the variant's.
        rgb_weights, point_weights: "auto" (cache or download), "random", or a file.
        num_groups, group_size, batch_norm, aggregation, mapping, score_norm, smoothing, hidden,
        skip_near_origin, pixel_stride, precision: As in CfmParameters.
        recipe: Name of the preprocessing recipe.
        epochs, pixels_per_step, learning_rate, schedule, batch_scans, patience: As in
            TrainingRecipe.
        seed: Of random weights, training order and pixels.
        threshold_quantile: The threshold is this quantile of the validation scans' image scores;
            with few scans it is their maximum.
        num_threads: Threads of extraction and training; None means the default.
        unit: Of the scans' files.
    """

    method: str = "cfm-s"
    rgb_backbone: str | None = None
    rgb_weights: str | Path = "auto"
    point_weights: str | Path = "auto"
    rgb_layers: int | None = None
    point_layers: tuple[int, ...] | None = None
    num_groups: int = 1024
    group_size: int = 128
    batch_norm: Literal["cloud", "calibrated", "checkpoint"] = "cloud"
    skip_near_origin: bool = False
    aggregation: str = "product"
    mapping: str = "crossmodal"
    hidden: str = "published"
    score_norm: str = "cfm"
    smoothing: str = "boxes53"
    pixel_stride: int = 1
    precision: Literal["float32", "int8"] = "float32"
    recipe: str = "cfm"
    epochs: int | None = None
    pixels_per_step: int | None = 512
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    batch_scans: int = 4
    patience: int | None = 10
    seed: int = 0
    threshold_quantile: float = 0.99
    num_threads: int | None = None
    unit: Unit = "m"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold_quantile <= 1:
            raise InvalidInputError(
                f"threshold_quantile is {self.threshold_quantile}; it must be from 0 to 1"
            )
        if self.recipe not in RECIPES:
            raise InvalidInputError(
                f"there is no preprocessing recipe {self.recipe!r}; known are {', '.join(RECIPES)}"
            )
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
            InvalidInputError: no such speed, or an option is out of range.
        """
        if request.speed not in SPEEDS:
            raise InvalidInputError(
                f"speed is {request.speed!r}; it must be one of {', '.join(SPEEDS)}"
            )
        chosen = {key: value for key, value in asdict(request).items() if value is not None}
        del chosen["speed"]
        return cls(**{**SPEEDS[request.speed], **chosen})
