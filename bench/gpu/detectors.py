"""Detectors on a GPU: the detector, the published dense pipeline and the CPU detector, in one run.

Protocols, never in one column: `paper` is prepared scan to smoothed map and score; `end-to-end` is
raw arrays to score. The weights are random: time does not depend on them, accuracy is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from detectors import DevicePipeline, Ties, fit_request, medians
from gpu.device import Device, product_precision
from gpu.rows import FAILED, NOT_RUN, SETTINGS, RowFile
from numpy.typing import NDArray
from settings import timing_fields

from mmad_fast.data.dataset import open_dataset
from mmad_fast.data.selection import pick_category
from mmad_fast.detector import Detector, load
from mmad_fast.errors import MmadFastError
from mmad_fast.measure.built_in_set import built_in_set
from mmad_fast.measure.memory import peak_working_mib, weights_mib
from mmad_fast.methods.family import Reference
from mmad_fast.methods.fit_run import fit_detector
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.scan import PreparedScan, Result, Scan
from mmad_fast.stage_clock import StageClock

STEP = "detectors"
MAX_DIFFERENCE = 1e-3
"""Of a map to the published pipeline's, relative to its maximum."""
PUBLISHED = "published, torch"
PUBLISHED_FAST_SAMPLING = "published, torch, sampling by our kernel"
"""The published code samples in a CUDA kernel, not in torch."""


@dataclass(frozen=True)
class Place:
    """Where and how a method is measured, and where its rows go. `runs`: how often each is timed:
    "device", "published", "cpu"."""

    device: Device
    rows: RowFile
    runs: Mapping[str, int]
    method: str
    scans: Sequence[Scan]
    prepared: Sequence[PreparedScan]
    facts: dict[str, Any]

    def write(self, **fields: Any) -> None:
        self.rows.write(STEP, self.method, **fields, **self.facts)

    def timed(
        self, call: Callable[[int], dict[str, float]], *, num_warmup: int, num_runs: int
    ) -> dict[str, Any]:
        """The timing of calls with the number of their turn, and the medians of the stages that
        they return."""
        stages: list[dict[str, float]] = []
        turn = count()
        latencies = self.device.wall_latencies_ms(
            lambda: stages.append(dict(call(next(turn) % len(self.scans)))),
            num_warmup=num_warmup,
            num_runs=num_runs,
        )
        return {"stage_ms": medians(stages[num_warmup:]), **timing_fields(latencies)}


class DeviceClock(StageClock):
    """A clock whose stages wait for the device."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name):
            yield
            self._device.synchronize()


def measure_detectors(
    device: Device, rows: RowFile, folder: Path, runs: Mapping[str, int], *, methods: Sequence[str]
) -> None:
    """Fits each method as sweeps/gpu.toml says, on the procedural set, and measures it in both
    protocols."""
    dataset = open_dataset(built_in_set())
    category = pick_category(dataset, None)
    scans = [scan.load() for scan in dataset.scans(category, "test")[:4]]
    for method in methods:
        with rows.guarded(STEP, method):
            artifact = folder / method
            fit_detector(
                dataset,
                artifact,
                category=category,
                request=fit_request({"method": method, **SETTINGS["fit"]}),
                max_train_scans=SETTINGS["max_train_scans"],
            )
            on_cpu = load(artifact)
            prepared = [on_cpu.prepare(scan) for scan in scans]
            weights = weights_mib(artifact, on_cpu.engine_choice.files.values())
            facts = {"weights_mib": weights, "shapes": {"N": len(prepared[0].points)}}
            place = Place(device, rows, runs, method, scans, prepared, facts)
            measure_method(on_cpu, place)


def measure_method(on_cpu: Detector, place: Place) -> None:
    device, prepared = place.device, place.prepared
    expected: NDArray[np.float32] | None = None
    for name in (PUBLISHED, PUBLISHED_FAST_SAMPLING):
        with place.rows.guarded(STEP, place.method, backend=name, protocol="paper"):
            pipeline = published_on(device, on_cpu, samples_fast=name != PUBLISHED)
            # Of equally near points the detector takes the lowest: so must its measure.
            found = answer(pipeline, prepared[0], StageClock(), "lowest")
            difference = None if expected is None else relative_difference(found, expected)
            expected = found if expected is None else expected
            write_published(pipeline, name, difference, place)
            del pipeline
    measure_detector(on_cpu, "cpu", expected, place)
    before = device.used_memory_mib()
    try:
        on_gpu = load(on_cpu.artifact.path, device="cuda")
    except MmadFastError as error:
        for protocol in ("paper", "end-to-end"):
            place.write(backend="cuda", protocol=protocol, status=NOT_RUN, reason=str(error))
        return
    measure_detector(on_gpu, "cuda", expected, place, used_before_mib=before)


def published_on(device: Device, detector: Detector, *, samples_fast: bool) -> Reference:
    """The published pipeline on the device. `samples_fast`: our kernel samples, not torch."""

    def sample(points: Any, num_samples: int, *, skip_near_origin: bool) -> Any:
        array = points if device.is_cuda else points.numpy()
        indices = farthest_point_sampling(array, num_samples, skip_near_origin=skip_near_origin)
        return indices if device.is_cuda else device.tensor(indices)

    weights = fit_request({"method": detector.method, **SETTINGS["fit"]}).weights
    pipeline = detector.family.reference(detector.artifact, weights)
    return DevicePipeline(pipeline, device.name, sample=sample if samples_fast else None)


def answer(
    pipeline: Reference, prepared: PreparedScan, clock: StageClock, ties: Ties
) -> NDArray[np.float32]:
    """The published pipeline's map (S, S), products in float32."""
    with product_precision("float32"):
        return pipeline(prepared, clock, ties=ties).anomaly_map


def relative_difference(found: NDArray, expected: NDArray) -> float:
    return float(np.abs(found - expected).max() / expected.max())


def write_published(pipeline: Reference, name: str, difference: float | None, place: Place) -> None:
    """The row of the published pipeline, with the medians of its stages."""

    def call(turn: int) -> dict[str, float]:
        clock = DeviceClock(place.device)
        answer(pipeline, place.prepared[turn], clock, "any")
        return clock.stage_ms

    timing = place.timed(call, num_warmup=1, num_runs=place.runs["published"])
    peak = place.device.peak_memory_mib(
        lambda: answer(pipeline, place.prepared[0], StageClock(), "any")
    )
    more = {"is_baseline": True, "error": difference, "device_memory_mib": peak}
    place.write(backend=name, protocol="paper", **more, **timing)


def measure_detector(
    detector: Detector,
    backend: str,
    expected: NDArray[np.float32] | None,
    place: Place,
    *,
    used_before_mib: float | None = None,
) -> None:
    """A row per protocol; none with a time where the map is not the published one."""
    with place.rows.guarded(STEP, place.method, backend=backend):
        found = detector.infer_prepared(place.prepared[0]).anomaly_map
        error = None if expected is None else relative_difference(found, expected)
        if error is None or not error <= MAX_DIFFERENCE:
            reason = f"map differs by {error} from the published one, at most {MAX_DIFFERENCE:g}"
            place.write(backend=backend, status=FAILED, reason=reason, error=error)
            return
        calls: dict[str, Callable[[int], Result]] = {
            "paper": lambda turn: detector.infer_prepared(place.prepared[turn]),
            "end-to-end": lambda turn: detector.infer_scan(place.scans[turn]),
        }
        num_runs = place.runs["device" if backend == "cuda" else "cpu"]
        for protocol, infer in calls.items():
            timing = place.timed(partial(_stages, infer), num_warmup=2, num_runs=num_runs)
            memory = memory_fields(place.device, backend, partial(infer, 0), used_before_mib)
            place.write(backend=backend, protocol=protocol, error=error, **memory, **timing)


def _stages(infer: Callable[[int], Result], turn: int) -> dict[str, float]:
    return dict(infer(turn).stage_ms)


def memory_fields(
    device: Device, backend: str, call: Callable[[], Any], used_before_mib: float | None
) -> dict[str, float | None]:
    """device_memory_mib: the peak of torch's allocator in a call; device_used_mib: all that the
    detector added on the device, graphs and context included; peak_working_mib: of the host."""
    is_cpu, used = backend == "cpu", device.used_memory_mib()
    is_known = used is not None and used_before_mib is not None
    return {
        "device_memory_mib": None if is_cpu else device.peak_memory_mib(call),
        "device_used_mib": used - used_before_mib if is_known and not is_cpu else None,  # type: ignore[operator]
        "peak_working_mib": peak_working_mib(call),
    }
