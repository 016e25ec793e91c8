"""What can be exported, what of it runs here, and whether it gives the same answer: one JSON line
per cell of the matrix variant x target x precision.

    python bench/exported_engines.py --data rendered3d --category gear \\
        --rgb-weights dinov2_vits14.safetensors --work build/exported_engines \\
        --results bench/results/exported_engines.jsonl

--parts engines: builds and latencies of the published variants (DINO ViT-B/8, seeded random
weights: neither depends on them). --parts detectors: equality and accuracy of detectors with as
many layers of DINOv2 ViT-S/14, whose weights are real, fitted on one category.

Rows that are in the results file are skipped, and --work keeps fitted detectors and the published
pipeline's answers: an interrupted run goes on, --variants and --precisions run it piece by piece.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exported_accuracy import AccuracyRequest, detector_rows, refusal

from mmad_fast.data.dataset import open_dataset
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.data.selection import pick_category
from mmad_fast.engines import open_graph
from mmad_fast.engines.tensorrt_library import LIBRARIES
from mmad_fast.errors import ArtifactError, MmadFastError
from mmad_fast.export.backbone_cut import BackboneCut, export_cut
from mmad_fast.export.deployment_graph import PRECISIONS, TARGETS
from mmad_fast.export.engine_set import DeploymentGraphs, calibration_inputs, write_engine
from mmad_fast.export.export_request import ExportRequest
from mmad_fast.measure.environment import environment
from mmad_fast.measure.timing import Timing, time_interleaved
from mmad_fast.methods.variants import Variant, variants_of
from mmad_fast.threads import get_num_threads, set_num_threads

CFM = variants_of("cfm")
PARTS = ("engines", "detectors")
OWN = ("artifact", "fp32", None)
"""(target, precision, sm) of the graphs as a fit writes them."""
ENGINE_OF_TARGET = {"artifact": "onnxruntime", "onnx": "onnxruntime", "openvino": "openvino"}
"""What runs a target's files on a CPU."""
KEY = ("what", "variant", "target", "engine", "precision", "sm")
CALIBRATION_SCANS = 2
"""Of engines with random weights, whose ranges mean nothing."""

Cell = tuple[str, str, int | None]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="data set with labelled scans")
    parser.add_argument("--category", help="which one, where it has several")
    parser.add_argument("--rgb-weights", default="auto", help="of dinov2-vits14: PATH or auto")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--variants", nargs="+", choices=CFM, default=list(CFM))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument(
        "--sms",
        nargs="+",
        type=int,
        choices=LIBRARIES["tensorrt-rtx"].sms,
        default=LIBRARIES["tensorrt-rtx"].sms,
        help="compute capabilities, a TensorRT-RTX engine for each (default: all)",
    )
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each graph")
    parser.add_argument("--scans", type=int, default=20, help="compared with the reference")
    parser.add_argument("--calibration-scans", type=int, default=8, help="of the detectors")
    parser.add_argument("--epochs", type=int, help="of the detectors' fits; default: as fit does")
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument("--work", type=Path, required=True, help="folder for what is kept")
    parser.add_argument("--results", type=Path, required=True)
    return parser.parse_args()


class Rows:
    """The rows of a results file: which are there, and new ones one by one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        self._start = time.perf_counter()
        self._keys = {self._key(json.loads(line)) for line in text.splitlines()}

    def has(self, row: Mapping[str, Any]) -> bool:
        return self._key(row) in self._keys

    def add(self, row: Mapping[str, Any]) -> None:
        line = json.dumps({**row, "environment": environment()}, allow_nan=False)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        self._keys.add(self._key(row))
        seconds = round(time.perf_counter() - self._start)
        print(f"{seconds} s", *(part for part in self._key(row) if part is not None), flush=True)

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in KEY)


def main() -> None:
    arguments = parse_arguments()
    try:
        measure(arguments)
    except MmadFastError as error:
        sys.exit(f"error: {error}")


def measure(arguments: argparse.Namespace) -> None:
    """Writes the rows that are asked for and not there."""
    set_num_threads(arguments.threads)
    dataset = open_dataset(arguments.data)
    category = pick_category(dataset, arguments.category)
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = Rows(arguments.results)
    for name in arguments.variants:
        variant = CFM[name]
        if "engines" in arguments.parts:
            cells = [cell for cell in all_cells(arguments) if not rows.has(engine_key(name, cell))]
            scans = dataset.scans(category, "train")[:CALIBRATION_SCANS]
            if cells:
                with TemporaryDirectory(dir=arguments.work) as folder:
                    for row in engine_rows(variant, cells, scans, Path(folder), arguments):
                        rows.add(row)
        if "detectors" in arguments.parts:
            request = AccuracyRequest(
                variant=variant,
                dataset=dataset,
                category=category,
                rgb_weights=arguments.rgb_weights,
                precisions=tuple(arguments.precisions),
                num_compared=arguments.scans,
                num_calibration=arguments.calibration_scans,
                epochs=arguments.epochs,
                work=arguments.work,
            )
            for row in detector_rows(request, is_done=rows.has):
                rows.add(row)


def all_cells(arguments: argparse.Namespace) -> list[Cell]:
    """The cells of the matrix that are asked for."""
    return [OWN] + [
        (target, precision, sm)
        for target in TARGETS
        for precision in arguments.precisions
        for sm in (arguments.sms if target == "tensorrt-rtx" else (None,))
    ]


def engine_key(variant: str, cell: Cell) -> dict[str, Any]:
    """What a row of the cell is known by."""
    target, precision, sm = cell
    engine = ENGINE_OF_TARGET.get(target, target)
    names = (variant, target, engine, precision, sm)
    return dict(zip(KEY, ("engine", *names), strict=True))


def engine_rows(
    variant: Variant,
    cells: Sequence[Cell],
    scans: Sequence[ScanFile],
    folder: Path,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """What building a variant's graphs gives, and the latency of what runs here.

    The graphs take turns, and the artifact's own are always among them: ratios hold within a run.
    """
    cuts = (
        BackboneCut(variant.rgb_backbone, variant.rgb_layers),
        BackboneCut.point_mae(variant.point_layers),
    )
    graphs = {}
    for cut in cuts:
        graph = export_cut(cut, folder, weights="random")
        graphs[cut.graph] = DeploymentGraphs(graph, calibration_inputs(graph, scans))
    rows = [
        {**engine_key(variant.name, cell), **build(graphs, folder, cell)}
        for cell in dict.fromkeys((OWN, *cells))
    ]
    runs: dict[tuple[int, str], Callable[[], object]] = {}
    for index, row in enumerate(rows):
        row["run_refusal"] = add_runs(runs, index, row, graphs, folder, arguments.threads)
    latencies_ms = time_interleaved(runs, num_runs=dict.fromkeys(runs, arguments.runs))
    for index, row in enumerate(rows):
        row["p50_ms"] = {
            graph: Timing.from_latencies(latencies_ms[index, graph]).p50_ms
            for graph in row["graphs"]
            if (index, graph) in latencies_ms
        }
        row |= {"own_p50_ms": rows[0]["p50_ms"], "runs": arguments.runs}
        row |= {"threads": arguments.threads, "rgb_backbone": variant.rgb_backbone}
    return rows if OWN in cells else rows[1:]


def build(graphs: Mapping[str, DeploymentGraphs], folder: Path, cell: Cell) -> dict[str, Any]:
    """The part of a row that building gives; a refusal is a result, too."""
    target, precision, sm = cell
    built: dict[str, Any] = {}
    if cell == OWN:
        for name, graph in graphs.items():
            path = graph.graph.path
            built[name] = {"files": [path.name], "size_bytes": path.stat().st_size}
        return {"refusal": None, "library": None, "graphs": built}
    library = None
    try:
        sms = () if sm is None else (sm,)
        request = ExportRequest.of(to=target, precision=precision, sms=sms, batch=1)
        for name, graph in graphs.items():
            engine = write_engine(graph, request, folder, cache=False)
            library = engine.library
            built[name] = {
                "files": engine.files,
                "size_bytes": engine.size_bytes,
                "build_s": round(engine.build_s, 3),
                "multiply_adds": engine.multiply_adds,
                "parameters": engine.parameters,
                "layers": engine.layers,
            }
            if target not in ENGINE_OF_TARGET:  # some hundred MB that do not run here
                (folder / engine.files[0]).unlink()
    except MmadFastError as error:
        return {"refusal": refusal(error, folder), "library": None, "graphs": {}}
    return {"refusal": None, "library": library, "graphs": built}


def add_runs(
    runs: dict[tuple[int, str], Callable[[], object]],
    index: int,
    row: Mapping[str, Any],
    graphs: Mapping[str, DeploymentGraphs],
    folder: Path,
    threads: int,
) -> str | None:
    """Adds the runs of a row's graphs, warmed up; why there are none, where there are none."""
    if row["refusal"] is not None:
        return None
    if row["target"] not in ENGINE_OF_TARGET:
        return "no GPU"
    try:
        for name, graph in row["graphs"].items():
            engine = open_graph(
                folder / graph["files"][0], engine=row["engine"], num_threads=threads
            )
            first = graphs[name].calibration[0]
            engine.run(first)
            runs[index, name] = lambda engine=engine, first=first: engine.run(first)
    except ArtifactError as error:
        return refusal(error, folder)
    return None


if __name__ == "__main__":
    main()
