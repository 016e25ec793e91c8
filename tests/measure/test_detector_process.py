"""The measuring child process, with a stand-in for the detector."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmad_fast.errors import InvalidInputError, MmadFastError
from mmad_fast.measure.memory import measure_detector_process

FAKE_DETECTOR = """
    import pathlib
    import time
    from types import SimpleNamespace
    import numpy as np
    import mmad_fast.detector

    class FakeDetector:
        calls = 0
        def __init__(self, path):
            files = {"rgb": pathlib.Path(path) / "rgb.onnx"}
            self.engine_choice = SimpleNamespace(files=files)
            self.artifact = SimpleNamespace(files=SimpleNamespace(digest="now"))
        def infer_scan(self, scan):
            assert scan.rgb.shape == (6, 8, 3)
            FakeDetector.calls += 1
            work = np.ones((64 if FakeDetector.calls == 1 else 1) * 2**20, np.uint8)
            time.sleep(0.02)
            return SimpleNamespace(stage_ms={"preprocess": 5.0, "score": float(scan.rgb[0, 0, 0])})

    def load(path, *, engine, device, precision, num_threads):
        assert (engine, device, precision) == ("auto", "cpu", None)
        pathlib.Path(path, "rgb.onnx").touch()
        print("a library that talks on standard output")
        BODY
        return FakeDetector(path)

    mmad_fast.detector.load = load
"""


@pytest.fixture
def scans(tmp_path) -> list[tuple[Path, Path]]:
    paths = []
    for index, red in enumerate((10, 30)):
        rgb_path, xyz_path = tmp_path / f"{index}.png", tmp_path / f"{index}.tiff"
        rgb = np.full((6, 8, 3), red, np.uint8)
        Image.fromarray(rgb).save(rgb_path)
        tifffile.imwrite(xyz_path, np.full((6, 8, 3), 0.5, np.float32), photometric="rgb")
        paths.append((rgb_path, xyz_path))
    return paths


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A function that makes every new Python process use the fake detector."""

    def install(body: str = "pass") -> None:
        folder = tmp_path / "site"
        folder.mkdir()
        code = textwrap.dedent(FAKE_DETECTOR).replace("BODY", body)
        (folder / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return install


def test_report(fake, scans, tmp_path):
    fake()
    (tmp_path / "rgb.onnx").write_bytes(bytes(2**20))
    report = measure_detector_process(tmp_path, scans, num_warmup=1, num_runs=3)
    assert len(report["latencies_ms"]) == 3
    assert all(latency >= 20 for latency in report["latencies_ms"])
    expected = [latency - 5 for latency in report["latencies_ms"]]
    assert report["prepared_latencies_ms"] == pytest.approx(expected)
    assert report["stage_ms"] == {"preprocess": 5.0, "score": 10.0}  # median of 10, 30, 10
    assert report["weights_mib"] == 1
    assert report["load_ms"] > 0
    assert report["torch_imported"] is False
    if report["peak_working_mib"] is not None:
        assert 60 < report["peak_working_mib"] < 80  # the first call's 64 MiB
        assert report["process_peak_mib"] > report["peak_working_mib"]


def test_engine_and_kernels_get_the_threads(fake, scans, tmp_path):
    fake("from mmad_fast import threads; assert num_threads == threads.get_num_threads() == 3")
    report = measure_detector_process(tmp_path, scans, num_threads=3, num_warmup=0, num_runs=1)
    assert len(report["latencies_ms"]) == 1


def test_an_error_of_the_child_is_handed_on(fake, scans, tmp_path):
    fake("raise mmad_fast.detector.ArtifactError('manifest.json is gone; fit again')")
    with pytest.raises(
        MmadFastError, match=r"exit code 1(?s:.*)ArtifactError: manifest.json is gone"
    ):
        measure_detector_process(tmp_path, scans)


def test_speed_is_measured_of_the_artifact_whose_accuracy_was(fake, scans, tmp_path):
    fake()
    measure_detector_process(tmp_path, scans, num_warmup=0, num_runs=1, digest="now")
    with pytest.raises(MmadFastError, match="was replaced while it was measured; measure it again"):
        measure_detector_process(tmp_path, scans, num_warmup=0, num_runs=1, digest="before")


def test_a_crash_of_the_child_is_handed_on_with_its_traceback(fake, scans, tmp_path):
    fake("raise ZeroDivisionError('deep inside')")
    with pytest.raises(MmadFastError, match=r"Traceback(?s:.*)ZeroDivisionError: deep inside"):
        measure_detector_process(tmp_path, scans)


def test_a_child_that_dies_is_an_error(fake, scans, tmp_path):
    fake("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(MmadFastError, match="exit code -9"):
        measure_detector_process(tmp_path, scans)


def test_a_child_that_hangs_is_stopped(fake, scans, tmp_path):
    fake("time.sleep(60)")
    with pytest.raises(MmadFastError, match="stopped after 1 s"):
        measure_detector_process(tmp_path, scans, timeout_s=1)


def test_a_child_that_says_nothing_is_an_error(fake, scans, tmp_path):
    fake("import os; os._exit(0)")
    with pytest.raises(MmadFastError, match="without a report"):
        measure_detector_process(tmp_path, scans)


def test_a_child_with_torch_is_refused(fake, scans, tmp_path):
    fake("import sys; sys.modules['torch'] = sys")
    with pytest.raises(MmadFastError, match="imported torch"):
        measure_detector_process(tmp_path, scans, num_warmup=0, num_runs=1)


def test_no_scans_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="got 0 scans"):
        measure_detector_process(tmp_path, [])
