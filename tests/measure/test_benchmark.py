"""What is checked before a benchmark begins, and the gate on the published pipeline's row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.detector import Detector, load
from mmad_fast.errors import (
    BackendUnavailableError,
    DataError,
    InvalidInputError,
    MmadFastError,
    WeightsError,
)
from mmad_fast.measure import benchmark, built_in_set, detector_row
from mmad_fast.measure.benchmark import run_benchmark
from mmad_fast.measure.detector_row import MeasureRequest
from mmad_fast.measure.engine_of_fit import check_engine_of_fit, on_engine
from mmad_fast.measure.tables import BenchRow, render_rows
from mmad_fast.methods.family import get_method, method_without_weights
from mmad_fast.methods.fit_request import FitRequest, common_options
from mmad_fast.threads import get_num_threads, set_num_threads

torch = pytest.importorskip("torch", reason="the published pipeline needs torch")


@pytest.fixture
def detector(tiny_artifact: Path) -> Detector:
    return load(tiny_artifact)


@pytest.fixture
def reference_row(
    dataset: Dataset, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., BenchRow]:
    """The reference row where the published pipeline's answer is the detector's, changed a bit."""

    def make(*, map_factor: float = 1.0, score_factor: float = 1.0) -> BenchRow:
        asked: list[str] = []

        def pipeline(artifact: Any, weights: Any) -> Callable[..., Any]:
            assert weights == {"rgb": "random"}

            def run(prepared: Any, clock: Any, *, ties: str) -> Any:
                assert torch.get_num_threads() == get_num_threads()
                asked.append(ties)
                with clock.stage("all"):
                    result = detector.infer_prepared(prepared)
                return SimpleNamespace(
                    anomaly_map=result.anomaly_map * map_factor,
                    image_score=result.image_score * score_factor,
                )

            return run

        monkeypatch.setattr(detector, "family", replace(detector.family, reference=pipeline))
        request = FitRequest(weights={"rgb": "random"})
        row = detector_row.reference_row(detector, dataset, "disc", request, MeasureRequest())
        assert asked == ["lowest", "any", "any", "any"]  # compared once, timed as published
        return row

    return make


def test_the_reference_says_how_far_the_detector_is(reference_row) -> None:
    row = reference_row(map_factor=1.0005, score_factor=0.9996)
    assert row.map_difference == pytest.approx(5e-4, rel=0.01)
    assert row.score_difference == pytest.approx(4e-4, rel=0.01)
    assert (row.engine, row.runs, row.latency_ms_p95) == ("reference", 3, None)
    assert (row.data, row.configuration["group_size"]) == ("discs", 16)


@pytest.mark.parametrize("factor", ["map_factor", "score_factor"])
@pytest.mark.parametrize("value", [1.002, float("nan")])
def test_a_detector_that_differs_is_not_timed(reference_row, factor: str, value: float) -> None:
    with pytest.raises(MmadFastError, match="disc: the detector differs from the published"):
        reference_row(**{factor: value})


def test_the_reference_gets_the_threads_that_its_row_names(reference_row) -> None:
    before, torch_before = get_num_threads(), torch.get_num_threads()
    set_num_threads(torch_before + 1)
    try:
        assert reference_row().threads == torch_before + 1
    finally:
        set_num_threads(before)
    assert torch.get_num_threads() == torch_before


def test_published_values_are_for_the_methods_own_networks_only(
    dataset: Dataset, detector: Detector
) -> None:
    row = detector_row.blank_row(detector, dataset, "disc", MeasureRequest(), engine="x")
    assert row.published
    artifact = detector.artifact
    parameters = artifact.manifest.parameters | {"rgb_layers": 8}
    pruned = replace(artifact, manifest=replace(artifact.manifest, parameters=parameters))
    other = Detector(pruned, detector._pipeline, detector.engine_choice)
    row = detector_row.blank_row(other, dataset, "disc", MeasureRequest(), engine="x")
    assert row.published is None


@pytest.mark.parametrize("request_", [{"engine": "abacus"}, {"device": "cuda"}])
def test_engine_and_device_are_checked_before_anything_is_fitted(
    tmp_path: Path, request_: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match="abacus|CUDAExecutionProvider"):
        run_benchmark(tmp_path / "absent", (), FitRequest(), MeasureRequest(**request_))


def test_rows_are_handed_out_as_they_are_made(
    dataset: Dataset, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = detector_row.blank_row(detector, dataset, "disc", MeasureRequest(), engine="x")
    monkeypatch.setattr(benchmark, "fit_detector", lambda *_, **__: detector)
    monkeypatch.setattr(benchmark, "measure_artifact", lambda *_, **__: row)

    def fail(*_: Any, **__: Any) -> BenchRow:
        raise MmadFastError("the reference fell over")

    monkeypatch.setattr(benchmark, "reference_row", fail)
    kept: list[BenchRow] = []
    with pytest.raises(MmadFastError, match="fell over"):
        run_benchmark(
            dataset.root,
            ("disc",),
            FitRequest(weights={"rgb": "random", "point": "random"}),
            MeasureRequest(compare_reference=True),
            on_row=kept.append,
        )
    assert kept == [row]


@pytest.fixture
def small_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"num_train": 1, "num_validation": 0, "num_good": 1, "num_per_defect": 1, "size": 64}
    monkeypatch.setattr(built_in_set, "BUILT_IN", built_in_set.BUILT_IN | counts)
    monkeypatch.setattr(built_in_set, "cache_root", lambda: tmp_path)


@pytest.mark.usefixtures("small_set")
def test_the_built_in_set_is_made_anew_where_its_content_would_be_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = built_in_set.built_in_set()
    assert built_in_set.built_in_set() == first
    assert open_dataset(first).root.name == "procedural"
    monkeypatch.setattr("mmad_fast.__version__", "99.0")
    newer = built_in_set.built_in_set()
    assert newer != first
    monkeypatch.setitem(built_in_set.BUILT_IN, "seed", 1)
    assert built_in_set.built_in_set() not in (first, newer)


@pytest.mark.usefixtures("small_set")
@pytest.mark.parametrize("is_there", [True, False])
def test_of_two_that_make_the_built_in_set_the_second_takes_the_firsts(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    def lose_the_race(root: Path, **_: Any) -> None:
        if is_there:
            (root / "biscuit").mkdir(parents=True)
        raise DataError("exists and is not empty")

    monkeypatch.setattr(built_in_set, "write_synthetic", lose_the_race)
    if is_there:
        assert built_in_set.built_in_set().is_dir()
    else:
        with pytest.raises(DataError, match="not empty"):
            built_in_set.built_in_set()


@pytest.mark.parametrize("precision", [None, "fp16", "int8"])
def test_a_benchmark_exports_what_its_engine_needs(
    dataset: Dataset, tiny_artifact: Path, tmp_path: Path, precision: str | None
) -> None:
    fitted = load(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    found = on_engine(
        fitted,
        engine="auto",
        device="cpu",
        precision=precision,
        calibration=dataset.scans("disc", "train"),
        unit="m",
    )
    assert found.engine_choice.precision == (precision or "fp32")
    assert detector_row.engine_column(found) == " ".join(filter(None, ("onnxruntime", precision)))
    assert found.is_exact == (precision is None)
    engines = found.artifact.manifest.engines
    assert [record.calibration_scans for record in engines] == (
        [] if precision is None else [2 if precision == "int8" else 0]
    )


def test_a_precision_that_cannot_be_had_is_refused_before_the_fit() -> None:
    with pytest.raises(InvalidInputError, match="there is no precision 'f16'; known are fp32"):
        check_engine_of_fit("auto", "cpu", "f16")
    with pytest.raises(BackendUnavailableError, match="it has no bf16 kernels for device 'cpu'"):
        check_engine_of_fit("onnxruntime", "cpu", "bf16")
    check_engine_of_fit("auto", "cpu", "fp16")


@pytest.fixture
def fitted_methods(
    detector: Detector, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> list[FitRequest]:
    """The requests of the fits of a benchmark on a machine where no weights can be had."""

    def refuse(name: str, spec: str) -> None:
        raise WeightsError(f"{name} cannot be had")

    requests: list[FitRequest] = []
    row = detector_row.blank_row(detector, dataset, "disc", MeasureRequest(), engine="x")
    monkeypatch.setattr(benchmark, "resolve_weights", refuse)
    monkeypatch.setattr(
        benchmark, "fit_detector", lambda *_, request, **__: requests.append(request)
    )
    monkeypatch.setattr(benchmark, "on_engine", lambda *_, **__: detector)
    monkeypatch.setattr(
        benchmark,
        "measure_artifact",
        lambda *_, **__: replace(row, method=requests[-1].method, i_auroc=0.7),
    )
    return requests


def test_where_no_weights_can_be_had_a_method_without_weights_is_added(
    dataset: Dataset, fitted_methods: list[FitRequest]
) -> None:
    said: list[str] = []
    request = FitRequest(seed=3, recipe="none", speed="fast", options={"pixel_stride": 4})
    without = method_without_weights()
    rows = run_benchmark(
        dataset.root, ("disc",), request, MeasureRequest(few_shot=(1,)), notice=said.append
    )
    assert [row.method for row in rows] == [request.method] * 2 + [without] * 2
    first, *_, last = fitted_methods
    assert set(first.weights.values()) == {"random"}
    assert last == FitRequest(method=str(without), seed=3, recipe="none")
    assert sum("its accuracy means nothing" in line for line in said) == 2
    assert (
        said[-1] == f"NOTE: {without} needs no weights; its rows, whose accuracy is real, are added"
    )


@pytest.mark.parametrize(
    ("request_", "measure"),
    [
        ({"weights": {"rgb": "random", "point": "random"}}, {}),  # asked for
        ({}, {"speed_only": True}),
        ({"method": method_without_weights()}, {}),
    ],
)
def test_it_is_not_added_where_it_says_nothing_new(
    dataset: Dataset,
    fitted_methods: list[FitRequest],
    request_: dict[str, Any],
    measure: dict[str, Any],
) -> None:
    request = FitRequest(**request_)
    run_benchmark(dataset.root, ("disc",), request, MeasureRequest(**measure))
    assert [fitted.method for fitted in fitted_methods] == [request.method]


def test_a_method_without_weights_has_none() -> None:
    method = method_without_weights()
    family, variant = get_method(method)
    assert [branch.checkpoint for branch in family.branches_of(variant)] == [None]
    for flag in common_options(family):
        assert flag != f"{variant.branches[0]}_weights"


def test_tables_say_which_accuracy_means_nothing(dataset: Dataset, detector: Detector) -> None:
    row = detector_row.blank_row(detector, dataset, "disc", MeasureRequest(), engine="x")
    row = replace(row, i_auroc=0.5, weights="rgb: random")
    real = replace(row, method="formula", weights="none")
    for rows, caption in (
        ([row], "Random weights: the accuracy means nothing."),
        ([row, real], f"Random weights ({row.method}): that accuracy means nothing."),
        ([real], None),
    ):
        (table,) = [t for t in render_rows(rows) if str(t.title).startswith("Accuracy (")]
        assert table.caption == caption
