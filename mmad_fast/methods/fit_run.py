"""The front door of fitting: from a data set to an artifact, what every family's fit does. Needs
torch once a fit begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmad_fast.artifact import Golden, check_target, write_artifact
from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.data.selection import pick_category
from mmad_fast.detector import Detector, load
from mmad_fast.errors import (
    DataError,
    EmptyScanError,
    InvalidInputError,
    MissingDependencyError,
)
from mmad_fast.methods.family import BankFit, Family, Fit, Scores, Trained, families, get_method
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitRequest, FitTask, Progress, silent
from mmad_fast.methods.options import OptionValue
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.preprocess.recipes import NO_CLEAN_UP
from mmad_fast.scan import Scan, Unit
from mmad_fast.scratch_folder import temporary_folder
from mmad_fast.stage_clock import StageClock
from mmad_fast.threshold import (
    MORE_SCANS,
    OWN_LEFT_OUT,
    SET_ASIDE,
    SOURCES,
    VALIDATION,
    Threshold,
)

if TYPE_CHECKING:
    from mmad_fast.methods.training_checkpoint import TrainingCheckpoint

logger = logging.getLogger("mmad_fast")

Scans = Sequence[ScanFile | Scan]

SCANS_PER_SET_ASIDE = 5
"""Training scans of which one is set aside for the threshold, where no other scan can serve."""

_FIT_PACKAGES = ("torch", "sklearn", "scipy", "onnx", "onnxscript")


def fit(
    data: str | Path,
    output: str | Path,
    *,
    method: str | None = None,
    category: str | None = None,
    threshold_quantile: float = 0.99,
    seed: int = 0,
    unit: Unit = "m",
    missing: float | None = None,
    recipe: str | None = None,
    speed: str = "exact",
    shots: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    **options: OptionValue,
) -> Detector:
    """The detector fitted on a data set's nominal scans, loaded from the artifact it wrote.

    Args:
        data: Data set (MVTec 3D-AD or Eyecandies layout) or one category's folder.
        output: Folder for the artifact; an artifact there is replaced.
        method: As `mmad-fast fit --method`; None: the default. An unknown one is answered with the
            known ones.
        category: Which category, where the data set has several.
        threshold_quantile: Quantile of the validation scores that becomes the threshold, 0-1.
        seed: Seed of everything random.
        unit: Unit of the XYZ files, "m" or "mm".
        missing: Number that stands for no measurement in the XYZ files, beside those that are
            found (one point at many pixels); `Detector.infer` takes them all as missing, too.
        recipe: Preprocessing recipe; None: the method's own, and "none" for raw Eyecandies, whose
            published conversion removes no background.
        speed: "exact", or a bundle of approximations, "fast" or "small", that trades some accuracy
            for time or memory. Options that are set win over it.
        shots: Fit on so many of the training scans only, chosen by the seed; None: on all.
        checkpoint: File in which the training keeps its state, at most every minute, until the
            artifact is written. Where a fit was killed, the same one goes on from there and gives
            the same detector. Refused by methods whose training takes no hours.
        progress: Called with (what, done, total).
        options: What the method has beside these, as `mmad-fast fit --method NAME --help` lists it:
            its options, e.g. `rgb_backbone="dinov2-vits14"`, and weights, e.g.
            `rgb_weights="random"`: a checkpoint's path, "auto" (download) or "random" (seeded, for
            trials). None leaves one open, but for an option of which it is a value
            (`patience=None`). An unknown name is answered with the known ones.

    Raises:
        InvalidInputError: an unknown method or option, one that the method does not have, of the
            wrong type or out of range, more shots than training scans, or a checkpoint of another
            fit.
        DataError: the data set is missing, unreadable or has no training scans.
        WeightsError: the weights cannot be had or do not fit.
        ArtifactError: the artifact cannot be written there.
        MissingDependencyError: torch and the other packages of the fit half are not installed.
    """
    request = FitRequest.of(
        method,
        threshold_quantile=threshold_quantile,
        seed=seed,
        unit=unit,
        missing=missing,
        recipe=recipe,
        speed=speed,
        shots=shots,
        **options,
    )
    return fit_detector(
        data, output, category=category, request=request, checkpoint=checkpoint, progress=progress
    )


def fit_detector(
    data: str | Path | Dataset,
    output: str | Path,
    *,
    category: str | None = None,
    request: FitRequest,
    max_train_scans: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Detector:
    """As `fit`, with the options as a record, and on the first `max_train_scans` scans if given."""
    if not isinstance(data, (str, os.PathLike, Dataset)):
        raise InvalidInputError(f"data is {data!r}; it must be the path of a data set's folder")
    check_fit_packages()
    check_target(output)
    dataset = data if isinstance(data, Dataset) else open_dataset(Path(data))
    request = request_on(dataset, request)
    name = pick_category(dataset, category)
    train = training_scans(dataset, name, shots=request.shots, seed=request.seed)
    path = fit_scans(
        train[:max_train_scans],
        validation_scans(dataset, name),
        output,
        request,
        checkpoint=checkpoint,
        progress=progress,
    )
    return load(path)


def fit_scans(
    train: Scans,
    validation: Scans,
    output: Path | str,
    request: FitRequest,
    *,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path of the fitted detector's artifact.

    The features of each scan are extracted once, by the graphs that the detector will run. Nothing
    is written to `output` before everything is computed: an interrupted fit leaves it as it was.
    Only a killed process leaves its temporary folder behind.

    Args:
        train: Nominal scans, at least one with foreground.
        validation: Nominal scans for the threshold, and for early stopping where the method has it.
            Without any, each training scan is scored without its own rows where the method has
            memory banks; else one training scan in five, chosen by the seed, is set aside for both.
            From a single scan in memory banks, or fewer than five to set some aside of, there is
            no threshold: a detector says too little of scans that it has seen. The manifest says
            which.
        output: The artifact's folder; an artifact there is replaced.
        request: What to fit.
        checkpoint: As of `fit`.
        progress: Called with (stage, done, total); the stages are "export", "features", those of
            the family's training, and "threshold".

    Raises:
        InvalidInputError: no training scan, an option is out of range, or a checkpoint of another
            fit or for a method that keeps none.
        EmptyScanError: no training scan has enough foreground.
        ArtifactError: `output` holds something else.
        WeightsError: weights are missing or do not fit.
        MmadFastError: the training diverged, or the disk is full.
    """
    progress = silent if progress is None else progress
    if not train:
        raise InvalidInputError(
            f"there is no training scan; {request.method} needs at least one nominal scan (20 or "
            "more are better)"
        )
    check_target(output)
    with torch_threads(), temporary_folder("fit") as folder:
        task = FitTask.of(request, train, folder, progress)
        family, _ = get_method(request.method)
        if checkpoint is not None:
            task = replace(task, checkpoint=_open_checkpoint(checkpoint, task, family))
        family_fit = family.fit(task)
        limit = family_fit.memory_limit_mib
        with (
            FeatureStore[Any](
                task.scratch / "train", memory_limit_mib=limit, in_halves=family.stores_halves
            ) as train_store,
            FeatureStore[Any](task.scratch / "held-out", memory_limit_mib=limit) as held_out_store,
        ):
            stores = (train_store, held_out_store)
            extract_features(train, validation, stores, family_fit, task)
            judged, store = validation, held_out_store
            source: str | None = VALIDATION
            if not len(held_out_store):
                judged = train
                store, source = _without_validation(train_store, family_fit, request.seed)
            trained = family_fit.train(train_store, store)
            scores = _scores(store, trained, family_fit, source)
            if family.stores_halves and source == SET_ASIDE:  # what is stored of them is rounded
                aside = (task.prepare(judged[position]) for position in store.positions)
                scores = (trained.pipeline.score(scan, StageClock()) for scan in aside)
            threshold = _threshold(scores, len(store), source, task)
            first = judged[store.positions[0]]
            golden = task.load(first)
            expected = trained.pipeline.score(task.prepare(first), StageClock())
            facts = {
                **trained.facts,
                "num_train_scans": len(train_store),
                "num_validation_scans": len(held_out_store),
            }
        missing_values = task.missing.record(request.missing)
        if str(missing_values):
            logger.warning("taken as missing, not as points: %s", missing_values)
        path = write_artifact(
            Path(output),
            method=request.method,
            family=family.name,
            preprocess=task.recipe.to_dict(),
            parameters={**trained.pipeline.options.to_manifest(), "training": facts},
            threshold=threshold,
            weights={**trained.weights, "seed": request.seed},
            graphs=trained.graphs,
            tensors=trained.tensors,
            golden=Golden(
                golden.rgb,
                golden.xyz,
                expected.anomaly_map,
                expected.image_score,
                golden.normals if task.recipe.reads_normals else None,
            ),
            missing_values=missing_values,
        )
        if task.checkpoint is not None:
            task.checkpoint.remove()
        return path


def extract_features(
    train: Scans,
    validation: Scans,
    stores: tuple[FeatureStore[Any], FeatureStore[Any]],
    family_fit: Fit,
    task: FitTask,
) -> None:
    """Fills the stores of the training and the validation scans with their features.

    Raises:
        EmptyScanError: no training scan has enough foreground.
        InvalidInputError: the task's checkpoint is of other scans.
        MmadFastError: the disk is full.
    """
    total, before = len(train) + len(validation), 0
    for scans, store in zip((train, validation), stores, strict=True):
        for scan in scans:
            before += 1
            try:
                prepared = task.prepare(scan)
                if task.checkpoint is not None:
                    task.checkpoint.add_scan(prepared)
                store.append(family_fit.extract(prepared))
            except EmptyScanError as error:
                logger.warning("skipped %s: %s", _label(scan), error)
                store.skip()
            task.progress("features", before, total)
    if not len(stores[0]):
        raise EmptyScanError(
            f"none of the {len(train)} training scans has enough foreground; check the unit of the "
            "files and the background plane (the warnings above name each scan)"
        )
    if task.checkpoint is not None:
        task.checkpoint.expect_scans()


def request_on(dataset: Dataset, request: FitRequest) -> FitRequest:
    """The request on a data set: raw Eyecandies without an explicit recipe is prepared by "none",
    as its published conversion neither looks for a background plane nor cleans up; but where the
    method's own recipe does neither."""
    removes_background = get_method(request.method)[0].recipe.remove_background
    if dataset.layout == "eyecandies" and request.recipe is None and removes_background:
        return replace(request, recipe=NO_CLEAN_UP.name)
    return request


def training_scans(
    dataset: Dataset, category: str, *, shots: int | None = None, seed: int = 0
) -> Sequence[ScanFile]:
    """The nominal scans that a category is fitted on, in the data set's order.

    With `shots` a subset that depends on the seed alone, so that it is the same for every method;
    that of fewer shots is part of that of more.

    Raises:
        DataError: the category has no training scans.
        InvalidInputError: fewer training scans than shots.
    """
    if "train" not in dataset.splits(category):
        if dataset.layout == "folder":
            raise DataError(
                f"{dataset.root} is a folder of scans, which `infer` reads; a fit needs a "
                "category: a folder with train/good/rgb and train/good/xyz in it. Name that one, "
                "or move the scans of good parts there"
            )
        raise DataError(
            f"{dataset.root}: category {category!r} has no training scans; put nominal scans into "
            "train/good/rgb and train/good/xyz"
        )
    scans = dataset.scans(category, "train")
    if shots is None:
        return scans
    if shots > len(scans):
        raise InvalidInputError(
            f"shots is {shots}, but category {category!r} has {len(scans)} training scans; ask for "
            f"at most {len(scans)}, or leave it out to fit on all"
        )
    order = np.random.default_rng(seed).permutation(len(scans))
    return [scans[index] for index in sorted(order[:shots].tolist())]


def validation_scans(dataset: Dataset, category: str) -> Sequence[ScanFile]:
    """The nominal scans of a category that are held out; none where it has no such split."""
    has_validation = "validation" in dataset.splits(category)
    return dataset.scans(category, "validation") if has_validation else ()


def check_fit_packages() -> None:
    """Raises if the packages of the fit half are not installed.

    Raises:
        MissingDependencyError: names what is missing and the command that installs it.
    """
    missing = [name for name in _FIT_PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"fitting needs {', '.join(missing)}, not installed here; install with: "
            "pip install 'mmad-fast[fit]'"
        )


def _open_checkpoint(path: str | Path, task: FitTask, family: Family) -> TrainingCheckpoint:
    """The checkpoint of a fit.

    Raises:
        InvalidInputError: the family keeps none, or the file is none or that of another fit.
    """
    from mmad_fast.methods.training_checkpoint import TrainingCheckpoint

    if not family.resumes:
        resumable = [v.name for one in families() if one.resumes for v in one.variants]
        raise InvalidInputError(
            f"checkpoint is {str(path)!r}, but the fit of {task.request.method} keeps none; leave "
            f"it out (methods that do: {', '.join(resumable)})"
        )
    return TrainingCheckpoint(Path(path), task.facts())


def _without_validation(
    train: FeatureStore[Any], family_fit: Fit, seed: int
) -> tuple[FeatureStore[Any], str | None]:
    """(scans for the threshold, what they are) where there is no validation scan; a warning says
    it. What is set aside is taken out of the training scans. None: the scans cannot give one."""
    num_scans, has_bank = len(train), isinstance(family_fit, BankFit)
    if num_scans < (2 if has_bank else SCANS_PER_SET_ASIDE):
        return train, None
    scans, source = train, OWN_LEFT_OUT
    if not has_bank:
        order = np.random.default_rng(seed).permutation(num_scans)
        chosen = order[: num_scans // SCANS_PER_SET_ASIDE].tolist()
        scans, source = train.set_aside(chosen), SET_ASIDE
    logger.warning(
        "no validation scan: the threshold rests on %s (%d of them); %s",
        SOURCES[source],
        len(scans),
        MORE_SCANS,
    )
    return scans, source


def _scores(
    store: FeatureStore[Any], trained: Trained, family_fit: Fit, source: str | None
) -> Iterator[Scores | None]:
    """Of each scan of the store; None where a bank holds no rows of other scans."""
    for index, features in enumerate(store):
        if source == OWN_LEFT_OUT and isinstance(family_fit, BankFit):
            yield family_fit.score_without_own(index, features)
        else:
            yield trained.pipeline.score_features(features, StageClock())


def _threshold(
    scores: Iterable[Scores | None], num_scans: int, source: str | None, task: FitTask
) -> Threshold | None:
    """The threshold by the scores of so many scans; None where none can be had, with a warning.

    Raises:
        MmadFastError: a score is not finite.
    """
    image_scores = []
    for index, found in enumerate(scores if source else ()):
        if found is not None:
            image_scores.append(found.image_score)
        task.progress("threshold", index + 1, num_scans)
    if source and image_scores:
        return Threshold.of_scores(image_scores, task.request.threshold_quantile, source)
    logger.warning(
        "no validation scan, and too few training scans for a threshold (%d): the detector scores "
        "parts, but decides nothing; %s",
        num_scans,
        MORE_SCANS,
    )
    return None


def _label(scan: ScanFile | Scan) -> str:
    """What messages call a training scan."""
    return f"scan {scan.name!r}" if scan.name else "an unnamed scan"
