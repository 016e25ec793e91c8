"""What a benchmark does for a family that is not CFM: one with a single backbone, options of its
own, and something that is trained once for all categories."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmad_fast.artifact import read_artifact
from mmad_fast.data.dataset import Dataset
from mmad_fast.errors import InvalidInputError
from mmad_fast.measure import configuration, detector_row
from mmad_fast.measure.benchmark import run_benchmark
from mmad_fast.measure.detector_row import MeasureRequest
from mmad_fast.measure.tables import BenchRow
from mmad_fast.methods import fitting, variants
from mmad_fast.methods.fit_options import options_of
from mmad_fast.methods.fitting import FitRequest
from mmad_fast.whole_folder import write_manifest

pytest.importorskip("torch", reason="fitting needs torch")

REPORT = {
    **{"latencies_ms": [1.0], "prepared_latencies_ms": [1.0], "stage_ms": {"all": 1.0}},
    **{"weights_mib": 1.0, "peak_working_mib": None, "process_peak_mib": None},
}


@dataclass(frozen=True)
class FakeOptions:
    method: str
    rgb_weights: str = "auto"
    point_weights: str = "auto"
    threshold_quantile: float = 0.99
    seed: int = 0
    unit: str = "m"
    shared: str = "train"

    @classmethod
    def of(cls, request: FitRequest) -> FakeOptions:
        return options_of(cls, request, {"exact": {}})


@dataclass
class FakeFamily:
    """Stands in for a family's modules, and notes what it was asked."""

    artifact: Path
    request: FitRequest | None = None
    shared: list[tuple[int | None, str]] = field(default_factory=list)
    requests: list[FitRequest] = field(default_factory=list)
    trained_on: list[tuple[str, ...]] = field(default_factory=list)

    def fit(
        self, train: Sequence[Any], validation: Any, output: Path, request: Any, *, progress: Any
    ) -> Path:
        self.requests.append(request)
        self.trained_on.append(tuple(scan.name for scan in train))
        shutil.copytree(self.artifact, output)
        content = asdict(read_artifact(self.artifact).manifest)
        content |= {"method": "fake", "family": "fake", "weights": {"rgb": {"kind": "file"}}}
        write_manifest(content, output)
        return output

    def train_shared(
        self, dataset: Any, categories: Any, request: Any, folder: Path, progress: Any
    ) -> FitRequest:
        assert list(categories) == ["disc"]
        self.shared.append((request.shots, folder.name))
        return replace(request, options={**request.options, "shared": folder})


@pytest.fixture
def family(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFamily:
    fake = FakeFamily(tiny_artifact)
    module = SimpleNamespace(fit=fake.fit, train_shared=fake.train_shared, Options=FakeOptions)
    monkeypatch.setitem(sys.modules, "fake_family", module)
    variant = variants.Variant("fake", "fake", "dino-vitb8", 1, (0,), "CFM", modalities=("rgb",))
    monkeypatch.setitem(variants.VARIANTS, "fake", variant)
    for table, value in (
        (variants.FAMILY_DETECTORS, {"cpu": variants.FAMILY_DETECTORS["cfm"]["cpu"]}),
        (variants.FAMILY_FITS, "fake_family:fit"),
        (variants.FAMILY_OPTIONS, "fake_family:Options"),
        (variants.FAMILY_SHARED_TRAINING, "fake_family:train_shared"),
        (variants.FAMILY_AUPRO_THRESHOLDS, 100),
        (configuration._OF_FAMILY, {}),
    ):
        monkeypatch.setitem(table, "fake", value)
    monkeypatch.setattr(detector_row, "measure_detector_process", lambda *_, **__: REPORT)
    fake.request = FitRequest(method="fake", rgb_weights="random", point_weights="random")
    return fake


def test_few_shots_are_fits_and_rows_of_their_own(
    dataset: Dataset, family: FakeFamily, tmp_path: Path
) -> None:
    kept: list[BenchRow] = []
    notices: list[str] = []
    rows = run_benchmark(
        dataset.root,
        (),
        family.request,
        MeasureRequest(few_shot=(1,)),
        output=tmp_path / "out",
        notice=notices.append,
        on_row=kept.append,
    )
    assert rows == kept
    assert [row.shots for row in rows] == [1, None]
    assert [len(names) for names in family.trained_on] == [1, 2]
    assert family.shared == [(1, "shared-1shot"), (None, "shared")]
    assert [request.options["shared"] for request in family.requests] == [
        str(tmp_path / "out" / name) for _, name in family.shared
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["disc", "disc-1shot"]
    assert [row.weights for row in rows] == ["rgb: file", "rgb: file"]
    assert len(notices) == 1  # about its only backbone
    assert "dino-vitb8 runs on seeded random weights" in notices[0]
    # It is the variant's own: point layers are not looked at. No paper has one shot.
    assert [row.published and row.published[0].method for row in rows] == [(), "CFM"]


@pytest.mark.parametrize(("cut", "num_scans"), [({}, 2), ({"max_train_scans": 1}, 1)])
def test_a_fit_for_the_speed_leaves_out_what_its_family_says(
    dataset: Dataset,
    family: FakeFamily,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: dict[str, int],
    num_scans: int,
) -> None:
    monkeypatch.setitem(variants.FAMILY_SPEED_ONLY, "fake", cut)
    request = MeasureRequest(speed_only=True)
    run_benchmark(dataset.root, ("disc",), family.request, request, output=tmp_path / "out")
    assert [len(names) for names in family.trained_on] == [num_scans]
    assert family.requests[0].epochs is None


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"few_shot": (1, 3)}, "shots is 3, but category 'disc' has 2 training scans"),
        ({"few_shot": (1,), "speed_only": True}, "leave out --few-shot or --speed-only"),
    ],
)
def test_shots_that_cannot_be_had_are_refused_before_any_fit(
    dataset: Dataset, family: FakeFamily, request_: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        run_benchmark(dataset.root, (), family.request, MeasureRequest(**request_))
    assert family.requests == family.shared == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3}, "fake has no option 'epochs'; it has: .*: shared$"),
        ({"options": {"point_patches": "28x28"}}, "fake has no option 'point_patches'"),
    ],
)
def test_options_of_another_family_are_refused_before_any_work(
    tmp_path: Path, family: FakeFamily, changes: dict[str, Any], words: str
) -> None:
    request = replace(family.request, **changes)
    with pytest.raises(InvalidInputError, match=words):
        run_benchmark(tmp_path / "absent", (), request, MeasureRequest())
    with pytest.raises(InvalidInputError, match=words):
        fitting.fit_detector(tmp_path / "absent", tmp_path / "out", request=request)
    assert list(tmp_path.iterdir()) == []


def test_the_same_few_scans_whatever_is_fitted(dataset: Dataset) -> None:
    everything = fitting.training_scans(dataset, "disc")
    few = {seed: fitting.training_scans(dataset, "disc", shots=1, seed=seed) for seed in range(8)}
    assert {len(scans) for scans in few.values()} == {1}
    assert {scans[0] for scans in few.values()} == set(everything)  # the seed chooses
    for seed, scans in few.items():
        assert fitting.training_scans(dataset, "disc", shots=1, seed=seed) == scans
        assert list(fitting.training_scans(dataset, "disc", shots=2, seed=seed)) == list(everything)
