from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmad_fast.measure import memory
from mmad_fast.measure.memory import peak_working_mib, process_peak_mib, weights_mib

NUM_MIB = 96
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def _touch(num_mib: int) -> None:
    np.ones(num_mib * 2**20, np.uint8)


@pytest.fixture
def can_reset() -> None:
    if peak_working_mib(lambda: None) is None:
        pytest.skip("this system does not let a process reset its peak of resident memory")


@on_linux
@pytest.mark.usefixtures("can_reset")
def test_the_peak_of_a_call_is_what_it_touches():
    # The kernel counts pages in batches per core: allow 4 MiB.
    assert peak_working_mib(lambda: _touch(NUM_MIB)) == pytest.approx(NUM_MIB, abs=4)


@on_linux
@pytest.mark.usefixtures("can_reset")
def test_memory_held_before_the_call_is_not_counted():
    held = np.ones(NUM_MIB * 2**20, np.uint8)
    assert peak_working_mib(lambda: _touch(8)) == pytest.approx(8, abs=4)
    assert held[-1] == 1


@on_linux
@pytest.mark.usefixtures("can_reset")
def test_measuring_a_call_does_not_lower_the_process_peak():
    _touch(NUM_MIB)
    before = process_peak_mib()
    peak_working_mib(lambda: None)
    assert process_peak_mib() >= before


@on_linux
def test_the_process_peak_is_not_the_parents():
    held = np.ones(200 * 2**20, np.uint8)  # the parent is large while the child starts
    code = "from mmad_fast.measure.memory import process_peak_mib; print(process_peak_mib())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 200 < process_peak_mib()
    assert held[-1] == 1


def test_where_the_peak_cannot_be_reset_the_call_is_made_and_the_answer_is_none(monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR_REFS_FILE", Path("no", "such", "file"))
    calls = []
    assert peak_working_mib(lambda: calls.append(1)) is None
    assert calls == [1]


def test_without_a_status_file_the_process_peak_comes_from_getrusage(monkeypatch):
    monkeypatch.setattr(memory, "_STATUS_FILE", Path("no", "such", "file"))
    assert process_peak_mib() > 5


def test_weights_are_the_engines_graphs_and_tensors_only(tmp_path):
    sizes = {
        "rgb.onnx": 3 * 2**20,
        "point.onnx": 2**20,
        "rgb.openvino.xml": 2**10,
        "rgb.openvino.bin": 2**21 - 2**10,
        "tensors.safetensors": 2**19,
        "golden.safetensors": 2**20,
        "manifest.json": 2**20,
    }
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert weights_mib(tmp_path, [tmp_path / "rgb.onnx", tmp_path / "point.onnx"]) == 4.5
    assert weights_mib(tmp_path, [tmp_path / "rgb.openvino.xml"]) == 2.5
