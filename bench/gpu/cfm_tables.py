"""CFM on the GPU: the detector, the published dense pipeline and the CPU detector, in one run.

Protocols, never in one column: `paper` is prepared scan to smoothed map and score; `end-to-end` is
raw arrays to score. The weights are random: time does not depend on them, accuracy is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ceilings import product_precision
from geometry_op_cases import torch_sampling
from gpu_device import Device
from gpu_rows import FAILED, NOT_RUN, RowFile, timing_fields
from numpy.typing import NDArray

from mmad_fast.data.dataset import open_dataset
from mmad_fast.data.selection import pick_category
from mmad_fast.detector import Detector, load
from mmad_fast.errors import MmadFastError
from mmad_fast.measure.built_in_set import built_in_set
from mmad_fast.measure.memory import peak_working_mib, weights_mib
from mmad_fast.methods.cfm.parameters import CfmParameters
from mmad_fast.methods.fitting import FitRequest, fit_detector
from mmad_fast.methods.variants import variants_of
from mmad_fast.scan import PreparedScan, Scan
from mmad_fast.stage_clock import StageClock

if TYPE_CHECKING:
    from mmad_fast.methods.cfm.reference import ReferenceNetworks, ReferenceOptions

STEP = "cfm"
WEIGHTS = {"rgb_weights": "random", "point_weights": "random"}
TRAIN_SCANS = 2
MAX_DIFFERENCE = 1e-3
"""Of a map to the published pipeline's, relative to its maximum."""
PUBLISHED = "published, torch"
PUBLISHED_FAST_SAMPLING = "published, torch, sampling by our kernel"
"""The published code samples in a CUDA kernel, not in torch."""


@dataclass(frozen=True)
class CfmRuns:
    """How often each is timed."""

    device: int = 100
    published: int = 10
    cpu: int = 5


QUICK_RUNS = CfmRuns(device=30, published=3, cpu=2)


def measure_cfm(
    device: Device,
    rows: RowFile,
    folder: Path,
    runs: CfmRuns,
    *,
    methods: Sequence[str] = tuple(variants_of("cfm")),
    data: Path | None = None,
    fit: Callable[[str, Path], None] | None = None,
) -> None:
    """Fits each method for one epoch and measures it in both protocols.

    Args:
        data: A data set; default: the procedural one.
        fit: Takes a method and where to put its artifact; for tests.
    """
    dataset = open_dataset(data or built_in_set(None))
    category = pick_category(dataset, None)
    scans = [scan.load() for scan in dataset.scans(category, "test")[:4]]
    for method in methods:
        with rows.guarded(STEP, method):
            artifact = folder / method
            if fit is not None:
                fit(method, artifact)
            else:
                request = FitRequest(method=method, epochs=1, **WEIGHTS)
                fit_detector(
                    dataset,
                    artifact,
                    category=category,
                    request=request,
                    max_train_scans=TRAIN_SCANS,
                )
            measure_method(method, artifact, scans, device, rows, runs)


def measure_method(
    method: str,
    artifact: Path,
    scans: Sequence[Scan],
    device: Device,
    rows: RowFile,
    runs: CfmRuns,
) -> None:
    on_cpu = load(artifact)
    prepared = [on_cpu.prepare(scan) for scan in scans]
    weights = weights_mib(artifact, on_cpu.engine_choice.files.values())
    facts = {"weights_mib": weights, "shapes": {"N": len(prepared[0].points)}}
    expected: NDArray[np.float32] | None = None
    for name in (PUBLISHED, PUBLISHED_FAST_SAMPLING):
        with rows.guarded(STEP, method, backend=name, protocol="paper"):
            pipeline = PublishedPipeline.of_detector(on_cpu, device, samples_fast=name != PUBLISHED)
            # Of equally near points the detector takes the lowest: so must its measure.
            found = pipeline.anomaly_map(prepared[0], StageClock(), knn_ties="lowest")
            difference = None if expected is None else relative_difference(found, expected)
            expected = found if expected is None else expected
            write_published(pipeline, name, method, prepared, difference, device, rows, runs, facts)
            del pipeline
    measure_detector(on_cpu, "cpu", method, scans, prepared, expected, device, rows, runs, facts)
    before = device.used_memory_mib()
    try:
        on_gpu = load(artifact, device="cuda")
    except MmadFastError as error:
        for protocol in ("paper", "end-to-end"):
            rows.write(
                STEP,
                method,
                backend="cuda",
                protocol=protocol,
                status=NOT_RUN,
                reason=str(error),
                **facts,
            )
        return
    measure_detector(
        *(on_gpu, "cuda", method, scans, prepared, expected, device, rows, runs, facts),
        used_before_mib=before,
    )


def relative_difference(found: NDArray, expected: NDArray) -> float:
    return float(np.abs(found - expected).max() / expected.max())


def write_published(
    pipeline: PublishedPipeline,
    name: str,
    method: str,
    prepared: Sequence[PreparedScan],
    difference: float | None,
    device: Device,
    rows: RowFile,
    runs: CfmRuns,
    facts: dict[str, Any],
) -> None:
    """The row of the published pipeline, with the medians of its stages."""
    stages: list[dict[str, float]] = []
    turn = iter(range(10**9))

    def call() -> None:
        clock = StageClock()
        pipeline.anomaly_map(prepared[next(turn) % len(prepared)], clock)
        stages.append(dict(clock.stage_ms))

    latencies = device.wall_latencies_ms(call, num_warmup=1, num_runs=runs.published)
    rows.write(
        STEP,
        method,
        backend=name,
        is_baseline=True,
        protocol="paper",
        error=difference,
        stage_ms=median_stages(stages[1:]),
        device_memory_mib=device.peak_memory_mib(
            lambda: pipeline.anomaly_map(prepared[0], StageClock())
        ),
        **facts,
        **timing_fields(latencies),
    )


def measure_detector(
    detector: Detector,
    backend: str,
    method: str,
    scans: Sequence[Scan],
    prepared: Sequence[PreparedScan],
    expected: NDArray[np.float32] | None,
    device: Device,
    rows: RowFile,
    runs: CfmRuns,
    facts: dict[str, Any],
    *,
    used_before_mib: float | None = None,
) -> None:
    """A row per protocol; none with a time where the map is not the published one."""
    with rows.guarded(STEP, method, backend=backend):
        result = detector.infer_prepared(prepared[0])
        error = None if expected is None else relative_difference(result.anomaly_map, expected)
        if error is None or not error <= MAX_DIFFERENCE:
            reason = f"map differs by {error} from the published one, at most {MAX_DIFFERENCE:g}"
            rows.write(STEP, method, backend=backend, status=FAILED, reason=reason, error=error)
            return
        calls: dict[str, tuple[Sequence[Any], Callable[[Any], Any]]] = {
            "paper": (prepared, detector.infer_prepared),
            "end-to-end": (scans, detector.infer_scan),
        }
        for protocol, (inputs, infer) in calls.items():
            stages: list[dict[str, float]] = []
            turn = iter(range(10**9))

            def call(inputs=inputs, infer=infer, stages=stages, turn=turn) -> None:
                found = infer(inputs[next(turn) % len(inputs)])
                stages.append(dict(found.stage_ms))

            num_runs = runs.device if backend == "cuda" else runs.cpu
            latencies = device.wall_latencies_ms(call, num_warmup=2, num_runs=num_runs)
            memory = memory_fields(
                device, backend, lambda i=infer, s=inputs: i(s[0]), used_before_mib
            )
            rows.write(
                STEP,
                method,
                backend=backend,
                protocol=protocol,
                error=error,
                stage_ms=median_stages(stages[2:]),
                **memory,
                **facts,
                **timing_fields(latencies),
            )


def memory_fields(
    device: Device, backend: str, call: Callable[[], Any], used_before_mib: float | None
) -> dict[str, float | None]:
    """device_memory_mib: the peak of torch's allocator in a call; device_used_mib: all that the
    detector added on the device, graphs and context included; peak_working_mib: of the host."""
    if backend == "cpu":
        return {
            "device_memory_mib": None,
            "device_used_mib": None,
            "peak_working_mib": peak_working_mib(call),
        }
    torch_peak = device.peak_memory_mib(call)
    used = device.used_memory_mib()
    return {
        "device_memory_mib": torch_peak,
        "device_used_mib": None
        if used is None or used_before_mib is None
        else used - used_before_mib,
        "peak_working_mib": peak_working_mib(call),
    }


def median_stages(stages: Sequence[dict[str, float]]) -> dict[str, float]:
    if not stages:
        return {}
    return {name: float(np.median([s.get(name, 0.0) for s in stages])) for name in stages[0]}


class PublishedPipeline:
    """methods/cfm/reference.py on a device: the same functions in the same order, in float32."""

    def __init__(
        self,
        networks: ReferenceNetworks,
        options: ReferenceOptions,
        device: Device,
        *,
        samples_fast: bool,
    ) -> None:
        """Moves the networks to the device. `samples_fast`: our kernel samples, not torch."""
        for module in (networks.rgb, networks.point, *networks.mappings.values()):
            module.to(device.name)
        self._networks = networks
        self._options = options
        self._device = device
        self._samples_fast = samples_fast

    @classmethod
    def of_detector(
        cls, detector: Detector, device: Device, *, samples_fast: bool
    ) -> PublishedPipeline:
        """The pipeline with the weights and parameters of a detector."""
        from mmad_fast.backbones import build_point_backbone, build_rgb_backbone
        from mmad_fast.methods.cfm.reference import ReferenceNetworks, ReferenceOptions

        artifact = detector.artifact
        parameters = CfmParameters.from_dict(artifact.manifest.parameters)
        seed = int(artifact.manifest.weights["seed"])
        rgb = build_rgb_backbone(
            parameters.rgb_backbone,
            num_layers=parameters.rgb_layers,
            weights=WEIGHTS["rgb_weights"],
            seed=seed,
        )
        point = build_point_backbone(
            layers=parameters.point_layers,
            weights=WEIGHTS["point_weights"],
            batch_norm=parameters.batch_norm,
            seed=seed,
        )
        networks = ReferenceNetworks.of_tensors(rgb, point, artifact.tensors())
        options = ReferenceOptions.of(parameters)
        return cls(networks, options, device, samples_fast=samples_fast)

    def anomaly_map(
        self, prepared: PreparedScan, clock: StageClock, *, knn_ties: str = "any"
    ) -> NDArray[np.float32]:
        """The smoothed, normalised map (S, S); each stage waits for the device. `knn_ties` as in
        ReferenceOptions; "any" is faster, and what was published."""
        import torch

        from mmad_fast.methods import dense_features
        from mmad_fast.methods.cfm import reference

        networks, options, device = self._networks, self._options, self._device
        # Some of the reference's functions make tensors of their own: on the device, too.
        with torch.inference_mode(), torch.device(device.name), product_precision("float32"):
            with self._stage(clock, "upload"):
                image = device.tensor(prepared.rgb)[None]
                points = device.tensor(prepared.points)
                pixels = device.tensor(prepared.pixel_indices)
            with self._stage(clock, "rgb_tokens"):
                tokens = networks.rgb(image)[0]
            with self._stage(clock, "sampling"):
                centers = points[self._sample(prepared.points, points)]
            with self._stage(clock, "grouping"):
                groups = dense_features.nearest_groups(
                    points, centers, options.group_size, knn_ties=knn_ties
                )
            with self._stage(clock, "point_features"):
                point_features = dense_features.point_mae_features(networks.point, groups, centers)
            with self._stage(clock, "interpolation"):
                interpolated = dense_features.interpolate(point_features, centers, points, options)
                side = prepared.grid_size
                features = {
                    "point": dense_features.point_feature_map(interpolated, pixels, side, side),
                    "rgb": reference.rgb_feature_map(tokens, side),
                }
                background = reference.background_mask(features["point"], options.mask)
            with self._stage(clock, "mapping"):
                psi = reference._discrepancies(features, background, networks.mappings, options)
            with self._stage(clock, "scoring"):
                combined = reference.aggregate(psi, options.aggregation).masked_fill(background, 0)
                smoothed = reference.smooth(combined.view(side, side), options.smoothing)
                found = reference.normalize(smoothed, options.score_norm).cpu().numpy()
        return found

    def _sample(self, points: NDArray[np.float32], tensor: Any) -> Any:
        if not self._samples_fast:
            return torch_sampling(tensor, self._options.num_groups)
        from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling

        array = tensor if self._device.is_cuda else points
        indices = farthest_point_sampling(array, self._options.num_groups)
        return indices if self._device.is_cuda else self._device.tensor(indices)

    @contextmanager
    def _stage(self, clock: StageClock, name: str) -> Iterator[None]:
        with clock.stage(name):
            yield
            self._device.synchronize()
