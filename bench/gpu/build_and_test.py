"""Builds the project with its CUDA kernels, runs all tests with the GPU backends required, and the
CUDA kernels' tests under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from gpu.rows import FAILED, NOT_RUN, OK, SETTINGS, RowFile
from settings import ROOT

from mmad_fast.measure.cuda_resources import installed_nvcc

BUILD_TIMEOUT_S = 900.0
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SANITIZER_ERROR = 66
SANITIZER_SELECTION = "one-point or sixty-three or duplicates or finite or in_range"
NO_TESTS_SELECTED, TIMED_OUT = 5, 124
WITHOUT_GPU = ("test_compile_matrix.py", "test_ahead_of_time.py", "test_cuda_sanitizers.py")
"""Tests in tests/gpu that compile for all architectures or emulate: not part of a quick run."""


@dataclass(frozen=True)
class TestOutcome:
    """One test of a junit file: module and test, "passed", "failed" or "skipped", and why."""

    __test__ = False  # pytest takes classes named Test... for tests

    name: str
    outcome: str
    reason: str
    seconds: float

    @property
    def needs_gpu(self) -> bool:
        """It tests a GPU backend: a module in tests/gpu, or one named *_cuda, *_triton or
        *_device_*."""
        module = self.name.partition("::")[0]
        parts = module.split(".")
        return "gpu" in parts[:-1] or any(
            part.startswith("test_") and (part.endswith(("_cuda", "_triton")) or "_device_" in part)
            for part in parts
        )

    @property
    def is_failure(self) -> bool:
        """It failed, or it needs the GPU and was skipped without a reason that allows it."""
        if self.outcome == "skipped":
            return self.needs_gpu and not self.reason.startswith(tuple(SETTINGS["allowed_skips"]))
        return self.outcome == "failed"


def read_junit(text: str) -> list[TestOutcome]:
    """The tests of a junit file."""
    found = []
    for case in ElementTree.fromstring(text).iter("testcase"):
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, reason = "failed", child.get("message") or child.tag
            elif child.tag == "skipped" and outcome == "passed":
                outcome, reason = "skipped", child.get("message") or ""
                if child.get("type") == "pytest.xfail":
                    outcome = "passed"
        # A module that is skipped as a whole has no class: it is the name.
        module = case.get("classname") or case.get("name")
        name = f"{module}::{case.get('name')}"
        found.append(TestOutcome(name, outcome, reason.strip(), float(case.get("time") or 0)))
    return found


def write_test_rows(outcomes: Sequence[TestOutcome], rows: RowFile, *, step: str) -> None:
    """A row for the run and one per failure."""
    failures = [test for test in outcomes if test.is_failure]
    on_gpu = [test for test in outcomes if test.needs_gpu]
    has_gpu_tests = any(test.outcome == "passed" for test in on_gpu)
    reason = f"{len(failures)} failed or were skipped" if failures else ""
    if not has_gpu_tests:
        reason = "; ".join(filter(None, (reason, "no test of a GPU backend passed")))
    rows.write(
        step,
        "tests",
        status=FAILED if reason else OK,
        reason=reason,
        passed=sum(test.outcome == "passed" for test in outcomes),
        skipped=sum(test.outcome == "skipped" for test in outcomes),
        failed=len(failures),
        gpu_tests=len(on_gpu),
        seconds=sum(test.seconds for test in outcomes),
    )
    for test in failures:
        why = f"{test.outcome}: {' '.join(test.reason.split())[:300]}"
        rows.write(step, test.name, status=FAILED, reason=why)


def build(rows: RowFile, sm: int | None) -> None:
    """Installs the checkout, editable, with the CUDA kernels for one compute capability; None: for
    all."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--editable", str(ROOT)]
    if find_spec("scikit_build_core") and find_spec("pybind11"):
        command.insert(4, "--no-build-isolation")  # then it needs no network
    environment = {"MMAD_FAST_CUDA": "ON"}
    if sm is not None:
        environment["CUDAARCHS"] = str(sm)
    compiler = installed_nvcc()
    if compiler is not None and not os.environ.get("CUDACXX") and shutil.which("nvcc") is None:
        environment["CUDACXX"] = str(compiler)
    code, tail, seconds = run_process(command, environment=environment, timeout_s=BUILD_TIMEOUT_S)
    status, reason = (OK, "") if code == 0 else (FAILED, f"exit code {code}: {tail}")
    rows.write("build", "pip install", status=status, reason=reason, seconds=seconds)


def run_tests(rows: RowFile, folder: Path, *, is_quick: bool, timeout_s: float) -> None:
    """All tests on the GPU; quick: those of GPU backends."""
    junit = folder / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={junit}"]
    if is_quick:
        files = gpu_test_files(ROOT)
        command += [name for name in files if not name.endswith(WITHOUT_GPU)]
    environment = {"MMAD_FAST_TEST_DEVICE": "cuda"}
    code, tail, _ = run_process(command, environment=environment, timeout_s=timeout_s)
    if not junit.exists():
        rows.write("tests", "pytest", status=FAILED, reason=f"no report, exit code {code}: {tail}")
        return
    write_test_rows(read_junit(junit.read_text(encoding="utf-8")), rows, step="tests")


def gpu_test_files(root: Path) -> list[str]:
    """The test modules of GPU backends, relative to the repository."""
    files = [
        *root.glob("tests/gpu/test_*.py"),
        *root.glob("tests/ops/test_*_cuda.py"),
        *root.glob("tests/ops/test_*_triton.py"),
        *root.glob("tests/*/test_*device_*.py"),
    ]
    return sorted({str(file.relative_to(root)) for file in files})


def sanitize(rows: RowFile, *, is_quick: bool, timeout_s: float) -> None:
    """The CUDA kernels' tests under each tool; a row that says so where there is none."""
    program = shutil.which("compute-sanitizer")
    files = [name for name in gpu_test_files(ROOT) if name.endswith("_cuda.py")]
    if program is None or not files:
        reason = "compute-sanitizer is not on the PATH" if files else "there is no CUDA test"
        for tool in SANITIZER_TOOLS:
            rows.write("sanitizer", tool, status=NOT_RUN, reason=reason)
        return
    environment = {"MMAD_FAST_TEST_DEVICE": "cuda", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in SANITIZER_TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR)]
        command += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
        selected = [*command, "-k", SANITIZER_SELECTION] if is_quick else command
        code, tail, seconds = run_process(selected, environment=environment, timeout_s=timeout_s)
        if code == NO_TESTS_SELECTED:
            code, tail, seconds = run_process(command, environment=environment, timeout_s=timeout_s)
        # A quick run has little time for the tools: one that does not end found nothing so far.
        out_of_time = NOT_RUN if is_quick else FAILED
        status = {0: OK, TIMED_OUT: out_of_time}.get(code, FAILED)
        reason = "" if code == 0 else f"exit code {code}: {tail}"
        rows.write("sanitizer", tool, status=status, reason=reason, seconds=seconds)


def run_process(
    command: Sequence[str], *, environment: dict[str, str], timeout_s: float
) -> tuple[int, str, float]:
    """(exit code, the end of what it said, seconds); the code is 124 where time ran out."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        code, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        code, text = TIMED_OUT, f"{text}\nstopped after {timeout_s:g} s"
    return code, " ".join(text.split())[-400:], time.perf_counter() - start
