"""A detector that was just fitted, on the engine that a benchmark asks for."""

from __future__ import annotations

from collections.abc import Sequence

from mmad_fast.data.scan_file import ScanFile
from mmad_fast.detector import Detector, load
from mmad_fast.engine_record import own_precision
from mmad_fast.engines import ENGINES, check_engine
from mmad_fast.engines.selection import AUTO, EngineFiles, check_precision, choose_engine
from mmad_fast.scan import Unit

FITTED_TARGET = "onnx"
"""What the graphs of `fit` are; everything else is exported."""


def check_engine_of_fit(engine: str, device: str, precision: str | None) -> None:
    """Raises, before anything is fitted, if the engine cannot run here, or not in the precision.

    Raises:
        InvalidInputError: a name is no string, or there is no such precision.
        BackendUnavailableError: no such engine or device, or it cannot run here; says why.
    """
    check_precision(precision)
    if engine != AUTO:
        check_engine(engine, device)
    if engine == AUTO or FITTED_TARGET in ENGINES[engine].reads:
        graphs = EngineFiles(FITTED_TARGET, precision or "fp32", 1, 1, (), "", {})
        choose_engine([graphs], engine=engine, device=device, precision=precision)


def on_engine(
    fitted: Detector,
    *,
    engine: str,
    device: str,
    precision: str | None,
    calibration: Sequence[ScanFile],
    unit: Unit,
) -> Detector:
    """The detector, loaded with the engine; graphs that `fit` does not write are exported first.

    Args:
        fitted: A detector whose artifact holds its own graphs only.
        engine: A name in ENGINES, or "auto".
        device: Device of the detector.
        precision: Of the graphs; None: that of its own.
        calibration: Nominal scans for int8 and fp8.
        unit: Unit of their XYZ files.

    Raises:
        BackendUnavailableError: the engine or its library cannot be had here.
        InvalidInputError: no such precision, or not from this detector.
        MissingDependencyError: an export is needed, and onnx is not installed.
    """
    path = fitted.artifact.path
    own = own_precision(fitted.artifact.manifest.parameters)
    reads = (FITTED_TARGET,) if engine == AUTO else ENGINES[engine].reads
    if FITTED_TARGET not in reads or precision not in (None, own):
        from mmad_fast.engines.tensorrt_library import LIBRARIES, gpu_sm
        from mmad_fast.export import export_detector
        from mmad_fast.export.deployment_graph import QUANTIZED_PRECISIONS

        target = reads[0]
        needs_sm = target in LIBRARIES and LIBRARIES[target].sms is not None
        export_detector(
            path,
            to=target,
            precision=precision or own,
            sms=(gpu_sm(),) if needs_sm else (),
            calibration=calibration if precision in QUANTIZED_PRECISIONS else None,
            unit=unit,
            measure=False,
        )
    return load(path, engine=engine, device=device, precision=precision)
