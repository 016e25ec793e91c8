"""What the graphs of a detector get from scans: the inputs that low precision is calibrated on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mmad_fast.data.scan_file import ScanFile
from mmad_fast.detector import Detector, open_detector
from mmad_fast.engines import Engine
from mmad_fast.errors import EmptyScanError, InvalidInputError
from mmad_fast.scan import Scan, Unit

GraphInputs = dict[str, NDArray]
"""Array by the name of a graph's input."""


class RecordingEngine:
    """An engine that notes what it gets.

    Attributes:
        input_shapes: Shape by input name.
        output_shapes: Shape by output name.
        runs: Copies of the inputs, by name, of each run since the list was last emptied.
    """

    def __init__(self, engine: Engine) -> None:
        """Takes the engine that runs the graph."""
        self.input_shapes = engine.input_shapes
        self.output_shapes = engine.output_shapes
        self.runs: list[GraphInputs] = []
        self._engine = engine

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The outputs by name."""
        self.runs.append({name: np.array(array) for name, array in inputs.items()})
        return self._engine.run(inputs)


def record_graph_inputs(
    detector: Detector, scans: Iterable[Scan | ScanFile], unit: Unit
) -> dict[str, list[GraphInputs]]:
    """Per graph, and per scan in their order, the inputs that the graph got: those of each run
    where it runs several times per scan.

    One scan is in memory at a time, and of each the inputs remain: 3 MiB for DINO and Point-MAE,
    and up to 17 MiB for M3DM's feature fusion.

    Args:
        detector: On the CPU; it judges each scan.
        scans: Read when their turn comes; those with too little foreground are left out.
        unit: Unit of the XYZ files.

    Raises:
        InvalidInputError: no scans, the detector is on another device, or coordinates that cannot
            be in the unit.
        EmptyScanError: none of the scans has enough foreground.
        DataError: a scan's file is missing or unreadable.
    """
    recorders: dict[str, RecordingEngine] = {}

    def record(name: str, engine: Engine) -> Engine:
        recorders[name] = RecordingEngine(engine)
        return recorders[name]

    if detector.engine_choice.device != "cpu":
        raise InvalidInputError(
            f"the detector is on device {detector.engine_choice.device!r}, whose engines take no "
            "NumPy arrays; load it with device='cpu'"
        )
    observed = open_detector(detector.artifact, replace(detector.engine_choice, wrap=record))
    recorded: dict[str, list[GraphInputs]] = {name: [] for name in recorders}
    num_scans = 0
    for scan in scans:
        num_scans += 1
        for recorder in recorders.values():
            recorder.runs.clear()
        try:
            if not isinstance(scan, Scan):
                scan = scan.load(unit=unit, with_normals=observed.reads_normals)
            observed.infer_scan(scan)
        except EmptyScanError:
            continue
        for name, recorder in recorders.items():
            recorded[name].extend(recorder.runs)
    if not num_scans:
        raise InvalidInputError(
            "there is no calibration scan; int8 and fp8 need nominal scans of the part to find the "
            "ranges of activations, 20 or more"
        )
    if not all(recorded.values()):
        raise EmptyScanError(
            f"none of the {num_scans} calibration scans has enough foreground for this detector; "
            "check the unit and that the part is in view"
        )
    return recorded
