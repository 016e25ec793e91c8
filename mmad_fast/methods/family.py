"""What a family of methods is: one record per family, which it fills in in its own folder.

Nothing outside of that folder knows a family's name, its options or its branches but the line in
FAMILIES. Importing this, and every record, imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.branches.branch import Branch
from mmad_fast.methods.options import MethodOptions
from mmad_fast.preprocess.recipes import NO_CLEAN_UP, Recipe
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

if TYPE_CHECKING:
    from mmad_fast.artifact import Artifact
    from mmad_fast.data.dataset import Dataset
    from mmad_fast.engines.selection import EngineChoice
    from mmad_fast.methods.feature_store import FeatureStore
    from mmad_fast.methods.fit_request import FitRequest, FitTask, Progress, Weights

FAMILIES: tuple[str, ...] = (
    "cfm",
    "m3dm",
    "btf",
    "ast",
    "mmrd",
)
"""The folders beside this file whose family.py holds a record, FAMILY. Where no method is named, it
is the first family's default."""


@dataclass(frozen=True)
class Variant:
    """One named detector of a family.

    Attributes:
        name: As in `--method` and in the manifest.
        published: The method's name in the published tables (measure/published.csv); None where it
            is in none of them.
        branches: Keys of the family's branches that it runs.
        values: What its name stands for: fields of the family's options whose value is not the
            options' default.
    """

    name: str
    published: str | None
    branches: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Scores(Protocol):
    """What a pipeline says of a prepared scan."""

    @property
    def anomaly_map(self) -> NDArray[np.float32]:
        """(S, S) float32."""

    @property
    def image_score(self) -> float: ...


class Pipeline(Protocol):
    """The run half of a family on one device: from a prepared scan to its scores."""

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> Pipeline:
        """The pipeline in an artifact, its graphs run as the choice says.

        Raises:
            ArtifactError: a graph, tensor or parameter is missing or damaged.
            BackendUnavailableError: the engine, or an op, cannot run here.
        """

    @property
    def options(self) -> MethodOptions:
        """What the detector was fitted with."""

    def score(self, prepared: PreparedScan, clock: StageClock) -> Scores:
        """The anomaly map and image score. Thread-safe.

        Raises:
            EmptyScanError: too little foreground for this detector.
        """

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC) as the method's published evaluation scales them."""


class FittedPipeline(Pipeline, Protocol):
    """A pipeline that also scores features that were extracted before: what a fit makes."""

    def score_features(self, features: Any, clock: StageClock) -> Scores:
        """The anomaly map and image score of extracted features."""


class Reference(Protocol):
    """The published pipeline with the weights of an artifact: what a detector is compared with."""

    def __call__(
        self,
        prepared: PreparedScan,
        clock: StageClock,
        *,
        ties: Literal["lowest", "any"] = "lowest",
    ) -> Scores:
        """The anomaly map and image score.

        Args:
            prepared: The scan.
            clock: Gets the time of each stage.
            ties: Of equally near points: "lowest" index, as the fast ops, or "any", as published
                and faster.
        """


@dataclass(frozen=True)
class Trained:
    """A fitted detector, complete but for its threshold and golden scan.

    Attributes:
        pipeline: Its run half, whose options have the fitted constants.
        weights: Where the weights of each network came from, by role; JSON types.
        graphs: ONNX file by graph name.
        tensors: By name.
        facts: What the training did that the detector need not know; JSON types.
    """

    pipeline: FittedPipeline
    weights: Mapping[str, Any]
    graphs: Mapping[str, Path]
    tensors: Mapping[str, NDArray]
    facts: Mapping[str, Any]


class Fit(Protocol):
    """The fit half of a family: made once per fit, which builds the frozen part and refuses early
    what cannot work."""

    memory_limit_mib: float
    """Features up to this size are kept in memory, the others on disk."""

    def extract(self, prepared: PreparedScan) -> Any:
        """The features of a scan, as the detector computes them: a dataclass that a FeatureStore
        takes.

        Raises:
            EmptyScanError: too little foreground.
        """

    def train(self, train: FeatureStore[Any], held_out: FeatureStore[Any]) -> Trained:
        """The detector, trained on the features; `held_out` is `train` where there is no scan that
        is not trained on.

        Raises:
            MmadFastError: the training diverged, or the disk is full.
        """


@runtime_checkable
class BankFit(Fit, Protocol):
    """The fit half of a family with memory banks. These hold rows of the training scans, so that a
    scan's own score says nothing of a new scan's; but a scan can be scored without its own rows.

    Where there is no validation scan, the threshold comes from these scores. Of every other family
    some training scans are set aside for it.
    """

    def score_without_own(self, index: int, features: Any) -> Scores | None:
        """After `train`: the anomaly map and image score of training scan `index`, by banks without
        the rows that are its alone; None where a bank holds no rows of other scans.

        Args:
            index: Of the scan in the store that was trained on.
            features: Of that scan.
        """


class SharedTrainingResult(Protocol):
    """What a training for several categories did."""

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON types; no path, since it names a machine."""

    def table(self) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
        """(title, columns, rows) for the terminal."""


@dataclass(frozen=True)
class SharedTraining:
    """What a family trains once for several categories.

    Attributes:
        what: In words, for help texts.
        option: The family's option that takes the file.
        file_name: What the file is called where nobody names it.
        wants: Whether a fit with these options would train it on its own scans.
        train: (data set, categories, request, file to write, progress) -> what it did.
    """

    what: str
    option: str
    file_name: str
    wants: Callable[[Any], bool]
    train: Callable[[Dataset, Sequence[str], FitRequest, Path, Progress], SharedTrainingResult]


@dataclass(frozen=True)
class SpeedOnlyFit:
    """What shortens a fit without a change to its detector's speed.

    Attributes:
        train_scans: Only the first ones; None: all, since the detector's size grows with them.
        values: Options.
    """

    train_scans: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)


def _variants_own_name(variant: Variant, configuration: Mapping[str, Any]) -> str | None:
    return variant.published


@dataclass(frozen=True)
class Family:
    """A family of methods.

    Attributes:
        name: Of its folder, and in manifests.
        variants: Its detectors.
        default: Name of the one to try first.
        options: What may be chosen when one is fitted.
        branches: The frozen extractors that its variants run.
        recipe: How its published code prepares scans.
        speeds: What each `speed` stands for: options that are set unless they are chosen.
        pipelines: By device what imports the run half.
        fit: Makes the fit half; imports torch.
        reference: The published pipeline of an artifact, with weights by branch as they were given
            to the fit; imports torch.
        aupro_thresholds: Of its published AUPRO. Source: method facts, section 10.
        score_is_map_maximum: The image score is the largest value of the anomaly map, so that the
            decision threshold is one of the map, too.
        shared_training: What it trains once for several categories.
        speed_only: What shortens a fit for timing.
        resumes: Its fit keeps the state of its trainings in the task's checkpoint, if there is one.
        stores_halves: The features of training scans are kept in float16, which its training reads.
        published_name: A variant's name in the published tables, given the options of a
            detector that has the variant's own branches.
    """

    name: str
    variants: tuple[Variant, ...]
    default: str
    options: type[MethodOptions]
    branches: tuple[Branch, ...]
    recipe: Recipe
    speeds: Mapping[str, Mapping[str, Any]]
    pipelines: Mapping[str, Callable[[], type[Pipeline]]]
    fit: Callable[[FitTask], Fit]
    reference: Callable[[Artifact, Weights], Reference]
    aupro_thresholds: int
    score_is_map_maximum: bool
    shared_training: SharedTraining | None = None
    speed_only: SpeedOnlyFit = SpeedOnlyFit()
    resumes: bool = False
    stores_halves: bool = False
    published_name: Callable[[Variant, Mapping[str, Any]], str | None] = _variants_own_name

    @property
    def weighted_branches(self) -> tuple[Branch, ...]:
        """The branches that have weights."""
        return tuple(branch for branch in self.branches if branch.checkpoint is not None)

    def branches_of(self, variant: Variant) -> tuple[Branch, ...]:
        """The branches that a variant runs."""
        return tuple(branch for branch in self.branches if branch.key in variant.branches)


@cache
def get_family(name: str) -> Family:
    """The record of a family.

    Raises:
        InvalidInputError: no such family; the message lists the known ones.
    """
    if name not in FAMILIES:
        raise InvalidInputError(
            f"this version has no family of methods {name!r}; it has {', '.join(FAMILIES)}"
        )
    family: Family = import_module(f"mmad_fast.methods.{name}.family").FAMILY
    return family


def families() -> tuple[Family, ...]:
    """All families, in the order of FAMILIES."""
    return tuple(map(get_family, FAMILIES))


def method_names() -> tuple[str, ...]:
    """The names of all variants."""
    return tuple(variant.name for family in families() for variant in family.variants)


def default_method() -> str:
    """What is fitted where no method is named."""
    return families()[0].default


def method_without_weights() -> str | None:
    """The first method whose features are computed by formula, so that it is what it is without any
    checkpoint; None where there is none."""
    for family in families():
        for variant in family.variants:
            if all(branch.checkpoint is None for branch in family.branches_of(variant)):
                return variant.name
    return None


def find_method(name: Any) -> tuple[Family, Variant] | None:
    """The family and variant of a method; None where this version has none of that name."""
    for family in families():
        for variant in family.variants:
            if variant.name == name:
                return family, variant
    return None


def get_method(name: Any) -> tuple[Family, Variant]:
    """The family and variant of a method.

    Raises:
        InvalidInputError: no such name; the message lists the known ones.
    """
    found = find_method(name)
    if found is None:
        raise InvalidInputError(
            f"there is no method {name!r}; known are {', '.join(method_names())}"
        )
    return found


def get_recipe(name: Any) -> Recipe:
    """The preprocessing recipe of that name: a family's, or "none".

    Raises:
        InvalidInputError: no such name; the message lists the known ones.
    """
    recipes = {recipe.name: recipe for recipe in (*(f.recipe for f in families()), NO_CLEAN_UP)}
    if not isinstance(name, str) or name not in recipes:
        raise InvalidInputError(
            f"there is no preprocessing recipe {name!r}; known are {', '.join(recipes)}"
        )
    return recipes[name]
