"""Equality and accuracy of a detector whose graphs are run by other engines in other precisions;
see exported_engines.py.

The geometry of a scan (sampling, grouping, embedding, interpolation) does not depend on the engine
and is computed once; each engine then runs its graphs on the same inputs, and the rest of the
pipeline follows. TensorRT engines cannot run on a CPU: in their place the very same deployment
graph is run by a CPU engine, under that engine's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact, read_artifact
from mmad_fast.data.dataset import Dataset
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.detector import Detector, load
from mmad_fast.engines import Engine, open_graph
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import ArtifactError, MmadFastError
from mmad_fast.export.backbone_cut import BackboneCut, CutGraph
from mmad_fast.export.calibration import RecordingEngine, record_graph_inputs
from mmad_fast.export.engine_set import DeploymentGraphs, write_engine
from mmad_fast.export.export_request import ExportRequest
from mmad_fast.measure.evaluation import GOOD, evaluate
from mmad_fast.methods.backbone_parameters import EMBEDDER_PREFIX
from mmad_fast.methods.cfm.detector import (
    CfmFeatures,
    CfmPipeline,
    FeatureExtractor,
    mapping_networks,
)
from mmad_fast.methods.cfm.parameters import CfmParameters
from mmad_fast.methods.cfm.reference import reference_pipeline
from mmad_fast.methods.feature_extraction import (
    POINT_GRAPH,
    RGB_GRAPH,
    PointExtractor,
    RgbExtractor,
)
from mmad_fast.methods.fitting import FitRequest, fit_detector
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.methods.variants import Variant
from mmad_fast.ops.point_embedding import EmbedderWeights
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock
from mmad_fast.threads import get_num_threads
from mmad_fast.whole_folder import MANIFEST_FILE, fingerprint

RGB_BACKBONE = "dinov2-vits14"
POINT_WEIGHTS = "random"
OWN = ("artifact", "onnxruntime", "fp32")
"""(target, engine, precision) of what a detector runs as it is fitted."""

FP32_SETTINGS = (
    ("artifact", "onnxruntime"),
    ("artifact", "openvino"),
    ("onnx", "onnxruntime"),
    ("openvino", "openvino"),
    ("tensorrt-rtx", "onnxruntime"),
)
"""(target, engine) that must give the published answer."""

SETTINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "fp32": (),
    "fp16": (("onnx", "onnxruntime"), ("openvino", "openvino"), ("tensorrt-rtx", "onnxruntime")),
    "bf16": (("onnx", "onnxruntime"), ("openvino", "openvino"), ("tensorrt-rtx", "openvino")),
    "int8": (("onnx", "onnxruntime"), ("openvino", "openvino"), ("tensorrt-rtx", "onnxruntime")),
    "fp8": (("onnx", "onnxruntime"), ("openvino", "openvino"), ("tensorrt-rtx", "onnxruntime")),
}
"""(target, engine) whose accuracy is measured. Under tensorrt-rtx the engine that runs TensorRT's
graph in its place: ONNX Runtime, and OpenVINO for bf16, which that has no kernels for."""


@dataclass(frozen=True)
class AccuracyRequest:
    """What to measure of one variant.

    Attributes:
        variant: Its layers count; its RGB backbone is replaced by RGB_BACKBONE.
        dataset: Labelled scans.
        category: One of its categories.
        rgb_weights: Checkpoint path or "auto".
        precisions: Names in PRECISIONS.
        num_compared: Test scans that are compared with the published pipeline.
        num_calibration: Training scans that give the ranges of int8 and fp8.
        epochs: Of the fit; None: the method's own.
        work: Where the fitted detector and the published pipeline's answers are kept.
    """

    variant: Variant
    dataset: Dataset
    category: str
    rgb_weights: str
    precisions: tuple[str, ...]
    num_compared: int
    num_calibration: int
    epochs: int | None
    work: Path


class SharedGeometry:
    """Per scan the features, and what both graphs got; computed once."""

    def __init__(self, artifact: Artifact) -> None:
        self.parameters = CfmParameters.from_dict(artifact.manifest.parameters)
        self._rgb = RecordingEngine(open_graph(artifact.graph_path(RGB_GRAPH)))
        self._points = RecordingEngine(open_graph(artifact.graph_path(POINT_GRAPH)))
        embedder = EmbedderWeights.from_tensors(artifact.tensors(), EMBEDDER_PREFIX)
        self.extractor = FeatureExtractor(
            RgbExtractor(self._rgb),
            PointExtractor(self._points, embedder, self.parameters),
            self.parameters,
        )
        self._scans: dict[str, tuple[CfmFeatures, dict[str, NDArray], dict[str, NDArray]]] = {}

    def of(
        self, prepared: PreparedScan, clock: StageClock
    ) -> tuple[CfmFeatures, dict[str, NDArray], dict[str, NDArray]]:
        """(features, inputs of "rgb", inputs of "points")."""
        if prepared.name not in self._scans:
            features = self.extractor.extract(prepared, clock)
            self._scans[prepared.name] = (features, self._rgb.runs.pop(), self._points.runs.pop())
        return self._scans[prepared.name]


class OtherGraphs:
    """An extractor that takes the geometry from elsewhere and runs graphs of its own on it."""

    def __init__(self, geometry: SharedGeometry, rgb: Engine, points: Engine) -> None:
        self.backends = geometry.extractor.backends
        self._geometry, self._rgb, self._points = geometry, rgb, points

    def extract(self, prepared: PreparedScan, clock: StageClock) -> CfmFeatures:
        features, rgb_inputs, point_inputs = self._geometry.of(prepared, clock)
        return replace(
            features,
            tokens=self._rgb.run(rgb_inputs)["tokens"][0],
            point_features=self._points.run(point_inputs)["features"][0],
        )


class ExportedDetectors:
    """A fitted detector, with graphs of any target, engine and precision."""

    def __init__(self, artifact: Artifact, calibration: Sequence[ScanFile], folder: Path) -> None:
        self.artifact = artifact
        self._folder = folder
        own = load(artifact.path, engine="onnxruntime", precision="fp32", verify=False)
        self._geometry = SharedGeometry(artifact)
        parameters = self._geometry.parameters
        self._networks = {
            name: network.packed
            for name, network in mapping_networks(artifact.tensors(), parameters).items()
        }
        inputs = record_graph_inputs(own, calibration, "m")
        cuts = {
            RGB_GRAPH: BackboneCut(parameters.rgb_backbone, parameters.rgb_layers),
            POINT_GRAPH: BackboneCut.point_mae(parameters.point_layers),
        }
        self._graphs = {
            name: DeploymentGraphs(CutGraph(cut, artifact.graph_path(name)), inputs[name])
            for name, cut in cuts.items()
        }

    def open(self, target: str, engine: str, precision: str) -> Detector:
        """The detector with its graphs exported to a target and run by an engine.

        Raises:
            MmadFastError: the target cannot be had, or the engine cannot run it.
        """
        files = self._files(target, precision)
        choice = EngineChoice(engine, precision, files, "asked for")
        rgb, points = (open_graph(files[name], engine=engine) for name in (RGB_GRAPH, POINT_GRAPH))
        extractor: Any = OtherGraphs(self._geometry, rgb, points)
        pipeline = CfmPipeline(extractor, self._networks, self._geometry.parameters)
        return Detector(self.artifact, pipeline, choice)

    def _files(self, target: str, precision: str) -> dict[str, Path]:
        """What an engine opens, by graph; in place of a TensorRT engine the graph behind it."""
        if target == "artifact":
            return {name: self.artifact.graph_path(name) for name in self._graphs}
        # Names no compute capability: the graph is the same for all.
        sms = (89,) if target == "tensorrt-rtx" else ()
        request = ExportRequest.of(to=target, precision=precision, sms=sms, batch=1)
        files = {}
        for name, graphs in self._graphs.items():
            files[name] = self._folder / f"{name}.{target}.{precision}.onnx"
            if target == "tensorrt-rtx":
                onnx.save_model(graphs.of(request), files[name])
            else:
                files[name] = self._folder / write_engine(graphs, request, self._folder).files[0]
        return files


def detector_rows(
    request: AccuracyRequest, *, is_done: Callable[[Mapping[str, Any]], bool]
) -> Iterator[dict[str, Any]]:
    """The rows of one variant that are not done: equality of fp32, accuracy of the others.

    Args:
        request: What to measure.
        is_done: Whether a row of these "what", "variant", "target", "engine" and "precision" is
            there.
    """
    rows = [row for row in wanted_rows(request) if not is_done(row)]
    if not rows:
        return
    artifact = fitted(request)
    scans = request.dataset.scans(request.category, "test")
    training = request.dataset.scans(request.category, "train")
    with TemporaryDirectory(dir=request.work) as folder:
        detectors = ExportedDetectors(artifact, training[: request.num_calibration], Path(folder))
        for row in rows:
            row |= {"rgb_backbone": RGB_BACKBONE, "category": request.category, "refusal": None}
            row |= {"data": request.dataset.root.resolve().name, "threads": get_num_threads()}
            try:
                detector = detectors.open(row["target"], row["engine"], row["precision"])
            except MmadFastError as error:
                yield {**row, "refusal": refusal(error, Path(folder))}
                continue
            if row["what"] == "equality":
                compared = scans[:: max(1, len(scans) // request.num_compared)]
                yield row | equality(detector, compared[: request.num_compared], request)
            else:
                yield row | accuracy(detector, scans)


def refusal(error: MmadFastError, folder: Path) -> str:
    """The first line of a message without the file it names, which says nothing."""
    return re.sub(rf"{re.escape(str(folder))}/\S+: ", "", str(error).splitlines()[0])


def wanted_rows(request: AccuracyRequest) -> Iterator[dict[str, Any]]:
    """What is known of each row before it is measured."""
    if "fp32" in request.precisions:
        for target, engine in FP32_SETTINGS:
            yield _row("equality", request, target, engine, "fp32")
    # What the changes of the others are changes of.
    yield _row("accuracy", request, *OWN)
    for precision in request.precisions:
        for target, engine in SETTINGS[precision]:
            yield _row("accuracy", request, target, engine, precision)


def _row(
    what: str, request: AccuracyRequest, target: str, engine: str, precision: str
) -> dict[str, Any]:
    names = ("what", "variant", "target", "engine", "precision")
    values = (what, request.variant.name, target, engine, precision)
    return dict(zip(names, values, strict=True))


def fitted(request: AccuracyRequest) -> Artifact:
    """The variant's detector, from the work folder if it is there."""
    epochs = "" if request.epochs is None else f"-{request.epochs}-epochs"
    path = request.work / f"{request.category}-{request.variant.name}{epochs}"
    try:
        return read_artifact(path)
    except ArtifactError:  # none yet, or one of an earlier version
        fit_request = FitRequest(
            method=request.variant.name,
            rgb_backbone=RGB_BACKBONE,
            rgb_weights=request.rgb_weights,
            point_weights=POINT_WEIGHTS,
            epochs=request.epochs,
        )
        fit_detector(request.dataset, path, category=request.category, request=fit_request)
        return read_artifact(path)


def equality(
    detector: Detector, scans: Sequence[ScanFile], request: AccuracyRequest
) -> dict[str, Any]:
    """The largest differences to the published pipeline, relative to the map's maximum and to the
    score."""
    differences = []
    for scan, expected in zip(scans, reference_maps(detector, scans, request), strict=True):
        result = detector.infer_scan(scan.load())
        scale = float(expected.max())  # the published score
        difference = float(np.abs(result.anomaly_map - expected).max())
        differences.append((difference / scale, abs(result.image_score - scale) / scale))
    map_difference, score_difference = np.max(differences, axis=0).tolist()
    return {
        "map_difference": map_difference,
        "score_difference": score_difference,
        "num_scans": len(scans),
    }


def reference_maps(
    detector: Detector, scans: Sequence[ScanFile], request: AccuracyRequest
) -> list[NDArray[np.float32]]:
    """The published pipeline's map (S, S) of each scan, from the work folder if it is there."""
    manifest = detector.artifact.path / MANIFEST_FILE
    digest = str(fingerprint(manifest)["sha256"])[:12]
    maps, reference = [], None
    for scan in scans:
        file = request.work / f"{scan.name.replace('/', '-')}.{digest}.npy"
        if not file.exists():
            with torch_threads():
                reference = reference or reference_pipeline(
                    detector.artifact,
                    rgb_weights=request.rgb_weights,
                    point_weights=POINT_WEIGHTS,
                )
                answer = reference(detector.prepare(scan.load()), StageClock()).anomaly_map
            with TemporaryDirectory(dir=request.work) as folder:
                np.save(Path(folder) / "map.npy", answer)
                os.replace(Path(folder) / "map.npy", file)
        maps.append(np.load(file))
    return maps


def accuracy(detector: Detector, scans: Sequence[ScanFile]) -> dict[str, Any]:
    """The metrics over all test scans, as the published evaluation computes them."""
    overall = evaluate(detector, scans).overall
    return {
        "i_auroc": overall.i_auroc,
        "p_auroc": overall.p_auroc,
        **{f"aupro_{round(100 * limit)}": value for limit, value in overall.aupro.items()},
        "num_scans": overall.num_scans,
        "num_good": sum(scan.defect == GOOD for scan in scans),
    }
