"""bench/on_gpu.py without a GPU: what it decides, and every step once at a tiny size on the host,
so that a first run on hardware does not fail on a slip.

Triton's kernels are interpreted where their modules are there; the public ops run on the CPU.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import on_gpu
import pytest
import torch
from conftest import make_arrays
from detectors import DevicePipeline
from gpu import build_and_test, cubins, graph, kernel_table
from gpu import detectors as gpu_detectors
from gpu import device as gpu_device
from gpu import rows as gpu_rows
from gpu.resources_page import difference
from gpu_test_device import TEST_DEVICE
from ops import bench_inverse_distance_interpolation as interpolation
from ops import bench_k_center_greedy as coreset
from ops.case import Case, Contender, Sizes, Work, host, kernels_of, op_modules
from rendering import resources
from settings import timing_fields

from mmad_fast.detector import load
from mmad_fast.gpu.triton_kernels import DEFAULT_SM, TRITON_MODULES, LaunchConfig, TritonKernel
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock

HAS_TRITON_KERNELS = all(find_spec(name) for name in TRITON_MODULES)


@pytest.fixture
def device():
    """The host: tests of the steps need no GPU and must not measure one."""
    return gpu_device.Device("cpu")


@pytest.fixture
def untimed():
    """The host, where nothing is timed: an interpreted kernel takes a second."""

    class Untimed(gpu_device.Device):
        def latencies_ms(self, function, *, num_warmup, num_runs, is_cold):
            return [1.0] * num_runs

        def wall_latencies_ms(self, function, *, num_warmup, num_runs):
            return [1.0] * num_runs

        def peak_memory_mib(self, function):
            return None

    return Untimed("cpu")


@pytest.fixture
def rows():
    return gpu_rows.RowFile(None)


@pytest.fixture(scope="module")
def tiny():
    return Sizes(
        frames=((32, 0.28),),
        num_groups=16,
        group_size=8,
        channels=12,
        grid=8,
        coverage=0.3,
        token_grid=2,
        layers={"tiny": (12, 10, 10, 8)},
        banks={"tiny": (5, 40, 16)},
        coresets={"tiny": (20, 4, 12)},
        dtypes=("float32",),
    )


@pytest.fixture(scope="module")
def budget():
    return kernel_table.Budget(num_runs=5, row_s=0.001, num_configs=1)


# What it decides


def test_without_a_gpu_it_says_what_is_missing_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(on_gpu, "what_is_missing", lambda: "no driver: install one")
    assert on_gpu.main(["--output", str(tmp_path)]) == 2
    assert "needs a GPU and there is none: no driver: install one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named(monkeypatch):
    missing = gpu_device.what_is_missing
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a build without CUDA" in missing()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no CUDA device" in missing()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert missing() is None
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch does not load" in missing()


def test_help_names_every_step(capsys):
    with pytest.raises(SystemExit) as ended:
        on_gpu.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for step in on_gpu.STEPS:
        assert step in text
    assert set(on_gpu.STEPS) == set(on_gpu.SETTINGS["timeouts_s"])


JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest">
<testcase classname="tests.ops.test_knn_grouping_cuda" name="test_a" time="0.5"/>
<testcase classname="tests.ops.test_knn_grouping_cuda" name="test_b" time="0.1">
  <skipped type="pytest.skip" message="no CUDA device"/></testcase>
<testcase classname="tests.gpu.test_launcher" name="test_c" time="0.1">
  <skipped type="pytest.skip" message="emulation only: a device has no shuffled order"/></testcase>
<testcase classname="tests.ops.test_pixel_mapping_triton" name="test_d" time="0.1">
  <skipped type="pytest.xfail" message="known"/></testcase>
<testcase classname="" name="tests.ops.test_scoring_triton" time="0.1">
  <skipped type="pytest.skip" message="could not import 'triton'"/></testcase>
<testcase classname="tests.data.test_folder" name="test_e" time="0.1">
  <skipped type="pytest.skip" message="needs the shared folder"/></testcase>
<testcase classname="tests.test_package" name="test_f" time="0.1">
  <failure message="assert 1 == 2">text</failure></testcase>
</testsuite></testsuites>"""


def test_a_skipped_gpu_test_is_a_failure():
    outcomes = {test.name: test for test in build_and_test.read_junit(JUNIT)}
    failures = {name for name, test in outcomes.items() if test.is_failure}
    assert failures == {
        "tests.ops.test_knn_grouping_cuda::test_b",
        "tests.ops.test_scoring_triton::tests.ops.test_scoring_triton",
        "tests.test_package::test_f",
    }
    on_gpu = {name.rpartition(":")[2] for name, test in outcomes.items() if test.needs_gpu}
    assert on_gpu == {"test_a", "test_b", "test_c", "test_d", "tests.ops.test_scoring_triton"}
    assert outcomes["tests.ops.test_knn_grouping_cuda::test_a"].seconds == 0.5


def test_every_skip_on_a_gpu_is_allowed():
    on_a_gpu = r'(?:TEST_DEVICE == "cuda"|not IS_EMULATED),\s*reason="([^"]+)"'
    reasons = {
        reason
        for name in build_and_test.gpu_test_files(build_and_test.ROOT)
        for reason in re.findall(on_a_gpu, (build_and_test.ROOT / name).read_text(encoding="utf-8"))
    }
    assert len(reasons) > 4
    made, here = (f"{resources.VERSIONS}{version}" for version in ("triton 1", "triton 2"))
    for reason in (*reasons, difference(made, here)):
        assert reason.startswith(tuple(on_gpu.SETTINGS["allowed_skips"])), reason


def test_the_rows_of_a_test_run(rows):
    outcomes = build_and_test.read_junit(JUNIT)
    build_and_test.write_test_rows(outcomes, rows, step="tests")
    summary, *failures = rows.rows
    assert (summary["status"], summary["passed"], summary["skipped"]) == ("failed", 2, 4)
    assert (summary["failed"], summary["gpu_tests"]) == (3, 5)
    assert [row["what"].rpartition(":")[2] for row in failures] == [
        "test_b",
        "tests.ops.test_scoring_triton",
        "test_f",
    ]
    assert "skipped: no CUDA device" in failures[0]["reason"]
    good = [replace(test, outcome="passed") for test in outcomes]
    build_and_test.write_test_rows(good, rows, step="tests")
    assert rows.rows[-1]["status"] == "ok"
    build_and_test.write_test_rows([good[-1]], rows, step="tests")
    assert "no test of a GPU backend passed" in rows.rows[-1]["reason"]


def test_a_run_of_pytest_without_a_report_is_a_failure(rows, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        build_and_test, "run_process", lambda c, **more: (said.append((c, more)), (3, "x", 1.0))[1]
    )
    build_and_test.run_tests(rows, tmp_path, is_quick=True, timeout_s=5)
    assert rows.rows[-1]["status"] == "failed"
    ((command, more),) = said
    assert more["environment"] == {"MMAD_FAST_TEST_DEVICE": "cuda"}
    assert "pytest" in command
    (tmp_path / "junit.xml").write_text(JUNIT)
    build_and_test.run_tests(rows, tmp_path, is_quick=False, timeout_s=5)
    assert rows.rows[1]["what"] == "tests"


def test_the_sanitizer_runs_each_tool_or_says_that_it_is_absent(rows, monkeypatch):
    monkeypatch.setattr(build_and_test.shutil, "which", lambda name: None)
    build_and_test.sanitize(rows, is_quick=False, timeout_s=1)
    assert [row["status"] for row in rows.rows] == ["not run"] * 4
    monkeypatch.setattr(build_and_test.shutil, "which", lambda name: "/tools/" + name)
    monkeypatch.setattr(build_and_test, "gpu_test_files", lambda root: ["tests/ops/test_x_cuda.py"])
    codes = iter([0, 66, 5, 0, 0])
    commands = []

    def process(command, **more):
        commands.append(command)
        return next(codes), "said", 1.0

    monkeypatch.setattr(build_and_test, "run_process", process)
    build_and_test.sanitize(rows, is_quick=True, timeout_s=1)
    assert [row["status"] for row in rows.rows[4:]] == ["ok", "failed", "ok", "ok"]
    tools = ["memcheck", "racecheck", "synccheck", "synccheck", "initcheck"]
    assert [command[2] for command in commands] == tools
    assert "-k" in commands[2]
    assert "-k" not in commands[3]  # nothing was selected: all of them
    for is_quick, expected in ((True, "not run"), (False, "failed")):
        codes = iter([124] * 4)
        build_and_test.sanitize(rows, is_quick=is_quick, timeout_s=1)
        assert [row["status"] for row in rows.rows[-4:]] == [expected] * 4


def test_the_build_asks_for_the_cuda_kernels(rows, monkeypatch):
    said = []
    monkeypatch.setattr(
        build_and_test, "run_process", lambda c, **more: (said.append((c, more)), (1, "no", 2.0))[1]
    )
    monkeypatch.setattr(build_and_test, "installed_nvcc", lambda: None)
    build_and_test.build(rows, 89)
    assert said[0][1]["environment"] == {"MMAD_FAST_CUDA": "ON", "CUDAARCHS": "89"}
    assert "--editable" in said[0][0]
    assert rows.rows[0]["status"] == "failed"
    assert "exit code 1: no" in rows.rows[0]["reason"]
    monkeypatch.setattr(build_and_test, "installed_nvcc", lambda: "/pip/nvcc")
    monkeypatch.setattr(build_and_test.shutil, "which", lambda name: None)
    monkeypatch.delenv("CUDACXX", raising=False)
    build_and_test.build(rows, None)
    assert said[1][1]["environment"] == {"MMAD_FAST_CUDA": "ON", "CUDACXX": "/pip/nvcc"}


def test_a_process_is_stopped_when_its_time_is_up():
    run = build_and_test.run_process
    code, tail, _ = run([sys.executable, "-c", "print('hello')"], environment={}, timeout_s=30)
    assert (code, tail) == (0, "hello")
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    code, tail, seconds = run(sleep, environment={}, timeout_s=0.5)
    assert code == 124
    assert "stopped after 0.5 s" in tail
    assert seconds < 30
    assert on_gpu.run_step(sleep, 0.5) == "stopped after 0 s"
    assert on_gpu.run_step([sys.executable, "-c", "raise SystemExit(1)"], 30) is None
    assert "exit code 7" in on_gpu.run_step([sys.executable, "-c", "raise SystemExit(7)"], 30)


def test_steps_run_in_processes_of_their_own_and_a_dead_one_is_a_failure(
    tmp_path, monkeypatch, capsys
):
    asked = []

    def run_step(command, timeout_s):
        asked.append((command, timeout_s))
        step = command[command.index("--child") + 1]
        return "its process ended with exit code -11" if step == "graph" else None

    monkeypatch.setattr(on_gpu, "what_is_missing", lambda: None)
    monkeypatch.setattr(on_gpu, "run_step", run_step)
    arguments = ["--quick", "--only", "report", "graph", "--output", str(tmp_path)]
    assert on_gpu.main(arguments) == 1
    assert [c[c.index("--child") + 1] for c, _ in asked] == ["report", "graph"]
    assert all("--quick" in command for command, _ in asked)
    assert asked[0][1] == 30
    (row,) = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert (row["step"], row["status"]) == ("graph", "failed")
    assert "exit code -11" in capsys.readouterr().out
    # Without time left no step begins.
    assert on_gpu.main([*arguments, "--deadline", "1"]) == 0
    assert len(asked) == 2


def test_a_child_writes_its_rows_with_the_facts_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "what_is_missing", lambda: None)
    more = ["--run", "2026-01-01T00:00:00", "--output", str(tmp_path)]
    assert on_gpu.main(["--child", "report", *more]) == 0
    assert on_gpu.main(["--child", "build", "--no-build", *more]) == 0
    monkeypatch.setitem(on_gpu.STEPS, "graph", lambda rows, options: 1 / 0)
    assert on_gpu.main(["--child", "graph", *more]) == 1
    report, build, graph = on_gpu.read_rows(tmp_path / "gpu.jsonl")
    assert {row["run"] for row in (report, build, graph)} == {"2026-01-01T00:00:00"}
    assert report["torch"] == torch.__version__
    assert report["versions"]["torch"] == torch.__version__
    assert build["status"] == "not run"
    assert graph["reason"].startswith("ZeroDivisionError")


def test_every_step_is_wired(tmp_path, monkeypatch):
    """Each step's function is called with what it takes, its work replaced."""
    called = []
    for name in ("measure_kernels", "compare_cubins", "measure_detectors", "measure_graph"):
        monkeypatch.setattr(on_gpu, name, lambda *a, n=name, **k: called.append((n, a, k)))
    monkeypatch.setattr(on_gpu, "measure_ceilings", lambda device, rows: {"copy": 1.0})
    monkeypatch.setattr(on_gpu, "build_cubins", lambda sm, folder: called.append(("build", sm)))
    monkeypatch.setattr(on_gpu, "device_launch", lambda folder, device: "launch")
    for name in ("run_tests", "sanitize", "build"):
        takes = inspect.signature(getattr(on_gpu.build_and_test, name))

        def stand_in(*a, n=name, takes=takes, **k):
            takes.bind(*a, **k)
            called.append((n, a, k))

        monkeypatch.setattr(on_gpu.build_and_test, name, stand_in)
    for flags in ([], ["--quick"]):
        options = on_gpu.parse_arguments(flags)
        rows = gpu_rows.RowFile(None)
        for step in on_gpu.STEPS.values():
            step(rows, options)
        assert not rows.failures()
    names = [entry[0] for entry in called]
    assert {name: names.count(name) for name in set(names)} == {
        **dict.fromkeys(
            ("measure_kernels", "compare_cubins", "measure_detectors", "measure_graph"), 2
        ),
        **dict.fromkeys(("run_tests", "sanitize"), 2),
        "build": 4,  # of the project, and of the cubins
    }
    quick = [entry for entry in called if entry[0] == "measure_kernels"][1]
    assert quick[1][2] == Sizes.read("quick")


# Arithmetic


def test_rates_are_work_by_time():
    work = Work(matrix_flop=4e9, plain_flop=1e9, device_bytes=2e9)
    ceilings = {"copy": 2000.0, "float16": 10_000.0, "float32": 1_000.0}
    rates = gpu_rows.rate_fields(work, 2.0, ceilings, "float16")
    assert rates["gflops"] == pytest.approx(2500)
    assert rates["gbs"] == pytest.approx(1000)
    assert rates["flop_share"] == pytest.approx(0.25)
    assert rates["bandwidth_share"] == pytest.approx(0.5)
    plain = Work(plain_flop=1e9)
    assert gpu_rows.rate_fields(plain, 1.0, ceilings, "float16")["flop_share"] == 1.0
    assert gpu_rows.rate_fields(work, 1.0, {}, "float16")["flop_share"] is None


def test_timing_and_number_of_runs():
    fields = timing_fields([1.0, 2.0, 3.0])
    assert (fields["p50_ms"], fields["p95_ms"], fields["runs"]) == (2.0, None, 3)
    budget = kernel_table.Budget(num_runs=200, row_s=1.0)
    assert [budget.runs_for(ms) for ms in (0.01, 10.0, 5000.0)] == [200, 100, 5]


def test_a_broken_part_is_a_row_and_not_the_end(tmp_path):
    rows = gpu_rows.RowFile(tmp_path / "deep" / "x.jsonl", {"run": "r"})
    with rows.guarded("step", "what", backend="b"):
        raise ValueError("two\nlines")
    rows.write("step", "other", p50_ms=1.0)
    first, second = (
        json.loads(line) for line in (tmp_path / "deep" / "x.jsonl").read_text().splitlines()
    )
    assert (first["status"], first["reason"]) == ("failed", "ValueError: two lines")
    assert first["backend"] == "b"
    assert (second["status"], second["run"]) == ("ok", "r")
    assert rows.failures() == [first]


def test_the_report_of_nvidia_smi_is_read():
    line = "NVIDIA H100 80GB HBM3, 570.1, 81559 MiB, 700.00 W, 700.00 W, P0, 345 MHz, 1980 MHz"
    found = gpu_device.parse_smi(f"{line}, 2619 MHz, 2619 MHz, 30, Enabled\n")
    assert found["power.limit"] == "700.00 W"
    assert found["clocks.max.sm"] == "1980 MHz"
    assert found["ecc.mode.current"] == "Enabled"


# Every step once, on the host


def assert_ok(rows, *, may_lack_triton=True):
    """Every row is fine; only Triton's kernels may be absent, where they are not built."""
    assert rows.rows
    for row in rows.rows:
        is_absent = row["status"] == "not run" and "No module" in row["reason"]
        if is_absent and may_lack_triton and not HAS_TRITON_KERNELS:
            continue
        assert row["status"] == "ok", row


def test_ceilings(device, rows):
    found = kernel_table.measure_ceilings(device, rows, num_runs=2, copy_bytes=4096, matrix_side=16)
    assert set(found) == {"copy", "float32", "tf32", "float16", "bfloat16"}
    assert all(value > 0 for value in found.values())
    assert_ok(rows)
    copy = rows.rows[0]
    assert copy["gbs"] == pytest.approx(1e-6 * 2 * 4096 / copy["p50_ms"])
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32  # as before


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="interpreter only: drives kernels on the host")
def test_kernel_table(untimed, rows, tiny, budget):
    ceilings = {"copy": 10.0, "float32": 100.0}
    kernel_table.measure_kernels(untimed, rows, tiny, ceilings, budget)
    assert_ok(rows)
    ops = {row["what"] for row in rows.rows if row["step"] == "kernels"}
    assert ops >= {
        *("farthest_point_sampling", "knn_grouping", "inverse_distance_weights"),
        *("inverse_distance_interpolation", "pooled_interpolation_rows"),
        *("nearest_neighbor_scoring", "k_center_greedy", "pixel_mapping", "point_embedding"),
        *("surface_normals", "fpfh", "cosine_maps"),
    }
    for op in ops:
        timed = [row for row in rows.rows if row["what"] == op and row["status"] == "ok"]
        baselines = [row for row in timed if row.get("is_baseline")]
        assert baselines, op
        assert all(row["error"] < 1e-2 and row["p50_ms"] > 0 for row in baselines)
        for row in timed:
            if not row.get("is_baseline") and row["step"] == "kernels":
                assert row["error"] <= row["max_error"]
                assert row["gflops"] > 0


def case_of(error_of, max_error, **functions):
    """A case of ours, by backend; None where there is no such module."""

    def contender(name, function):
        make = (lambda: function) if function else (lambda: kernels_of("nothing"))
        return Contender(name, make, is_ours=True)

    listed = [contender(name, function) for name, function in functions.items()]
    return Case("op", {}, listed, work=Work(plain_flop=1.0), error_of=error_of, max_error=max_error)


def test_a_wrong_result_is_not_timed(device, rows, budget):
    functions = {"right": lambda: 0.4, "wrong": lambda: 0.6, "nan": lambda: float("nan")}
    case = case_of(lambda got: got, 0.5, **functions, absent=None)
    kernel_table.measure_case(case, device, rows, {}, budget)
    by_backend = {row["backend"]: row for row in rows.rows}
    assert "p50_ms" in by_backend["right"]
    for name in ("wrong", "nan"):
        assert by_backend[name]["status"] == "failed"
        assert "p50_ms" not in by_backend[name]
    assert by_backend["absent"]["status"] == "not run"
    assert "No module" in by_backend["absent"]["reason"]
    rows.rows.clear()
    on_device = SimpleNamespace(is_cuda=True)  # there every backend must run
    lone = replace(case, contenders=case.contenders[-1:])
    kernel_table.measure_case(lone, on_device, rows, {}, budget)
    assert rows.rows[0]["status"] == "failed"


KERNEL = TritonKernel(
    name="op.part.fp32",
    function="part_kernel",
    arguments={"x": "*fp32:16", "n": "i32"},
    configs={
        DEFAULT_SM: (LaunchConfig(4, 1, {"BLOCK": 32}), LaunchConfig(8, 2, {"BLOCK": 64})),
    },
)


def test_each_configuration_is_timed_and_the_fastest_named(device, rows):
    """A function whose answer is wrong in one configuration, and that looks its launch up."""
    configs = (*KERNEL.configs[DEFAULT_SM], LaunchConfig(1, 1, {"BLOCK": 1}))
    kernel = replace(KERNEL, configs={DEFAULT_SM: configs})

    def function():
        block = kernel.configs_for(89)[0].constants["BLOCK"]
        return 1.0 if block == 64 else 0.0

    case = case_of(lambda got: got, 0.5)
    budget = kernel_table.Budget(num_runs=5, row_s=0.01)
    kernel_table.measure_configs(case, "triton", function, device, rows, {}, budget)
    *by_config, fastest = rows.rows
    assert [row["status"] for row in by_config] == ["ok", "failed", "ok"]
    assert by_config[0]["config"] == "BLOCK=32 warps=4 stages=1"
    assert fastest["what"] == "op: fastest"
    assert fastest["config"] in ("BLOCK=32 warps=4 stages=1", "BLOCK=1 warps=1 stages=1")
    assert fastest["p50_ms"] <= fastest["default_p50_ms"]
    assert kernel.configs_for(89) == configs  # as before


@pytest.fixture
def kernel_module(monkeypatch):
    """A module with one kernel, whose JIT function doubles x."""
    module = ModuleType("kernel_of_the_test")

    class Jit:
        def __getitem__(self, grid):
            return lambda x, n, **options: x.mul_(2)

    def double(x):
        options = KERNEL.configs_for(80)[0].constants
        module.part_kernel[(3,)](x, len(x), **options)
        return x

    module.KERNELS = (KERNEL,)
    module.part_kernel = Jit()
    module.double = double
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cubins, "TRITON_MODULES", (module.__name__, "mmad_fast.nothing"))
    return module


def test_launches_are_handed_to_the_launcher(device, rows, kernel_module):
    launches = []

    def launch(kernel, grid, arguments):
        launches.append((kernel.name, grid, sorted(arguments), arguments["n"]))
        arguments["x"].mul_(2)

    case = case_of(lambda got: float(np.abs(host(got) - 2).max()), 1e-6)

    def double():
        return kernel_module.double(torch.ones(4))

    original = kernel_module.part_kernel
    cubins.compare_case(case, double, device, rows, launch)
    assert_ok(rows)
    assert rows.rows[0]["difference_to_jit"] == 0
    assert rows.rows[0]["kernels"] == ["op.part.fp32"]
    assert launches[0] == ("op.part.fp32", (3,), ["n", "x"], 4)
    assert kernel_module.part_kernel is original
    cubins.compare_case(case, lambda: torch.full((4,), 2.0), device, rows, launch)
    assert "no launch" in rows.rows[-1]["reason"]
    cubins.compare_case(case, double, device, rows, lambda kernel, grid, arguments: None)
    assert rows.rows[-1]["status"] == "failed"
    assert "p50_ms" not in rows.rows[-1]


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="interpreter only: drives kernels on the host")
def test_cubins_step_goes_over_every_triton_case(untimed, rows, tiny):
    """The interpreter stands in for the launcher."""
    originals = {
        (module.__name__, kernel.name): getattr(module, kernel.function)
        for module in cubins.importable_modules()
        for kernel in module.KERNELS
    }

    def launch(kernel, grid, arguments):
        (function,) = (f for (_, name), f in originals.items() if name == kernel.name)
        options = kernel.launch_options(80)
        function[grid](*arguments.values(), **options)

    cubins.compare_cubins(untimed, rows, tiny, launch)
    assert_ok(rows)
    assert {row["what"] for row in rows.rows} >= {"inverse_distance_weights", "pixel_mapping"}


def test_the_cubins_are_built_by_the_command(tmp_path, monkeypatch):
    def run(command, **more):
        assert command[-5:] == ["build", "--sm", "89", "--output", str(tmp_path)]
        return SimpleNamespace(returncode=1, stdout="it\nsaid")

    monkeypatch.setattr(build_and_test.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="ended with 1: it said"):
        cubins.build_cubins(89, tmp_path)


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="interpreter only: drives kernels on the host")
def test_graph_step(untimed, rows, tiny):
    sizes = replace(tiny, dtypes=("float16",))
    graph.measure_graph(untimed, rows, sizes, num_runs=2)
    if not HAS_TRITON_KERNELS:
        assert all("No module" in row["reason"] for row in rows.rows)
        return
    assert_ok(rows)
    assert [row["backend"] for row in rows.rows] == ["eager", "CUDA graph"]
    assert rows.rows[1]["ratio_to_eager"] > 0


def test_a_graph_with_another_answer_is_refused(device, rows):
    answers = iter(range(100))
    with rows.guarded("graph", "chain"):
        graph.measure_chain(
            lambda: (torch.tensor([float(next(answers))]),), device, rows, {}, num_runs=2
        )
    assert "differs from the eager one" in rows.rows[-1]["reason"]


def test_cases_see_wrong_answers(device, tiny):
    """The measure of every geometric case grows when a result is spoilt."""
    geometric = {"farthest_point_sampling", "knn_grouping", "inverse_distance_interpolation"}
    geometric |= {"surface_normals", "fpfh"}
    seen = set()
    for op in geometric:
        for make in op_modules()[op].gpu_cases(tiny, device):
            for case in make():
                seen.add(case.what)
                for contender in case.contenders:
                    if contender.is_ours:
                        continue
                    good = contender.make()()
                    good = good if isinstance(good, tuple) else (good,)
                    spoilt = [part.clone() for part in good]
                    spoilt[0] = spoilt[0].roll(1, 0)
                    found = spoilt if len(spoilt) > 1 else spoilt[0]
                    assert case.error_of(found) > case.max_error
    assert seen > geometric


def test_the_coreset_case_sees_wrong_selections(device):
    case = coreset.gpu_case("tiny", (20, 6, 12), "float32", device)
    for contender in case.contenders[1:]:
        good = contender.make()()
        assert case.error_of(good) <= case.max_error
        assert case.error_of(good.flip(0)) > case.max_error
        assert case.error_of(good[:-1]) > case.max_error
        later = good.clone()
        later[3] = good[4]
        assert case.error_of(later) > case.max_error


def test_the_work_of_a_call_by_hand():
    """A formula per op, on sizes that can be counted."""
    modules = op_modules()
    sampling = modules["farthest_point_sampling"].work(7, 3)
    assert (sampling.plain_flop, sampling.device_bytes) == (3 * 7 * 10, 7 * 12 + 3 * 8)
    # A bitonic sort of 4: (1 + 2) rounds of 2 comparisons.
    assert modules["knn_grouping"].work(10, 2, 4).plain_flop == 2 * (2 * 10 * 9 + 6)
    normals, features = modules["surface_normals"].work(10, 4), modules["fpfh"].work(10, 4)
    search = modules["knn_grouping"].work(10, 10, 4).plain_flop
    assert normals.plain_flop == search + 10 * (4 * 15 + 200)
    assert features.plain_flop == search + 10 * (30 * 15 + 200 + 4 * (100 + 66))
    assert (normals.device_bytes, features.device_bytes) == (10 * 24, 10 * 144)
    assert interpolation.work_of_weights(10, 4).device_bytes == 14 * 12 + 10 * 36
    assert interpolation.work_of_rows(10, 6, 2).plain_flop == 36
    scoring = modules["nearest_neighbor_scoring"].work(5, 7, 3)
    assert (scoring.matrix_flop, scoring.plain_flop) == (2 * 5 * 7 * 3, 3 * 5 * 7 + 3 * 5 * 3)
    assert coreset.work(10, 4, 5).device_bytes == 3 * 10 * (5 * 4 + 8) + 4 * 8
    maps = modules["cosine_maps"].work([(3, 4, 5), (1, 1, 1)], 8)
    assert maps.plain_flop == 6 * 61 + 2 * (8 * 4 * 5 + 8 * 8 * 5 + 8 + 8 * 8)
    assert maps.device_bytes == 4 * (2 * 61 + 64)
    entries = {"source_entries": 4, "target_entries": 7}
    mapping = modules["pixel_mapping"].work(10, 4, 6, (2, 3, 3, 5), **entries)
    assert mapping.matrix_flop == 2 * (4 * 2 * 3 + 10 * (3 * 3 + 3 * 5))
    embedding = modules["point_embedding"].work(1024, 128)
    assert embedding.matrix_flop / 2e9 == pytest.approx(41, abs=0.05)


def test_windows_are_those_of_the_reference():
    """Rows made of windows and plain weights, summed per centre, are the op's rows."""
    from ops.cases import depth_frame

    from mmad_fast.ops.inverse_distance_interpolation import reference

    frame = depth_frame(24, coverage=0.3)
    centers = frame.points[::7]
    indices, weights = interpolation.plain_weights(frame.points, centers, part=10)
    pixels, points, values = interpolation.pooling_windows(frame.pixel_indices, 24)
    kept, offsets, columns, row_values = reference.pooled_interpolation_rows(
        indices, weights, frame.pixel_indices, len(centers), 24, 24
    )
    np.testing.assert_array_equal(pixels, kept)
    expected = np.zeros((len(kept), len(centers)))
    lengths = np.diff(offsets)
    np.add.at(expected, (np.repeat(np.arange(len(kept)), lengths), columns), row_values)
    found = np.zeros_like(expected)
    at = np.maximum(points, 0)
    amounts = weights[at] * (values * (points >= 0))[..., None]
    where = np.arange(len(pixels))[:, None, None]
    np.add.at(found, (np.broadcast_to(where, amounts.shape), indices[at]), amounts)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# Detectors


@pytest.fixture
def tiny_published(tiny_artifact):
    """(a prepared scan, a small published pipeline as a family's reference makes it)."""
    from mmad_fast.backbones import build_point_backbone
    from mmad_fast.methods.cfm import reference
    from mmad_fast.methods.cfm.networks import FeatureProjectionMLP

    torch.manual_seed(0)

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = torch.nn.Conv2d(3, 6, 8, 8)

        def forward(self, image):
            return self.patches(image).flatten(2).transpose(1, 2)

    point = build_point_backbone(layers=(0,), weights="random", batch_norm="cloud")
    mappings = {
        "rgb_to_point": FeatureProjectionMLP(6, 384),
        "point_to_rgb": FeatureProjectionMLP(384, 6),
    }
    networks = reference.ReferenceNetworks(Tokens().eval(), point.eval(), mappings)
    options = reference.ReferenceOptions(num_groups=24, group_size=8)

    def pipeline(prepared, clock, *, ties="lowest"):
        chosen = replace(options, knn_ties=ties)
        return reference.reference_infer(prepared, networks, chosen, clock)

    pipeline.__module__ = reference.__name__
    return load(tiny_artifact).prepare(Scan.from_arrays(*make_arrays())), pipeline


@pytest.mark.parametrize("samples_fast", [False, True])
def test_the_published_pipeline_on_a_device_is_the_reference(
    device, tiny_published, monkeypatch, samples_fast
):
    """Its arrays and networks go to the device and come back; on the host that changes nothing."""
    prepared, plain = tiny_published
    expected = plain(prepared, StageClock()).anomaly_map
    family = SimpleNamespace(reference=lambda artifact, weights: plain)
    detector = SimpleNamespace(artifact=None, family=family, method="cfm-s")
    pipeline = gpu_detectors.published_on(device, detector, samples_fast=samples_fast)
    clock = gpu_detectors.DeviceClock(device)
    found = gpu_detectors.answer(pipeline, prepared, clock, "lowest")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert list(clock.stage_ms)[:2] == ["rgb_tokens", "sampling"]
    assert torch.from_numpy(np.zeros(1)).numpy().shape == (1,)  # as before


def test_a_pipeline_on_another_device_meets_its_arrays_there(tiny_published):
    """torch's device without memory stands in for a GPU: networks and arrays are all on it."""
    prepared, plain = tiny_published
    met = []

    def sample(points, num_samples, **options):
        met.append(points.device.type)
        return torch.zeros(num_samples, dtype=torch.int64)

    pipeline = DevicePipeline(plain, "meta", sample=sample)
    with pytest.raises(NotImplementedError, match="meta"):  # its answer has no values to bring back
        pipeline(prepared, StageClock())
    assert met == ["meta"]


class Replayed:
    """A published pipeline that answers as a detector does."""

    def __init__(self, detector, factor=1.0):
        self.detector, self.factor = detector, factor

    def __call__(self, prepared, clock, ties="any"):
        with clock.stage("mapping"):
            result = self.detector.infer_prepared(prepared)
        return replace(result, anomaly_map=self.factor * result.anomaly_map)


@pytest.fixture
def set_folder(tmp_path):
    from mmad_fast.data.synthetic import CATEGORIES, write_synthetic

    write_synthetic(
        tmp_path / "set",
        categories=CATEGORIES[:1],
        num_train=1,
        num_validation=1,
        num_good=2,
        num_per_defect=1,
        size=96,
        seed=0,
    )
    return tmp_path


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_detectors_step(device, rows, tiny_artifact, set_folder, monkeypatch, factor):
    """The detector of the tests against a pipeline that answers alike, and one that does not."""
    import shutil

    monkeypatch.setattr(
        gpu_detectors,
        "published_on",
        lambda device, detector, *, samples_fast: Replayed(detector, factor),
    )
    if TEST_DEVICE == "cuda":  # the step itself is for the GPU; here it is driven without
        original = gpu_detectors.load
        monkeypatch.setattr(gpu_detectors, "load", lambda path, **more: original(path))
    monkeypatch.setattr(gpu_detectors, "built_in_set", lambda: set_folder / "set")
    monkeypatch.setattr(
        gpu_detectors,
        "fit_detector",
        lambda dataset, path, *, request, **more: shutil.copytree(tiny_artifact, path),
    )
    runs = {"device": 2, "published": 2, "cpu": 2}
    gpu_detectors.measure_detectors(
        device, rows, set_folder / "artifacts", runs, methods=("cfm-t",)
    )
    published = [row for row in rows.rows if row.get("is_baseline")]
    assert [row["backend"] for row in published] == [
        gpu_detectors.PUBLISHED,
        gpu_detectors.PUBLISHED_FAST_SAMPLING,
    ]
    assert all(row["p50_ms"] > 0 and row["stage_ms"] for row in published)
    on_cpu = [row for row in rows.rows if row.get("backend") == "cpu"]
    if factor != 1.0:
        assert [row["status"] for row in on_cpu] == ["failed"]
        assert "map differs" in on_cpu[0]["reason"]
        return
    assert [row["protocol"] for row in on_cpu] == ["paper", "end-to-end"]
    assert all(row["error"] == 0 and row["weights_mib"] > 0 for row in on_cpu)
    assert "preprocess" in on_cpu[1]["stage_ms"]
    assert "preprocess" not in on_cpu[0]["stage_ms"]
    on_cuda = [row for row in rows.rows if row.get("backend") == "cuda"]
    assert [row["protocol"] for row in on_cuda] == ["paper", "end-to-end"]
    if TEST_DEVICE != "cuda":
        assert all(row["status"] == "not run" and row["reason"] for row in on_cuda)


def test_a_gpu_detector_has_its_memory_in_columns_of_their_own(device, rows, tiny_artifact):
    fields = gpu_detectors.memory_fields(device, "cuda", lambda: None, 10.0)
    assert set(fields) == {"device_memory_mib", "device_used_mib", "peak_working_mib"}
    on_cpu = gpu_detectors.memory_fields(device, "cpu", lambda: load(tiny_artifact), None)
    assert on_cpu["device_memory_mib"] is None
