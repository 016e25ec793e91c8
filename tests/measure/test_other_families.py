"""What a benchmark does for a family that is not CFM: one with a single backbone, options of its
own, and something that is trained once for all categories."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import RGB_SIZE, TINY_PARAMETERS, TOKEN_GRID

from mmad_fast.artifact import read_artifact
from mmad_fast.data.dataset import Dataset
from mmad_fast.detector import load
from mmad_fast.errors import InvalidInputError
from mmad_fast.measure import detector_row
from mmad_fast.measure.benchmark import run_benchmark
from mmad_fast.measure.detector_row import MeasureRequest
from mmad_fast.measure.tables import BenchRow
from mmad_fast.methods import family as families
from mmad_fast.methods.branches import point_groups, vit_tokens
from mmad_fast.methods.branches.point_groups.options import PointGroupOptions
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.methods.cfm.family import FAMILY as CFM
from mmad_fast.methods.family import Family, SharedTraining, SpeedOnlyFit, Trained, Variant
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitRequest, FitTask
from mmad_fast.methods.fit_run import fit, training_scans
from mmad_fast.methods.options import option
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

pytest.importorskip("torch", reason="fitting needs torch")

REPORT = {
    **{"latencies_ms": [1.0], "prepared_latencies_ms": [1.0], "stage_ms": {"all": 1.0}},
    **{"weights_mib": 1.0, "peak_working_mib": None, "process_peak_mib": None},
}


@dataclass(frozen=True)
class FakeOptions(VitTokenOptions, PointGroupOptions):
    shared: str = option("train", "Where what is shared comes from.", fit_only=True)

    def with_constants(self) -> FakeOptions:
        return replace(self, rgb_size=RGB_SIZE, token_grid=TOKEN_GRID, grid_size=RGB_SIZE)


@dataclass
class FakeFamily:
    """A family whose fit hands out the tiny detector, and notes what it was asked."""

    artifact: Path
    monkeypatch: pytest.MonkeyPatch
    request: FitRequest = field(init=False)
    shared: list[tuple[int | None, Path]] = field(default_factory=list)
    requests: list[FitRequest] = field(default_factory=list)
    trained_on: list[tuple[str, ...]] = field(default_factory=list)

    def register(self, **changes: Any) -> None:
        """Makes it one of the families, with fields of its record changed."""
        record = Family(
            name="fake",
            variants=(Variant("fake", "CFM", ("rgb",), {"rgb_layers": 1}),),
            default="fake",
            options=FakeOptions,
            branches=(vit_tokens.BRANCH, point_groups.BRANCH),
            recipe=CFM.recipe,
            speeds={"exact": {}},
            pipelines={"cpu": CFM.pipelines["cpu"]},
            fit=lambda task: FakeFit(self, task),
            reference=CFM.reference,
            aupro_thresholds=100,
            score_is_map_maximum=True,
            shared_training=SharedTraining(
                what="nothing",
                option="shared",
                file_name="shared.weights",
                wants=lambda options: options.shared == "train",
                train=self.train_shared,
            ),
        )
        module = SimpleNamespace(FAMILY=replace(record, **changes))
        self.monkeypatch.setitem(sys.modules, "mmad_fast.methods.fake.family", module)
        families.get_family.cache_clear()

    def train_shared(
        self, dataset: Any, categories: Any, request: FitRequest, output: Path, progress: Any
    ) -> Any:
        assert list(categories) == ["disc"]
        self.shared.append((request.shots, output))


class FakeFit:
    """The tiny detector, whatever the scans."""

    memory_limit_mib = 0.0

    def __init__(self, family: FakeFamily, task: FitTask) -> None:
        family.requests.append(task.request)
        family.trained_on.append(tuple(scan.name for scan in task.train))
        self._artifact = read_artifact(family.artifact)
        self._pipeline: Any = load(family.artifact)._pipeline

    def extract(self, prepared: PreparedScan) -> Any:
        return self._pipeline.extractor.extract(prepared, StageClock())

    def train(self, train: FeatureStore[Any], held_out: FeatureStore[Any]) -> Trained:
        artifact = self._artifact
        graphs = {name: artifact.graph_path(name) for name in artifact.manifest.graphs}
        return Trained(self._pipeline, {"rgb": {"kind": "file"}}, graphs, artifact.tensors(), {})


@pytest.fixture
def family(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFamily]:
    assert TINY_PARAMETERS.grid_size == RGB_SIZE
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, "fake"))
    monkeypatch.setattr(detector_row, "measure_detector_process", lambda *_, **__: REPORT)
    fake = FakeFamily(tiny_artifact, monkeypatch)
    fake.register()
    fake.request = FitRequest(method="fake", weights={"rgb": "random", "point": "random"})
    yield fake
    families.get_family.cache_clear()


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
    out = tmp_path / "out"
    assert family.shared == [
        (1, out / "shared-1shot" / "shared.weights"),
        (None, out / "shared" / "shared.weights"),
    ]
    assert [request.options["shared"] for request in family.requests] == [
        str(path) for _, path in family.shared
    ]
    assert sorted(path.name for path in out.iterdir()) == ["disc", "disc-1shot"]
    assert [row.weights for row in rows] == ["rgb: file", "rgb: file"]
    assert len(notices) == 1  # about its only backbone
    assert "dino-vitb8 runs on seeded random weights" in notices[0]
    # It is the variant's own: point layers are not looked at. No paper has one shot.
    assert [row.published and row.published[0].method for row in rows] == [(), "CFM"]


@pytest.mark.parametrize(
    ("cut", "num_scans", "options"),
    [
        (SpeedOnlyFit(), 2, {}),
        (SpeedOnlyFit(train_scans=1), 1, {}),
        (SpeedOnlyFit(values={"shared": "none", "rgb_layers": 2}), 2, {"rgb_layers": 2}),
    ],
)
def test_a_fit_for_the_speed_leaves_out_what_its_family_says(
    dataset: Dataset,
    family: FakeFamily,
    tmp_path: Path,
    cut: SpeedOnlyFit,
    num_scans: int,
    options: dict[str, int],
) -> None:
    family.register(speed_only=cut)
    request = MeasureRequest(speed_only=True)
    run_benchmark(dataset.root, ("disc",), family.request, request, output=tmp_path / "out")
    assert [len(names) for names in family.trained_on] == [num_scans]
    shared = str(tmp_path / "out" / "shared" / "shared.weights")
    own = options | {"shared": "none" if options else shared}
    assert family.requests[0].options == own  # and none of another family's
    assert len(family.shared) == (0 if options else 1)


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
        ({"epochs": 3}, "fake has no option 'epochs'; it has: .*, shared; and, as every method: "),
        ({"point_patches": "28x28"}, "fake has no option 'point_patches'"),
        ({"num_groups": 64}, "num_groups is 64, but fake uses no point features; leave it out"),
    ],
)
def test_options_of_another_family_are_refused_before_any_work(
    tmp_path: Path, family: FakeFamily, changes: dict[str, Any], words: str
) -> None:
    """A request that holds one cannot be made."""
    with pytest.raises(InvalidInputError, match=words):
        replace(family.request, options=changes)
    with pytest.raises(InvalidInputError, match=words):
        fit(tmp_path / "absent", tmp_path / "out", method="fake", **changes)
    assert list(tmp_path.iterdir()) == []


def test_the_same_few_scans_whatever_is_fitted(dataset: Dataset) -> None:
    everything = training_scans(dataset, "disc")
    few = {seed: training_scans(dataset, "disc", shots=1, seed=seed) for seed in range(8)}
    assert {len(scans) for scans in few.values()} == {1}
    assert {scans[0] for scans in few.values()} == set(everything)  # the seed chooses
    for seed, scans in few.items():
        assert training_scans(dataset, "disc", shots=1, seed=seed) == scans
        assert list(training_scans(dataset, "disc", shots=2, seed=seed)) == list(everything)
