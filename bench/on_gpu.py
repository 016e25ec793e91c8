"""Everything that a GPU can show, in one command: builds, tests with the GPU backends required, and
measures. Rows go to bench/results/gpu.jsonl, the pages docs/benchmarks/gpu.md and README.md are
made from them.

    python bench/on_gpu.py                        # or: make gpu
    python bench/on_gpu.py --quick                # within nine minutes on an H100
    python bench/on_gpu.py --only kernels graph

Exit code: 0 all is well; 1 a step failed, whose rows say why; 2 there is no GPU, and nothing is
written. Every step is a process of its own, which a fault on the device cannot outlive.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if importlib.util.find_spec("mmad_fast") is None:  # until the step "build" has installed it
    sys.path.append(str(Path(__file__).parents[1]))

from gpu import build_and_test
from gpu.cubins import build_cubins, compare_cubins, device_launch
from gpu.detectors import measure_detectors
from gpu.device import Device, device_report, what_is_missing
from gpu.graph import measure_graph
from gpu.kernel_table import Budget, measure_ceilings, measure_kernels
from gpu.rows import FAILED, NOT_RUN, SETTINGS, RowFile
from ops.case import Sizes
from settings import BENCH, RESULTS

from mmad_fast.measure.environment import environment
from mmad_fast.measure.generated_pages import read_rows

FILE_NAME = "gpu.jsonl"
QUICK_DEADLINE_S = 520.0
NO_GPU, STOPPED = 2, 130


def step_report(rows: RowFile, options: argparse.Namespace) -> None:
    rows.write("report", "device", **device_report(), environment=environment())


def step_build(rows: RowFile, options: argparse.Namespace) -> None:
    if options.no_build:
        rows.write("build", "pip install", status=NOT_RUN, reason="--no-build")
    else:
        build_and_test.build(rows, device_report()["compute_capability"])


def step_tests(rows: RowFile, options: argparse.Namespace) -> None:
    timeout_s = timeout_of("tests", options.quick) - 10
    with tempfile.TemporaryDirectory() as folder:
        build_and_test.run_tests(rows, Path(folder), is_quick=options.quick, timeout_s=timeout_s)


def step_kernels(rows: RowFile, options: argparse.Namespace) -> None:
    device = Device()
    ceilings = measure_ceilings(device, rows)
    sizes, name = ("quick", "quick_budget") if options.quick else ("full", "budget")
    measure_kernels(device, rows, Sizes.read(sizes), ceilings, Budget(**SETTINGS[name]))


def step_cubins(rows: RowFile, options: argparse.Namespace) -> None:
    device = Device()
    sm = device_report()["compute_capability"]
    with tempfile.TemporaryDirectory() as folder, rows.guarded("cubins", "build and load"):
        start = time.perf_counter()
        build_cubins(sm, Path(folder) / "kernels")
        rows.write("cubins", f"build for sm_{sm}", seconds=time.perf_counter() - start)
        launch = device_launch(Path(folder) / "kernels", device)
        compare_cubins(device, rows, Sizes.read("cubins"), launch)


def step_detectors(rows: RowFile, options: argparse.Namespace) -> None:
    methods = SETTINGS["quick_methods" if options.quick else "methods"]
    runs = SETTINGS["quick_runs" if options.quick else "runs"]
    with tempfile.TemporaryDirectory() as folder:
        measure_detectors(Device(), rows, Path(folder), runs, methods=methods)


def step_graph(rows: RowFile, options: argparse.Namespace) -> None:
    measure_graph(Device(), rows, Sizes.read("quick"), num_runs=100 if options.quick else 500)


def step_sanitizer(rows: RowFile, options: argparse.Namespace) -> None:
    tools = len(build_and_test.SANITIZER_TOOLS)
    timeout_s = (timeout_of("sanitizer", options.quick) - 10) / tools
    build_and_test.sanitize(rows, is_quick=options.quick, timeout_s=timeout_s)


STEPS: dict[str, Callable[[RowFile, argparse.Namespace], None]] = {
    step.__name__.removeprefix("step_"): step
    for step in (
        *(step_report, step_build, step_tests, step_kernels),
        *(step_cubins, step_detectors, step_graph, step_sanitizer),
    )
}


def timeout_of(step: str, is_quick: bool) -> float:
    return float(SETTINGS["timeouts_s"][step][is_quick])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--quick", action="store_true", help="fewer sizes and runs; GPU tests only")
    parser.add_argument("--no-build", action="store_true", help="measure what is installed")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"folder of {FILE_NAME}")
    parser.add_argument("--deadline", type=float, help="seconds after which no step begins")
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def row_facts(run: str) -> dict[str, Any]:
    """The fields of every row: the run, the device, versions, commit and date."""
    report, facts = device_report(), environment()
    return {
        "run": run,
        "device": report["name"],
        "compute_capability": report["compute_capability"],
        "driver": (report["nvidia_smi"] or {}).get("driver_version"),
        "versions": {
            **facts["versions"],
            **{name: report[name] for name in ("torch", "triton", "cuda", "onnxruntime")},
        },
        **{name: facts[name] for name in ("mmad_fast", "commit", "commit_is_clean", "date")},
    }


def run_child(options: argparse.Namespace) -> int:
    """One step, in this process."""
    rows = RowFile(options.output / FILE_NAME, row_facts(options.run))
    with rows.guarded(options.child, "step"):
        STEPS[options.child](rows, options)
    return int(bool(rows.failures()))


def run_step(command: list[str], timeout_s: float) -> str | None:
    """Why the step's process did not end by itself, or None. It never outlives this call."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        stop(process)
        return f"stopped after {timeout_s:.0f} s"
    except BaseException:  # the user's Ctrl-C, a signal: do not leave the step running
        stop(process)
        raise
    return None if code in (0, 1) else f"its process ended with exit code {code}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a step and what it started."""
    for sent, wait_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, sent)
            process.wait(timeout=wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def run_all(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """All steps, each given the same arguments; exit code 1 where one failed."""
    run = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    path = options.output / FILE_NAME
    deadline_s = options.deadline or (QUICK_DEADLINE_S if options.quick else float("inf"))
    rows = RowFile(path, {"run": run, "device": device_report()["name"]})
    start = time.monotonic()
    for step in options.only or STEPS:
        left_s = deadline_s - (time.monotonic() - start)
        if left_s < 5:
            rows.write(step, "step", status=NOT_RUN, reason="no time left")
            continue
        print(f"== {step}", flush=True)
        timeout_s = min(left_s, timeout_of(step, options.quick))
        child = ["--child", step, "--run", run]
        problem = run_step([sys.executable, str(Path(__file__)), *arguments, *child], timeout_s)
        if problem is not None:
            rows.write(step, "step", status=FAILED, reason=problem)
    if options.output.resolve() == RESULTS.resolve():
        subprocess.run([sys.executable, str(BENCH / "pages.py"), "gpu"], check=True)
    found = [row for row in read_rows(path) if row["run"] == run]
    failures = [row for row in found if row["status"] == FAILED]
    print(f"{len(found)} rows in {path}, {len(failures)} failures", flush=True)
    for row in failures:
        print(f"  {row['step']}: {row['what']}: {row['reason']}", flush=True)
    return int(bool(failures))


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    missing = what_is_missing()
    if missing is not None:
        print(f"on_gpu.py needs a GPU and there is none: {missing}", file=sys.stderr)
        return NO_GPU
    if options.child is not None:
        return run_child(options)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STOPPED))
    try:
        return run_all(options, sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
