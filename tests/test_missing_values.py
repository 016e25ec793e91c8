"""What a fit records of the values that stood for no measurement, and how a detector uses it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import make_arrays
from robustness.replacing import writer_arguments

from mmad_fast import Scan, load
from mmad_fast.artifact import write_artifact
from mmad_fast.errors import ArtifactError
from mmad_fast.missing_values import MissingRecord, MissingTally, MissingValue, point_in_file

MARK = (-9999.0, -9999.0, -9999.0)


def artifact_with(artifact: Path, target: Path, record: MissingRecord | None) -> Path:
    return write_artifact(target, **writer_arguments(artifact), missing_values=record)


def test_a_tally_counts_a_scan_once_and_keeps_the_most_frequent() -> None:
    tally = MissingTally()
    for _ in range(2):
        tally.add("a", [MissingValue(MARK, 0.2), MissingValue((1.0, 2.0, 3.0), 0.1)], 0.5)
    tally.add("b", [MissingValue(MARK, 0.4)], 0.6)
    for number in range(20):
        tally.add(number, [MissingValue((0.0, float(number), 1.0), 0.01)], 0.01)
    record = tally.record()
    assert record.values[0] == MissingValue(MARK, pytest.approx(0.3), 2)
    assert record.values[1] == MissingValue((1.0, 2.0, 3.0), 0.1, 1)
    assert len(record.values) == 8
    assert record.largest_share == 0.6
    assert MissingRecord.from_dict(record.to_dict()) == record
    assert "(-9999, -9999, -9999) at 30.0% of the pixels of 2 scans" in str(record)


def test_a_number_that_was_given_is_kept_though_others_are_more_frequent() -> None:
    tally = MissingTally()
    rgb, xyz = make_arrays()
    xyz[:2, :2, 2] = -7.5
    found = Scan.from_arrays(rgb, xyz, missing=-7.5).missing_values
    assert [value.share > 0 for value in found] == [False, False, True]
    for number in range(20):
        more = [MissingValue((1.0, float(number), 1.0), 0.01 + value) for value in (0.0, 0.1)]
        tally.add(number, [*found, *more], 0.1)
    points = tally.record(-7.5).points
    assert {*points[:3]} == {(-7.5, None, None), (None, -7.5, None), (None, None, -7.5)}
    assert len(points) == 8
    assert (-7.5, None, None) not in tally.record().points


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        {"values": [], "largest_share": 2},
        {"values": [{"point": [None] * 3, "share": 0, "num_scans": 1}], "largest_share": 0},
        {"values": [{"point": [1, 2], "share": 0, "num_scans": 1}], "largest_share": 0},
        {"values": [{"point": ["1", 2, 3], "share": 0, "num_scans": 1}], "largest_share": 0},
        {"values": [{"point": [1, 2, 3], "share": 0}], "largest_share": 0},
        {
            "values": [{"point": [at, 2, 3], "share": 0, "num_scans": 1} for at in range(9)],
            "largest_share": 0,
        },
    ],
)
def test_a_damaged_record_is_named(record) -> None:
    with pytest.raises(ArtifactError, match="missing_values are damaged"):
        MissingRecord.from_dict(record)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_point_is_told_as_it_stands_in_the_file(scale: float) -> None:
    rng = np.random.default_rng(0)
    for number in (-9999.0, 65535.0, 1e10, -0.1, *rng.normal(0, 500, 200)):
        metres = float(np.float32(number / scale))
        x, y, z = point_in_file((metres, None, 0.0), scale)
        assert np.float32(x / scale) == np.float32(metres)
        assert (y, z) == (None, 0.0)
        assert x == pytest.approx(number, rel=1e-6)
    assert point_in_file((float(np.float32(-9999 / scale)),) * 3, scale) == MARK


@pytest.mark.parametrize("unit", ["m", "mm"])
def test_a_mark_that_the_fit_saw_is_known_at_few_pixels(
    tiny_artifact: Path, tmp_path: Path, unit: str
) -> None:
    """Three pixels within the part: too few to be found, and not too far to be points in mm."""
    rgb, xyz = make_arrays()
    numbers = xyz if unit == "m" else xyz * np.float32(1000)
    holes, marked = numbers.copy(), numbers.copy()
    at = ([48, 48, 47], [47, 48, 48])
    holes[at], marked[at] = 0, -9999
    record = MissingRecord((MissingValue(MARK, 0.5, 8),), 0.5)
    known = load(artifact_with(tiny_artifact, tmp_path / "known", record))
    expected = known.infer(rgb, holes, unit=unit)
    result = known.infer(rgb, marked, unit=unit)
    np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)
    prepared = known.prepare(Scan.from_arrays(rgb, marked, unit=unit))
    assert np.abs(prepared.points).max() < 1
    forced = load(tiny_artifact).infer(rgb, marked, unit=unit, missing=-9999)
    np.testing.assert_array_equal(forced.anomaly_map, expected.anomaly_map)


def test_a_zero_that_the_fit_saw_is_known_though_it_is_moved(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    rgb, xyz = make_arrays()
    holes, marked = xyz.copy(), xyz.copy()
    holes[48, 40:50], marked[48, 40:50, 0] = 0, 0
    record = MissingRecord((MissingValue((0.0, None, None), 0.5, 8),), 0.5)
    known = load(artifact_with(tiny_artifact, tmp_path / "known", record))
    np.testing.assert_array_equal(
        known.infer(rgb, marked).anomaly_map, known.infer(rgb, holes).anomaly_map
    )


def test_a_scan_of_marks_is_not_scored_without_a_word(
    tiny_artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rgb, xyz = make_arrays()
    marked = xyz.copy()
    marked[:60] = -9999
    words = "scan 'odd': taken as missing, of all pixels: (-9999, -9999, -9999) at 62.5%; "
    with caplog.at_level(logging.WARNING, "mmad_fast"):
        load(tiny_artifact).infer(rgb, marked, name="odd")
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.startswith(words)
        caplog.clear()
        record = MissingRecord((MissingValue(MARK, 0.6, 8),), 0.6)
        load(artifact_with(tiny_artifact, tmp_path / "known", record)).infer(rgb, marked)
        assert not caplog.records
