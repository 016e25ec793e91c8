"""Recording what a detector's graphs get: every scan once, in order, as the engines see it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import NUM_GROUPS, RGB_SIZE, make_arrays
from numpy.typing import NDArray
from PIL import Image
from tifffile import imwrite

from mmad_fast.artifact import read_artifact
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.detector import Detector, load, open_detector
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import EmptyScanError, InvalidInputError
from mmad_fast.export.calibration import record_graph_inputs
from mmad_fast.export.calibration_scans import calibrate
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS
from mmad_fast.scan import Scan


@pytest.fixture(scope="module")
def detector(tiny_artifact: Path) -> Detector:
    return load(tiny_artifact)


def scan_of(seed: int) -> Scan:
    return Scan.from_arrays(*make_arrays(seed), name=f"scan {seed}")


def empty_scan() -> Scan:
    rgb, xyz = make_arrays()
    return Scan.from_arrays(rgb, np.zeros_like(xyz))


def test_each_graph_has_its_inputs_of_each_scan(detector: Detector) -> None:
    scans = [scan_of(seed) for seed in range(3)]
    recorded = record_graph_inputs(detector, scans, "m")
    assert set(recorded) == {"rgb", "points"}
    assert [len(inputs) for inputs in recorded.values()] == [3, 3]
    for scan, inputs in zip(scans, recorded["rgb"], strict=True):
        assert list(inputs) == ["image"]
        assert inputs["image"].shape == (1, 3, RGB_SIZE, RGB_SIZE)
        np.testing.assert_array_equal(inputs["image"][0], detector.prepare(scan).rgb)
    for inputs in recorded["points"]:
        assert inputs["tokens"].shape == (1, NUM_GROUPS, TOKEN_CHANNELS)
        assert inputs["centers"].shape == (1, NUM_GROUPS, 3)
        assert np.isfinite(inputs["tokens"]).all()
    first, second = (recorded["points"][scan]["centers"] for scan in (0, 1))
    assert (first != second).any()


def test_progress_is_told_up_to_the_last_scan(tiny_artifact: Path) -> None:
    told: list[tuple[str, int, int]] = []
    calibrate(
        read_artifact(tiny_artifact),
        [scan_of(seed) for seed in range(2)],
        category=None,
        unit="m",
        progress=lambda *told_now: told.append(told_now),
    )
    assert told == [("calibration", done, 2) for done in range(3)]


class _Repeated:
    """A graph that runs once more on other inputs, as M3DM's feature fusion does."""

    def __init__(self, engine: Engine) -> None:
        self.input_shapes, self.output_shapes = engine.input_shapes, engine.output_shapes
        self._engine = engine

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        self._engine.run({name: array + 1 for name, array in inputs.items()})
        return self._engine.run(inputs)


class _RepeatingChoice(EngineChoice):
    """A choice of engines with which the graph "points" runs twice per scan."""

    def open(self, name: str) -> Engine:
        engine = super().open(name)
        return _Repeated(engine) if name == "points" else engine


def test_every_run_of_a_scan_is_recorded(detector: Detector) -> None:
    scans = [scan_of(0), empty_scan(), scan_of(1)]
    choice = _RepeatingChoice(**vars(detector.engine_choice))
    repeating = open_detector(detector.artifact, choice)
    recorded = record_graph_inputs(repeating, scans, "m")
    once = record_graph_inputs(detector, scans, "m")
    assert [len(recorded[name]) for name in ("rgb", "points")] == [2, 4]
    for scan, inputs in enumerate(once["points"]):
        for name, array in inputs.items():
            other, own = (recorded["points"][2 * scan + run][name] for run in (0, 1))
            np.testing.assert_array_equal(own, array)
            np.testing.assert_array_equal(other, array + 1)


def test_the_detector_stays_as_it_was(detector: Detector) -> None:
    rgb, xyz = make_arrays()
    before = detector.infer(rgb, xyz)
    recorded = record_graph_inputs(detector, [scan_of(0)], "m")
    detector.infer(rgb, xyz)
    assert [len(inputs) for inputs in recorded.values()] == [1, 1]
    assert detector.infer(rgb, xyz).image_score == before.image_score


def test_one_scan_is_held_at_a_time(detector: Detector) -> None:
    earlier: list[weakref.ref[Scan]] = []
    num_alive: list[int] = []

    def stream() -> Iterator[Scan]:
        for seed in range(4):
            scan = scan_of(seed)
            earlier.append(weakref.ref(scan))
            yield scan
            del scan
            num_alive.append(sum(reference() is not None for reference in earlier))

    record_graph_inputs(detector, stream(), "m")
    assert max(num_alive) == 1


def test_files_are_read_in_their_unit(detector: Detector, tmp_path: Path) -> None:
    rgb, xyz = make_arrays()
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    imwrite(tmp_path / "xyz.tiff", 1000 * xyz, photometric="rgb")
    file = ScanFile("a", "part", "train", "good", tmp_path / "rgb.png", tmp_path / "xyz.tiff")
    from_file = record_graph_inputs(detector, [file], "mm")["points"][0]
    from_scan = record_graph_inputs(detector, [scan_of(0)], "m")["points"][0]
    np.testing.assert_allclose(from_file["centers"], from_scan["centers"], atol=1e-6)


def test_scans_without_foreground_are_left_out(detector: Detector) -> None:
    recorded = record_graph_inputs(detector, [empty_scan(), scan_of(0), empty_scan()], "m")
    assert [len(inputs) for inputs in recorded.values()] == [1, 1]
    with pytest.raises(EmptyScanError, match="none of the 2 calibration scans has enough"):
        record_graph_inputs(detector, [empty_scan(), empty_scan()], "m")


def test_no_scans_are_refused(detector: Detector) -> None:
    with pytest.raises(InvalidInputError, match="there is no calibration scan; int8 and fp8 need"):
        record_graph_inputs(detector, iter([]), "m")


def test_a_detector_of_another_device_is_refused(tiny_artifact: Path) -> None:
    own = load(tiny_artifact)
    other = Detector(own.artifact, own._pipeline, replace(own.engine_choice, device="cuda"))
    with pytest.raises(InvalidInputError, match="on device 'cuda', .*; load it with device='cpu'"):
        record_graph_inputs(other, [scan_of(0)], "m")
