"""Fit, evaluate and time detectors: the work behind `mmad-fast bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from mmad_fast.backbones.weights import resolve_weights
from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.data.selection import pick_category
from mmad_fast.engines.selection import AUTO as AUTO_ENGINE
from mmad_fast.errors import InvalidInputError, WeightsError
from mmad_fast.measure.built_in_set import built_in_set
from mmad_fast.measure.detector_row import MeasureRequest, measure_artifact, reference_row
from mmad_fast.measure.engine_of_fit import check_engine_of_fit, on_engine
from mmad_fast.measure.tables import BenchRow, mean_row
from mmad_fast.methods.family import SpeedOnlyFit, get_method, method_without_weights
from mmad_fast.methods.fit_request import (
    AUTO,
    RANDOM,
    FitRequest,
    Progress,
    resolve_options,
    silent,
)
from mmad_fast.methods.fit_run import check_fit_packages, fit_detector, training_scans
from mmad_fast.scratch_folder import temporary_folder

CALIBRATION_SCANS = 32


@dataclass(frozen=True)
class _Run:
    """What all fits of a benchmark share; `folder` keeps the artifacts."""

    dataset: Dataset
    categories: tuple[str, ...]
    fit_request: FitRequest
    request: MeasureRequest
    folder: Path
    progress: Progress
    keep: Callable[[BenchRow], None]


def run_benchmark(
    data: Path | None,
    categories: Sequence[str],
    fit_request: FitRequest,
    request: MeasureRequest,
    *,
    output: Path | None = None,
    progress: Progress = silent,
    notice: Callable[[str], None] | None = None,
    on_row: Callable[[BenchRow], None] | None = None,
) -> list[BenchRow]:
    """One row per category and number of training scans, mean rows where there are several
    categories, and rows of the reference if asked. Where weights cannot be had, rows of a method
    that needs none are added.

    Args:
        data: Data set; None: the procedural set, made in the user's cache at the first use.
        categories: Which ones; empty: all.
        fit_request: What to fit.
        request: What to measure.
        output: Keeps the artifacts here, one folder per category; None: they are discarded.
        progress: Called with (what, done, total).
        notice: Called with lines for the user, such as that weights are random.
        on_row: Called with each row as soon as it is made, so that none is lost with a later one.

    Raises:
        InvalidInputError: unknown method, category, option or precision, or more shots than
            training scans.
        BackendUnavailableError: no such engine or device, or it cannot be had here.
        DataError: the data set is missing or unreadable.
        WeightsError: a weights file that was named does not serve.
        MmadFastError: an exact detector differs from the published pipeline.
    """
    say = notice or (lambda line: None)
    _check_few_shot(fit_request, request)
    check_engine_of_fit(request.engine, request.device, request.engine_precision)
    check_fit_packages()
    if data is None:
        data = built_in_set(partial(progress, "write procedural set"))
    dataset = open_dataset(data)
    names = [pick_category(dataset, name) for name in categories] or list(dataset.categories())
    for name in names:
        training_scans(dataset, name, shots=max(request.few_shot, default=fit_request.shots))
    available = _with_available_weights(fit_request, say)
    extra = () if available == fit_request else _without_weights(fit_request, request, say)
    measured, of_reference = [], []
    with ExitStack() as stack:
        folder = output or stack.enter_context(temporary_folder("bench"))
        keep = on_row or _forget
        runs = [_Run(dataset, tuple(names), available, request, folder, progress, keep)]
        runs += [
            replace(runs[0], fit_request=f, request=r, folder=folder / f.method) for f, r in extra
        ]
        for run in runs:
            for shots in (*request.few_shot, fit_request.shots):
                rows, reference_rows = _measure(run, shots)
                measured += rows
                of_reference += reference_rows
    return [*measured, *of_reference]


def _measure(run: _Run, shots: int | None) -> tuple[list[BenchRow], list[BenchRow]]:
    """(rows per category and their mean, rows of the published pipeline) of detectors fitted on so
    many training scans; None: on all."""
    rows: list[BenchRow] = []
    reference_rows: list[BenchRow] = []
    request = replace(run.fit_request, shots=shots)
    cut = get_method(request.method)[0].speed_only if run.request.speed_only else SpeedOnlyFit()
    request = replace(request, options={**request.options, **cut.values})
    request = _with_shared_training(run, request)
    for done, category in enumerate(run.categories):
        label = _label(category, shots)
        run.progress(f"{label}: fit", done, len(run.categories))
        fitted = fit_detector(
            run.dataset,
            run.folder / label,
            category=category,
            request=request,
            max_train_scans=cut.train_scans,
            progress=_nested(run.progress, label),
        )
        train = training_scans(run.dataset, category, shots=shots, seed=request.seed)
        detector = on_engine(
            fitted,
            engine=run.request.engine,
            device=run.request.device,
            precision=run.request.engine_precision,
            calibration=train[:CALIBRATION_SCANS],
            unit=run.request.unit,
        )
        nested = _nested(run.progress, label)
        row = measure_artifact(
            detector, run.dataset, category, run.request, shots=shots, progress=nested
        )
        rows.append(row)
        run.keep(row)
        if run.request.compare_reference:
            run.progress(f"{label}: published pipeline", done, len(run.categories))
            row = reference_row(detector, run.dataset, category, request, run.request, shots=shots)
            reference_rows.append(row)
            run.keep(row)
    if len(rows) > 1 and not run.request.speed_only:
        rows.append(mean_row(rows))
        run.keep(rows[-1])
    return rows, reference_rows


def _with_shared_training(run: _Run, request: FitRequest) -> FitRequest:
    """The request with what its family trains once for all categories."""
    shared = get_method(request.method)[0].shared_training
    if shared is None or not shared.wants(resolve_options(request)):
        return request
    path = run.folder / _label("shared", request.shots) / shared.file_name
    shared.train(run.dataset, run.categories, request, path, run.progress)
    return replace(request, options={**request.options, shared.option: str(path)})


def _check_few_shot(fit_request: FitRequest, request: MeasureRequest) -> None:
    """Raises if few-shot rows were asked of a run that has none.

    Raises:
        InvalidInputError: says which two options do not go together.
    """
    if request.few_shot and request.speed_only:
        raise InvalidInputError(
            "few-shot rows are about accuracy, and speed-only measures none; leave out --few-shot "
            "or --speed-only"
        )
    if request.few_shot and fit_request.shots is not None:
        raise InvalidInputError(
            "the fit request has its own number of shots; leave it out where few_shot says them"
        )


def _label(category: str, shots: int | None) -> str:
    return category if shots is None else f"{category}-{shots}shot"


def _forget(row: BenchRow) -> None:
    """Rows are handed out at the end only."""


def _with_available_weights(request: FitRequest, say: Callable[[str], None]) -> FitRequest:
    """The request with "auto" weights that cannot be had replaced by seeded random ones."""
    family, variant = get_method(request.method)
    options, weights = resolve_options(request), dict(request.weights)
    for branch in family.branches_of(variant):
        if branch.checkpoint is None:
            continue
        name = branch.checkpoint(options)
        if request.weights_of(branch.key) == AUTO:
            try:
                resolve_weights(name, AUTO)
            except WeightsError as error:
                say(f"note: {error}")
                weights[branch.key] = RANDOM
        if weights.get(branch.key) == RANDOM:
            say(f"NOTE: {name} runs on seeded random weights: its accuracy means nothing")
    return replace(request, weights=weights)


def _without_weights(
    fit_request: FitRequest, request: MeasureRequest, say: Callable[[str], None]
) -> tuple[tuple[FitRequest, MeasureRequest], ...]:
    """What to fit and measure beside a method whose weights cannot be had, whose accuracy means
    nothing: a method that needs none, on the engine of its fit. Nothing where no accuracy is asked
    for, or there is no such method on the device."""
    name = method_without_weights()
    if request.speed_only or name is None or request.device not in get_method(name)[0].pipelines:
        return ()
    say(f"NOTE: {name} needs no weights; its rows, whose accuracy is real, are added")
    common = {
        one.name: getattr(fit_request, one.name)
        for one in fields(FitRequest)
        if one.name not in ("method", "weights", "speed", "options")
    }
    own_engine = replace(request, engine=AUTO_ENGINE, engine_precision=None)
    return ((FitRequest(method=name, **common), own_engine),)


def _nested(progress: Progress, prefix: str) -> Progress:
    return lambda what, done, total: progress(f"{prefix}: {what}", done, total)
