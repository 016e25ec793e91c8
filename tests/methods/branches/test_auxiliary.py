"""Pictures of normals that come with a scan, through a whole detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_artifacts import TINY_DISTILLATION, make_arrays, write_tiny_mmrd
from typer.testing import CliRunner

import mmad_fast
from mmad_fast.artifact import Artifact, read_artifact
from mmad_fast.cli import app
from mmad_fast.data import open_dataset
from mmad_fast.data.mvtec3d import write_scan
from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.measure.detector_row import MeasureRequest, measure_artifact
from mmad_fast.methods.fit_request import FitRequest, FitTask
from mmad_fast.scan import Scan

READING = replace(TINY_DISTILLATION, auxiliary="normals", normals_from="images")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that reads RGB and the data set's pictures of normals."""
    return write_tiny_mmrd(tmp_path_factory.mktemp("aux") / "mmrd", READING)


def test_a_detector_reads_the_pictures_that_it_was_fitted_with(artifact: Path) -> None:
    detector = mmad_fast.load(artifact)
    assert detector.artifact.golden().scan.normals is not None
    assert detector.replay_golden().agrees
    rgb, xyz = make_arrays(1)
    scores = [detector.infer(rgb, xyz, normals=one).image_score for one in (rgb, 255 - rgb)]
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)
    assert mmad_fast.infer(artifact, rgb, xyz, normals=rgb).image_score == scores[0]
    # Of the points only their being there matters.
    assert detector.infer(rgb, xyz * np.float32(1.1), normals=rgb).image_score == scores[0]


def test_a_scan_without_them_is_told(artifact: Path, tmp_path: Path) -> None:
    rgb, xyz = make_arrays(1)
    with pytest.raises(InvalidInputError, match="the scan has no picture of its surface normals"):
        mmad_fast.infer(artifact, rgb, xyz)
    folder = tmp_path / "scans"
    write_scan(folder, "with", rgb, xyz, normals=rgb)
    write_scan(folder, "without", rgb, xyz)
    done = CliRunner().invoke(app, ["infer", str(artifact), str(folder)])
    assert done.exit_code == 1
    assert "has no picture of its surface normals" in " ".join(done.output.split())
    Image.fromarray(rgb).save(tmp_path / "own.png")
    one = [str(artifact), str(folder / "rgb" / "without.png")]
    given = CliRunner().invoke(app, ["infer", *one, "--normals", str(tmp_path / "own.png")])
    assert given.exit_code == 0


def test_they_are_read_wherever_a_detector_scores_files(artifact: Path, tmp_path: Path) -> None:
    for index, kind in enumerate(("good", "hole")):
        rgb, xyz = make_arrays(index)
        mask = np.zeros(rgb.shape[:2], np.bool_)
        mask[40:50, 40:50] = kind == "hole"
        folder = tmp_path / "part" / "test" / kind
        write_scan(folder, "000", rgb, xyz, normals=rgb, ground_truth=mask)
    dataset = open_dataset(tmp_path)
    # Scored here, and timed on copies of the files in a process of its own.
    row = measure_artifact(mmad_fast.load(artifact), dataset, "part", MeasureRequest())
    assert row.i_auroc in (0.0, 1.0)
    assert row.latency_ms_p50 is not None


def test_a_golden_scan_that_lost_its_picture_is_told(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = mmad_fast.load(artifact)
    incomplete = replace(detector.artifact.golden(), normals=None)
    monkeypatch.setattr(Artifact, "golden", lambda _: incomplete)
    with pytest.raises(ArtifactError, match="golden scan cannot be scored.*no picture of its surf"):
        detector.replay_golden()


def test_a_fit_reads_them_too(tmp_path: Path) -> None:
    request = FitRequest.of("mmrd", auxiliary="both", normals_from="images")
    task = FitTask.of(request, [], tmp_path, lambda *_: None)
    assert task.recipe.reads_normals
    rgb, xyz = make_arrays()
    prepared = task.prepare(Scan.from_arrays(rgb, xyz, normals=rgb))
    assert prepared.auxiliary is not None
    np.testing.assert_array_equal(prepared.auxiliary[1], prepared.rgb)
    write_scan(tmp_path / "part" / "train" / "good", "000", rgb, xyz, normals=rgb)
    (file,) = open_dataset(tmp_path).scans("part", "train")
    np.testing.assert_array_equal(task.prepare(file).auxiliary, prepared.auxiliary)
    with pytest.raises(InvalidInputError, match="scan 'part' has no picture of its surface norm"):
        task.prepare(Scan.from_arrays(rgb, xyz, name="part"))


def test_an_artifact_that_reads_no_pictures_has_none(tmp_path: Path) -> None:
    path = write_tiny_mmrd(tmp_path / "mmrd")
    assert read_artifact(path).golden().normals is None
    rgb, xyz = make_arrays(1)
    detector = mmad_fast.load(path)
    assert detector.infer(rgb, xyz).image_score == detector.infer(rgb, xyz, normals=rgb).image_score
