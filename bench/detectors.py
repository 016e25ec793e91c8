"""What bench knows of detectors beyond the public functions, and knows here only: fitting from
settings that are data, the published pipeline, and what is trained once for several categories."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np

from mmad_fast.artifact import Artifact, write_artifact
from mmad_fast.data.dataset import Dataset
from mmad_fast.data.scan_file import ScanFile, Split
from mmad_fast.detector import Detector, load
from mmad_fast.measure.evaluation import Accuracy
from mmad_fast.methods.family import Reference, Scores, families, get_method
from mmad_fast.methods.fit_request import FitRequest, Progress, resolve_options, silent
from mmad_fast.scan import PreparedScan, Scan, Unit
from mmad_fast.stage_clock import StageClock

Ties = Literal["lowest", "any"]
NOISE_M, NOISE_RGB = 2e-4, 4
MAX_SHIFT = 12


def fit_request(settings: Mapping[str, Any]) -> FitRequest:
    """The request of settings by name: keywords of FitRequest.of. None leaves one open; those of a
    branch that the method does not run are left out."""
    family, variant = get_method(settings["method"])
    absent = tuple(f"{b.key}_" for b in family.branches if b.key not in variant.branches)
    weights = {f"{branch.key}_weights" for one in families() for branch in one.branches}
    own_weights = {f"{key}_weights" for key in variant.branches}
    return FitRequest.of(
        **{
            name: value
            for name, value in settings.items()
            if value is not None
            and not name.startswith(absent)
            and name not in weights - own_weights
        }
    )


def train_shared(
    dataset: Dataset,
    categories: Sequence[str],
    request: FitRequest,
    folder: Path,
    progress: Progress = silent,
) -> FitRequest:
    """The request with what its family trains once for all categories, written into the folder; the
    request itself where there is nothing of the kind."""
    shared = get_method(request.method)[0].shared_training
    if shared is None or not shared.wants(resolve_options(request)):
        return request
    path = folder / shared.file_name
    shared.train(dataset, categories, request, path, progress)
    return replace(request, options={**request.options, shared.option: str(path)})


class DevicePipeline:
    """A published pipeline whose networks and arrays lie on a device: the same functions in the
    same order. What it makes of NumPy arrays goes to the device, and what it gives comes back."""

    def __init__(self, pipeline: Reference, device: str, *, sample: Callable[..., Any] | None):
        """`sample`: takes the place of the pipeline's farthest point sampling; None: its own."""
        self._pipeline, self._device, self._sample = pipeline, device, sample
        for cell in getattr(pipeline, "__closure__", None) or ():
            cell.cell_contents = _moved(cell.cell_contents, device)

    def __call__(self, prepared: PreparedScan, clock: StageClock, *, ties: Ties = "any") -> Scores:
        import torch

        to_tensor, to_array = torch.from_numpy, torch.Tensor.numpy
        with (
            torch.device(self._device),
            patch.object(torch, "from_numpy", lambda array: to_tensor(array).to(self._device)),
            patch.object(torch.Tensor, "numpy", lambda tensor: to_array(tensor.cpu())),
            self._sampling(),
        ):
            return self._pipeline(prepared, clock, ties=ties)

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        from mmad_fast.methods.branches.point_groups import reference

        with patch.object(reference, "farthest_points", self._sample or reference.farthest_points):
            yield


def _moved(value: Any, device: str) -> Any:
    """The value with all modules and tensors in it on the device."""
    import torch

    if isinstance(value, torch.nn.Module | torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_moved(part, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _moved(getattr(value, f.name), device) for f in fields(value) if f.init}
        return replace(value, **parts)
    return value


def differences(
    detector: Detector, prepared: PreparedScan, expected: Scores
) -> tuple[float, float]:
    """(map, score) difference to the published pipeline, relative to its map's maximum and to its
    score."""
    result = detector.infer_prepared(prepared)
    largest = float(np.abs(expected.anomaly_map).max())
    return (
        float(np.abs(result.anomaly_map - expected.anomaly_map).max()) / largest,
        abs(result.image_score - expected.image_score) / detector.score_scale(expected.image_score),
    )


def accuracy_columns(accuracy: Accuracy) -> dict[str, float | None]:
    """A row's columns of the metrics."""
    return {
        "i_auroc": accuracy.i_auroc,
        "p_auroc": accuracy.p_auroc,
        **{f"aupro_{round(100 * limit)}": value for limit, value in accuracy.aupro.items()},
    }


def medians(stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each stage over the calls."""
    return {name: statistics.median(stage.get(name, 0.0) for stage in stages) for name in stages[0]}


def with_graphs(
    artifact: Artifact, graphs: Mapping[str, Path], path: Path, *, engine: str
) -> Detector:
    """The artifact's detector with other graphs in the place of its own."""
    manifest = artifact.manifest
    write_artifact(
        path,
        method=manifest.method,
        family=manifest.family,
        preprocess=manifest.preprocess,
        parameters=manifest.parameters,
        threshold=manifest.threshold,
        weights=manifest.weights,
        graphs=dict(graphs),
        tensors=artifact.tensors(),
        golden=artifact.golden(),  # of the own graphs; nothing replays it here
    )
    return load(path, engine=engine)


@dataclass(frozen=True)
class MovedScan(ScanFile):
    """A scan file, moved by some pixels and with new noise: another scan of the same kind."""

    seed: int = 0

    def load(
        self, unit: Unit = "m", missing: float | None = None, *, with_normals: bool = False
    ) -> Scan:
        scan = super().load(unit, missing, with_normals=with_normals)
        rng = np.random.default_rng(self.seed)
        rows, columns = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
        xyz, rgb = (np.roll(array, (rows, columns), (0, 1)) for array in (scan.xyz, scan.rgb))
        is_point = (xyz != 0).any(axis=-1, keepdims=True)
        xyz = xyz + is_point * rng.normal(0, NOISE_M, xyz.shape).astype(np.float32)
        noisy = np.clip(rgb + rng.normal(0, NOISE_RGB, rgb.shape), 0, 255).astype(np.uint8)
        normals = scan.normals
        if normals is not None:
            normals = np.roll(normals, (rows, columns), (0, 1))
        return replace(scan, rgb=noisy, xyz=xyz, normals=normals)


@dataclass(frozen=True)
class RepeatedSet(Dataset):
    """A data set whose training scans are repeated, each moved anew, until there are so many."""

    num_train: int = 0

    def scans(self, category: str, split: Split) -> tuple[ScanFile, ...]:
        files = super().scans(category, split)
        if split != "train":
            return files
        repeated = (files[index % len(files)] for index in range(self.num_train))
        return tuple(
            MovedScan(**{**vars(file), "name": f"{file.name}, moved {index}"}, seed=index)
            for index, file in enumerate(repeated)
        )


class StageTimes:
    """Seconds per stage of a fit: a report ends work on the stage that it names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def report(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if stage not in self.seconds:
            print(f"{stage} ({total})", file=sys.stderr, flush=True)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
