"""The emulated CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer: a short run.

`.ci/sanitizers cuda` runs all of their tests so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulation import build as emulation
from gpu_test_device import TEST_DEVICE

pytestmark = [
    pytest.mark.own_process,
    pytest.mark.skipif(TEST_DEVICE == "cuda", reason="compute-sanitizer watches a GPU"),
]

QUICK_TESTS = "one-point or sixty-three or blocks_and_tiles or finite or in_range"
LOAD_DOUBLES = f"""
import sys
sys.path.insert(0, {str(emulation.EMULATION.parent)!r})
from cuda_emulation import build
doubles = build.load(build.build(build.DOUBLES_MODULE, build.DOUBLES, sanitize=True))
"""


@pytest.fixture(scope="module")
def watched() -> dict[str, str]:
    reason = emulation.refusal()
    if reason is not None:
        pytest.skip(reason)
    settings = emulation.sanitizer_environment()
    for library in settings["LD_PRELOAD"].split():
        if not Path(library).is_absolute():
            pytest.skip(f"g++ has no {library}: install its sanitizer libraries")
    emulation.build(emulation.DOUBLES_MODULE, emulation.DOUBLES, sanitize=True)
    emulation.build(emulation.KERNELS_MODULE, emulation.kernel_sources(), sanitize=True)
    return {**os.environ, **settings}


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=emulation.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("call", "finding"),
    [
        ("doubles.write_shared(5, 5, 4)", "use-after-poison"),
        ("doubles.write_shared(5, 4, -1)", "use-after-poison"),
        ("doubles.write_static_shared(5, 4)", "index 5 out of bounds"),
        ("doubles.write_shared(5, 2**31 - 1, 4)", "AddressSanitizer"),
    ],
)
def test_a_fault_ends_the_process(call: str, finding: str, watched: dict[str, str]) -> None:
    done = run(["-c", LOAD_DOUBLES + call], watched)
    assert done.returncode != 0
    assert finding in done.stderr, done.stderr
    assert "doubles.cu" in done.stderr


def test_what_is_right_passes(watched: dict[str, str]) -> None:
    calls = """
assert doubles.write_shared(5, 4, 4) == doubles.write_static_shared(4, 4) == 1
doubles.set_compute_capability(90)
for seed in range(4):
    doubles.set_schedule(seed)
    assert doubles.sum_over_cluster(4, True).tolist() == [10] * 4
    assert doubles.many_barriers(20) == 190
    try:
        doubles.meet(doubles.Barriers.left)
    except RuntimeError as error:
        assert "divergent barrier" in str(error)
    doubles.meet(doubles.Barriers.met)
"""
    done = run(["-c", LOAD_DOUBLES + calls], watched)
    assert done.returncode == 0, done.stderr


def test_the_kernels_pass(watched: dict[str, str]) -> None:
    tests = [str(path) for path in sorted((emulation.ROOT / "tests/ops").glob("test_*_cuda.py"))]
    # Hypothesis' plugin would import the package after the kernels ran, deep in the stack, where
    # AddressSanitizer still has marks of frames that exceptions ended, and takes them for a fault.
    plugins = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    arguments = ["-m", "pytest", "-q", *plugins, "-k", QUICK_TESTS, *tests]
    done = run(arguments, watched)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
