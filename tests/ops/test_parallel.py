"""The thread pool of the kernels, seen from Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.cases import depth_frame, uniform_cloud
from ops.map_cases import CASES, make_levels

from mmad_fast import _kernels
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.ops.cosine_maps import cosine_maps
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.fpfh import fpfh
from mmad_fast.ops.inverse_distance_interpolation import (
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.k_center_greedy import k_center_greedy
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.surface_normals import surface_normals
from mmad_fast.threads import get_num_threads, set_num_threads


@pytest.fixture(autouse=True)
def _restored_num_threads() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


def run_all_ops(seed: int, num_points: int = 35_000) -> list[NDArray]:
    """The outputs of the ops on a cloud large enough that each of them shares its work."""
    cloud = uniform_cloud(num_points, seed=seed)
    samples = farthest_point_sampling(cloud, 40)
    groups = knn_grouping(cloud, np.arange(0, num_points, num_points // 130), 33)
    frame = depth_frame(96, seed=seed)
    weights = inverse_distance_weights(frame.points, frame.points[::31])
    pooled = pooled_interpolation_rows(
        weights,
        frame.pixel_indices,
        num_centers=len(frame.points[::31]),
        grid_size=96,
        output_size=96,
    )
    rows = pooled.rows
    coreset = k_center_greedy(uniform_cloud(num_points // 10, seed=seed), 40)
    return [
        fpfh(frame.points, max_neighbors=40),
        surface_normals(cloud),
        coreset,
        cosine_maps(*make_levels(CASES[0], seed=seed), size=96),
        samples,
        *groups,
        *weights,
        pooled.pixel_indices,
        rows.offsets,
        rows.columns,
        rows.values,
    ]


def assert_same(got: list[NDArray], expected: list[NDArray]) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    set_num_threads(1)
    expected = run_all_ops(0)
    for count in (2, 7, 3):
        set_num_threads(count)
        assert get_num_threads() == count
        assert_same(run_all_ops(0), expected)


def test_concurrent_callers_get_their_own_results() -> None:
    set_num_threads(3)
    expected = [run_all_ops(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as executor:
        futures = [executor.submit(run_all_ops, task % 4) for task in range(12)]
        for task, future in enumerate(futures):
            assert_same(future.result(timeout=120), expected[task % 4])


def test_the_number_of_threads_may_change_while_others_compute() -> None:
    expected = run_all_ops(1, 8000)
    with ThreadPoolExecutor(2) as executor:
        futures = [executor.submit(run_all_ops, 1, 8000) for _ in range(8)]
        for count in [2, 5, 1, 4] * 10:
            set_num_threads(count)
            farthest_point_sampling(uniform_cloud(35_000), 3)
        for future in futures:
            assert_same(future.result(timeout=120), expected)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, r"count is 0; it must be in 1\.\.1024"),
        (-2, "count is -2"),
        (4096, "count is 4096"),
        (2.0, "count is 2.0; it must be an integer"),
        (None, "count is None; it must be an integer"),
        (True, "count is True; it must be an integer"),
    ],
)
def test_bad_numbers_of_threads_are_refused(count: Any, words: str) -> None:
    before = get_num_threads()
    with pytest.raises(InvalidInputError, match=words):
        set_num_threads(count)
    assert get_num_threads() == before


def test_without_kernels_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmad_fast.threads.kernels_refusal", lambda: "the kernels do not load")
    with pytest.raises(BackendUnavailableError, match="the kernels do not load"):
        get_num_threads()


def run_script(script: str, **environment: str) -> str:
    """What the script prints, in an interpreter of its own that may take a minute."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.own_process
def test_the_environment_sets_the_number_of_threads() -> None:
    script = "from mmad_fast.threads import get_num_threads as get; print(get())"
    assert run_script(script, MMAD_FAST_NUM_THREADS="3") == "3"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    usable = min(cores or 1, _kernels.cgroup_cores("") or 1024)
    for not_a_number in ("", "many", "0", "-4", "3 threads", "2.5"):
        assert run_script(script, MMAD_FAST_NUM_THREADS=not_a_number) == str(usable)
    for too_many in ("4096", "99999999999999999999"):
        assert run_script(script, MMAD_FAST_NUM_THREADS=too_many) == "1024"


FORKING = """
import os, threading
import numpy as np
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.threads import set_num_threads

set_num_threads(4)
points = np.random.default_rng(0).uniform(size=(3000, 3)).astype(np.float32)
centers = np.arange(0, 3000, 10)
expected = knn_grouping(points, centers, 20).indices
stopping = threading.Event()

def keep_the_pool_busy():
    while not stopping.is_set():
        knn_grouping(points, centers, 20)

busy = threading.Thread(target=keep_the_pool_busy)
busy.start()
for _ in range(15):
    child = os.fork()
    if child == 0:
        is_same = all(
            np.array_equal(knn_grouping(points, centers, 20).indices, expected) for _ in range(3)
        )
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(not np.array_equal(knn_grouping(points, centers, 20).indices, expected))
        status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        os._exit(0 if is_same and status == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stopping.set()
busy.join()
assert np.array_equal(knn_grouping(points, centers, 20).indices, expected)
print("done")
"""


@pytest.mark.own_process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_even_if_the_parent_was_computing() -> None:
    assert run_script(FORKING) == "done"


FORKED_POOL = """
import os
from pathlib import Path
import numpy as np
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.threads import set_num_threads

set_num_threads(4)
points = np.random.default_rng(0).uniform(size=(3000, 3)).astype(np.float32)
knn_grouping(points, np.arange(300), 20)
if os.fork() == 0:
    before = len(os.listdir("/proc/self/task"))
    knn_grouping(points, np.arange(300), 20)
    print(before, len(os.listdir("/proc/self/task")), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.own_process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    assert run_script(FORKED_POOL) == "1 4"


IDLE_POOL = """
import threading, time
import numpy as np
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.threads import set_num_threads

points = np.random.default_rng(0).uniform(size=(3000, 3)).astype(np.float32)
for count in (2, 8):
    set_num_threads(count)
    knn_grouping(points, np.arange(300), 20)
    before = time.process_time()
    threading.Event().wait(0.3)  # idleness is what is measured
    assert time.process_time() - before < 0.03, time.process_time() - before
print("done")
"""


@pytest.mark.own_process
def test_an_idle_pool_takes_no_processor_time() -> None:
    assert run_script(IDLE_POOL) == "done"


MANY_SHORT_JOBS = """
import numpy as np
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.threads import set_num_threads

points = np.random.default_rng(0).uniform(size=(35_000, 3)).astype(np.float32)
set_num_threads(1)
expected = farthest_point_sampling(points, 500)
for count in (2, 3, 16):  # two fit on most machines, sixteen on few
    set_num_threads(count)
    assert np.array_equal(farthest_point_sampling(points, 500), expected)
print("done")
"""


@pytest.mark.own_process
def test_many_short_jobs_one_after_the_other() -> None:
    assert run_script(MANY_SHORT_JOBS) == "done"


FEW_THREADS = """
import resource
import numpy as np
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.threads import set_num_threads

points = np.random.default_rng(0).uniform(size=(3000, 3)).astype(np.float32)
set_num_threads(1)
expected = knn_grouping(points, np.arange(300), 20).indices
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 100 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
set_num_threads(1000)
for _ in range(3):
    assert np.array_equal(knn_grouping(points, np.arange(300), 20).indices, expected)
print("done")
"""


@pytest.mark.own_process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_threads_that_the_system_refuses_are_done_without() -> None:
    assert run_script(FEW_THREADS) == "done"


V1 = "4:memory:/a\n3:cpu,cpuacct:{0}\n0::/elsewhere\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 0),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "1000 100000"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 50000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "800000 100000", "a/b/cpu.max": "50000 50000"}, 1),
        ("0::/a\n", {"b/cpu.max": "100000 100000"}, 0),
        # Of the host, seen from a container whose own group is the mount.
        ("0::/docker/1f\n", {"cpu.max": "400000 100000"}, 4),
        (
            V1.format("/"),
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        (
            V1.format("/docker/1f"),
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "50000"},
            2,
        ),
        ("0::/\n", {"cpu.max": ""}, 0),
        ("0::/\n", {"cpu.max": "abc def"}, 0),
        ("0::/\n", {"cpu.max": "100000 0"}, 0),
        ("0::/\n", {"cpu.max": "9e99 100000"}, 1024),
        ("garbage\n", {"cpu.max": "100000 100000"}, 0),
        (None, {}, 0),
    ],
)
def test_quotas_of_control_groups_are_cores(
    tmp_path: Path, groups: str | None, files: dict[str, str], cores: int
) -> None:
    if groups is not None:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert _kernels.cgroup_cores(str(tmp_path)) == cores


def test_a_process_starts_with_no_more_threads_than_its_quota() -> None:
    command = "from mmad_fast.threads import get_num_threads; print(get_num_threads())"
    environment = {k: v for k, v in os.environ.items() if k != "MMAD_FAST_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, check=True, env=environment, text=True
    )
    quota = _kernels.cgroup_cores("") or 1024
    assert int(done.stdout) == min(len(os.sched_getaffinity(0)), quota)
