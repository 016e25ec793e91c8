"""What can be exported of a detector, what of it runs here, and whether it gives the same answer: a
row per cell of the matrix variant x target x precision. See sweep.py.

"engine" rows build the published variants, whose weights are random: sizes and times do not depend
on them. "equality" and "accuracy" rows are of detectors with real weights. TensorRT engines cannot
run on a CPU: in their place the very same deployment graph is run by a CPU engine, under that
engine's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from detectors import accuracy_columns, differences, fit_request, with_graphs
from sweep import Sweep

from mmad_fast.data.scan_file import GOOD, ScanFile
from mmad_fast.detector import Detector, load
from mmad_fast.errors import MmadFastError
from mmad_fast.export import export_detector
from mmad_fast.export.calibration import record_graph_inputs
from mmad_fast.export.deployment_graph import deployment_graph
from mmad_fast.export.graph_cost import graph_cost
from mmad_fast.measure.evaluation import evaluate
from mmad_fast.methods.family import Reference
from mmad_fast.methods.fit_run import fit_detector
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.stage_clock import StageClock
from mmad_fast.threads import get_num_threads

OWN = ("artifact", "onnxruntime", "fp32")
"""(target, engine, precision) of what a detector runs as it is fitted."""
NOT_RUN_HERE = "no GPU"


def measure_exports(sweep: Sweep, folder: Path) -> None:
    """The rows of every variant that are asked for and not there."""
    asked = sweep.options.group or ["engines", "detectors"]
    for variant in sweep.content["variants"]:
        if "engines" in asked:
            for row in engine_rows(sweep, variant, folder / f"{variant}-engines"):
                sweep.results.add(row)
        if "detectors" in asked:
            for row in detector_rows(sweep, variant, folder / f"{variant}-detectors"):
                sweep.results.add(row)


def cells(sweep: Sweep, variant: str) -> Iterator[dict[str, Any]]:
    """What is known of each row of a built engine."""
    yield key("engine", variant, *OWN)
    for target in sweep.content["targets"]:
        for precision in sweep.content["precisions"]:
            for sm in sweep.content["sms"] if target == "tensorrt-rtx" else (None,):
                engine = sweep.content["engine_of_target"].get(target, target)
                cell = key("engine", variant, target, engine, precision)
                yield cell if sm is None else {**cell, "sm": sm}


def key(what: str, variant: str, target: str, engine: str, precision: str) -> dict[str, Any]:
    names = ("what", "variant", "target", "engine", "precision")
    return dict(zip(names, (what, variant, target, engine, precision), strict=True))


def engine_rows(sweep: Sweep, variant: str, folder: Path) -> Iterator[dict[str, Any]]:
    """What building each engine gives, and its latency where it runs here: in turns with the graphs
    of the artifact, so that the ratio holds."""
    wanted = [cell for cell in cells(sweep, variant) if not sweep.results.has(cell)]
    if not wanted:
        return
    category = sweep.categories[0]
    fit = {**sweep.content["engine_fit"], "method": variant}
    request = fit_request(fit)
    detector = fit_detector(
        sweep.dataset, folder, category=category, request=request, max_train_scans=2
    )
    scans = sweep.dataset.scans(category, "train")[: sweep.content["calibration_scans"]]
    facts = {
        "rgb_backbone": detector.artifact.manifest.parameters["rgb_backbone"],
        "threads": get_num_threads(),
    }
    own_ms: dict[str, float] = {}
    for cell in sorted(wanted, key=lambda cell: cell["target"] == OWN[0]):  # its own graphs last
        row = {**cell, **built(detector, cell, scans), **facts}
        own_ms = row["own_p50_ms"] or own_ms
        if cell["target"] == OWN[0]:
            row |= {"p50_ms": own_ms, "own_p50_ms": own_ms}
        yield row


def built(detector: Detector, cell: Mapping[str, Any], scans: Sequence[ScanFile]) -> dict[str, Any]:
    """The part of a row that building gives; a refusal is a result, too."""
    artifact = detector.artifact
    graphs: dict[str, dict[str, Any]] = {}
    nothing: dict[str, Any] = {"refusal": None, "library": None, "run_refusal": None}
    nothing |= {"graphs": graphs, "p50_ms": {}, "own_p50_ms": {}}
    if cell["target"] == OWN[0]:
        for name in artifact.manifest.graphs:
            path = artifact.graph_path(name)
            graphs[name] = {"files": [path.name], "size_bytes": path.stat().st_size}
        return nothing
    needs_scans = cell["precision"] in ("int8", "fp8")
    try:
        report = export_detector(
            artifact.path,
            to=cell["target"],
            precision=cell["precision"],
            sms=() if cell.get("sm") is None else (cell["sm"],),
            calibration=scans if needs_scans else None,
            cache=False,
        )
    except MmadFastError as error:
        return {**nothing, "refusal": refusal(error, artifact.path)}
    sizes = {Path(name).name: (report.artifact / name, size) for name, size in report.files.items()}
    for name, graph in report.graphs.items():
        files = [path.name for path in graph.paths]
        graphs[name] = {
            "files": files,
            "size_bytes": sum(sizes[file][1] for file in files),
            "build_s": round(graph.build_s, 3),
            "layers": graph.layers,
        }
        if cell["target"] == "onnx":
            cost = graph_cost(onnx.load_model(sizes[files[0]][0]))
            graphs[name] |= {"multiply_adds": cost.multiply_adds, "parameters": cost.parameters}
    if report.measured is None:
        return {**nothing, "library": report.library, "run_refusal": NOT_RUN_HERE}
    times = {"p50_ms": report.measured["graph_ms"], "own_p50_ms": {"all": report.own_p50_ms}}
    return {**nothing, "library": report.library, **times}


def detector_rows(sweep: Sweep, variant: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Equality of fp32 with the published pipeline, and accuracy of the other precisions."""
    wanted = [row for row in wanted_rows(sweep, variant) if not sweep.results.has(row)]
    if not wanted:
        return
    category = sweep.categories[0]
    request = fit_request({**sweep.fit, "method": variant})
    own = fit_detector(sweep.dataset, folder / "own", category=category, request=request)
    scans = sweep.dataset.scans(category, "test")
    training = sweep.dataset.scans(category, "train")[: sweep.content["calibration_scans"]]
    step = max(1, len(scans) // sweep.content["compared_scans"])
    compared = scans[::step][: sweep.content["compared_scans"]]
    with torch_threads():
        published = own.family.reference(own.artifact, request.weights)
    for number, row in enumerate(wanted):
        row |= {"rgb_backbone": own.artifact.manifest.parameters["rgb_backbone"]}
        row |= {"data": sweep.data, "category": category, "threads": get_num_threads()}
        place = folder / str(number)
        try:
            detector = exported(own, training, row, place)
        except MmadFastError as error:
            yield {**row, "refusal": refusal(error, place)}
            continue
        row["refusal"] = None
        if row["what"] == "equality":
            yield row | equality(detector, published, compared)
        else:
            yield row | accuracy(detector, scans)


def wanted_rows(sweep: Sweep, variant: str) -> Iterator[dict[str, Any]]:
    """What is known of each row before it is measured."""
    for target, engine in sweep.content["equal"]:
        yield key("equality", variant, target, engine, "fp32")
    yield key("accuracy", variant, *OWN)  # what the changes of the others are changes of
    for precision, settings in sweep.content["accuracy"].items():
        for target, engine in settings:
            yield key("accuracy", variant, target, engine, precision)


def exported(
    own: Detector, calibration: Sequence[ScanFile], row: Mapping[str, Any], place: Path
) -> Detector:
    """The detector with its graphs exported to the row's target and run by its engine.

    Raises:
        MmadFastError: the target cannot be had, or the engine cannot run it.
    """
    artifact = own.artifact
    target, engine, precision = (row[name] for name in ("target", "engine", "precision"))
    if target == OWN[0]:
        return load(artifact.path, engine=engine, precision=precision)
    scans = calibration if precision in ("int8", "fp8") else None
    if not target.startswith("tensorrt"):
        export_detector(
            artifact.path,
            to=target,
            precision=precision,
            calibration=scans,
            output=place,
            measure=False,
        )
        return load(place, engine=engine, precision=precision)
    inputs = record_graph_inputs(own, scans, "m") if scans else {}
    place.mkdir(parents=True)
    graphs = {}
    for name in artifact.manifest.graphs:
        model = deployment_graph(
            artifact.graph_path(name),
            target=target,
            precision=precision,
            calibration=inputs.get(name, ()),
        )
        graphs[name] = place / f"{name}.onnx"
        onnx.save_model(model, graphs[name])
    return with_graphs(artifact, graphs, place / "artifact", engine=engine)


def equality(detector: Detector, published: Reference, scans: Sequence[ScanFile]) -> dict[str, Any]:
    """The largest differences to the published pipeline, relative to the map's maximum and to the
    score."""
    found = []
    with torch_threads():
        for scan in scans:
            prepared = detector.prepare(scan.load(with_normals=detector.reads_normals))
            found.append(differences(detector, prepared, published(prepared, StageClock())))
    return {
        "map_difference": max(one for one, _ in found),
        "score_difference": max(one for _, one in found),
        "num_scans": len(scans),
    }


def accuracy(detector: Detector, scans: Sequence[ScanFile]) -> dict[str, Any]:
    """The metrics over all test scans, as the published evaluation computes them."""
    overall = evaluate(detector, scans).overall
    num_good = sum(scan.defect == GOOD for scan in scans)
    return {**accuracy_columns(overall), "num_scans": overall.num_scans, "num_good": num_good}


def refusal(error: MmadFastError, folder: Path) -> str:
    """The first line of a message without the file it names, which says nothing."""
    return re.sub(rf"{re.escape(str(folder))}\S*: ", "", str(error).splitlines()[0])
