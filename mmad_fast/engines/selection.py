"""Which engine runs an artifact's graphs, from which files, and why not another."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmad_fast.engine_record import PRECISIONS
from mmad_fast.engines import (
    DEVICES,
    ENGINES,
    DeviceEngine,
    Engine,
    as_it_is,
    check_engine,
    check_name,
    engine_refusal,
    open_device_graph,
    open_graph,
)
from mmad_fast.engines.tensorrt_library import LIBRARIES, gpu_sm, library_version
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.folder_files import FolderFiles, Locate
from mmad_fast.processor import cpu_model
from mmad_fast.threads import resolve_num_threads

AUTO = "auto"
ENGINE_BY_TARGET: dict[str, str] = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "tensorrt-rtx": "tensorrt-rtx",
    "tensorrt": "tensorrt",
}
"""The engine that an export tries and times the files of a target with."""
UNSUPPORTED_PRECISIONS: dict[tuple[str, str], tuple[str, ...]] = {("onnxruntime", "cpu"): ("bf16",)}
"""By (engine, device): the precisions that the engine has no kernels for there."""


@dataclass(frozen=True)
class EngineFiles:
    """The files of all graphs of an artifact, made for one kind of engine.

    Attributes:
        target: What they were exported to: "onnx", "openvino", "tensorrt-rtx" or "tensorrt".
        precision: "fp32", "fp16", "bf16", "int8" or "fp8".
        batch_min: Smallest batch they take.
        batch_max: Largest batch.
        sms: Compute capabilities that they were built for, as 89; empty where it does not matter,
            or where the library was not told.
        library: Name and version of what built them, e.g. "tensorrt-rtx 1.7.1.116".
        files: Per graph the file that an engine opens.
        measured: Null, or the time of one run at export: "machine" (CPU model), "threads", "p50_ms"
            (sum over the graphs).
        folder: The artifact's files, which are read in place of what stands at their paths by now;
            None: the files are of no artifact.
    """

    target: str
    precision: str
    batch_min: int
    batch_max: int
    sms: tuple[int, ...]
    library: str
    files: Mapping[str, Path]
    measured: Mapping[str, Any] | None = None
    folder: FolderFiles | None = field(default=None, compare=False, repr=False)

    @property
    def label(self) -> str:
        """What messages call them."""
        sms = "".join(f" sm_{sm}" for sm in self.sms)
        batch = "" if self.batch_max == 1 else f" batch {self.batches}"
        return f"{self.target} {self.precision}{sms}{batch}"

    @property
    def batches(self) -> str:
        """The batches that they take, e.g. "1 to 8"."""
        low, high = self.batch_min, self.batch_max
        return str(low) if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class EngineChoice:
    """An engine that can run here, with the files it opens.

    Attributes:
        engine: A name in engines.ENGINES.
        precision: The files' precision.
        files: File by graph name.
        reason: Why this one, and why not each one that would have come before it.
        device: Where the arrays lie, "cpu" or "cuda".
        num_threads: Threads per run on the CPU; None means mmad_fast.threads.get_num_threads().
        wrap: What is run in an opened graph's place, given its name and engine: None is the engine
            itself. On "cpu" only.
        folder: As in EngineFiles.
    """

    engine: str
    precision: str
    files: Mapping[str, Path]
    reason: str
    device: str = "cpu"
    num_threads: int | None = None
    wrap: Callable[[str, Engine], Engine] | None = None
    folder: FolderFiles | None = field(default=None, compare=False, repr=False)

    def open(self, name: str) -> Engine:
        """The graph of that name, ready to run on NumPy arrays.

        Raises:
            ArtifactError: there is no such graph, or its file is none that the engine can load.
            BackendUnavailableError: the engine is not installed.
        """
        path = self.files[name]
        with self._located() as locate:
            graph = open_graph(
                path, engine=self.engine, num_threads=self.num_threads, locate=locate
            )
        return graph if self.wrap is None else self.wrap(name, graph)

    def open_on_device(self, name: str, *, device_index: int, stream: int) -> DeviceEngine:
        """The graph of that name, ready to run on buffers of a CUDA device; see
        engines.open_device_graph.

        Raises:
            ArtifactError: there is no such graph, or its file is none that the engine can load.
            BackendUnavailableError: the engine is not installed, or cannot use the device.
            InvalidInputError: the choice has a `wrap`, which takes NumPy arrays.
        """
        if self.wrap is not None:
            raise InvalidInputError(
                f"the engine of {name!r} on device {self.device!r} cannot be wrapped, since it "
                "takes no NumPy arrays; choose device='cpu'"
            )
        path = self.files[name]
        with self._located() as locate:
            return open_device_graph(
                path,
                engine=self.engine,
                device_index=device_index,
                stream=stream,
                locate=locate,
            )

    def _located(self) -> AbstractContextManager[Locate]:
        return nullcontext(as_it_is) if self.folder is None else self.folder.located()


@dataclass(frozen=True)
class _Option:
    """An engine with files that it can read; the time where it counts here, else None."""

    engine: str
    files: EngineFiles
    measured_ms: float | None

    @property
    def label(self) -> str:
        return f"{self.engine} ({self.files.label})"


def choose_engine(
    candidates: Sequence[EngineFiles],
    *,
    engine: str = AUTO,
    device: str = "cpu",
    precision: str | None = None,
    num_threads: int | None = None,
    device_index: int | None = None,
) -> EngineChoice:
    """The engine and files to run an artifact with.

    The order is: what was measured at export on this CPU model and with this number of threads, the
    fastest first; then the order of ENGINES, and for one engine the order of the candidates. The
    first that can run here is taken; those behind it are not looked at, nor imported.

    Args:
        candidates: What the artifact holds; first its own graphs, as fitted.
        engine: A name in ENGINES, or "auto" for any.
        device: Where the arrays lie, "cpu" or "cuda".
        precision: The files' precision. None: that of the artifact's own graphs, so that nothing
            is approximated unasked.
        num_threads: Threads that the engine will have; None means
            mmad_fast.threads.get_num_threads().
        device_index: The GPU that an engine built for a GPU would run on. None: the one that a
            detector takes, torch's current one on "cuda", else the first.

    Raises:
        InvalidInputError: an argument is of the wrong type, there is no such precision, or there
            are no candidates.
        BackendUnavailableError: no such engine or device, or nothing can be run: says why for each,
            and how to get it.
    """
    _check_arguments(candidates, engine, device, precision)
    if num_threads is not None:
        resolve_num_threads(num_threads)
    if engine != AUTO:
        check_engine(engine, device)
    wanted = candidates[0].precision if precision is None else precision
    if device_index is None:
        device_index = _current_gpu(device)
    names = tuple(ENGINES) if engine == AUTO else (engine,)
    fitting = [files for files in candidates if files.precision == wanted]
    refused: dict[str, str] = {}
    for option in _options(fitting, candidates[0], names, device, num_threads):
        if option.engine in refused:
            continue
        problem = engine_refusal(option.engine, device)
        if problem is not None:
            refused[option.engine] = problem
            continue
        problem = _files_refusal(option, device, device_index)
        if problem is None:
            left_out = [] if precision else _others(candidates, wanted, names, device)
            reason = _reason(option, engine, _listed(refused), left_out)
            files = option.files
            return EngineChoice(
                option.engine,
                wanted,
                files.files,
                reason,
                device,
                num_threads,
                folder=files.folder,
            )
        refused[option.label] = problem
    if refused:
        what = "no engine can" if engine == AUTO else f"engine {engine!r} cannot"
        raise BackendUnavailableError(
            f"{what} run this artifact here on device {device!r} in {wanted}: "
            f"{'; '.join(_listed(refused))}"
        )
    raise _nothing_to_run(candidates, names, engine, device, wanted, device_index)


def _check_arguments(
    candidates: Sequence[EngineFiles], engine: object, device: object, precision: object
) -> None:
    if not candidates:
        raise InvalidInputError("there are no candidates; an artifact has at least its own graphs")
    check_name("engine", engine, (AUTO, *ENGINES))
    check_name("device", device, DEVICES)
    if device not in DEVICES:
        raise BackendUnavailableError(
            f"there is no device {device!r}; known are {', '.join(DEVICES)}"
        )
    check_precision(precision)


def check_precision(precision: object) -> None:
    """Raises if there is no such precision; None stands for what the detector was fitted with.

    Raises:
        InvalidInputError: no name, or an unknown one; the message lists the known ones.
    """
    if precision is None:
        return
    fitted = ", or None for what the detector was fitted with"
    check_name("precision", precision, PRECISIONS, otherwise=fitted)
    if precision not in PRECISIONS:
        raise InvalidInputError(
            f"there is no precision {precision!r}; known are {', '.join(PRECISIONS)}"
        )


def _current_gpu(device: str) -> int:
    """The GPU that a detector on this device would use; torch is asked where it is loaded."""
    torch = sys.modules.get("torch")
    if device != "cuda" or torch is None or not torch.cuda.is_available():
        return 0
    return int(torch.cuda.current_device())


def _options(
    files: Sequence[EngineFiles],
    own: EngineFiles,
    names: Sequence[str],
    device: str,
    num_threads: int | None,
) -> list[_Option]:
    """Every engine with every file that it reads: the measured ones first, by time; the others in
    the order of preference."""
    options = [
        _Option(name, one, _measured_ms(one, name, own, device, num_threads))
        for name in names
        if device in ENGINES[name].devices
        for target in ENGINES[name].reads
        for one in files
        if one.target == target
    ]
    return sorted(  # keeps the order of equal ones
        options,
        key=lambda option: math.inf if option.measured_ms is None else option.measured_ms,
    )


def _measured_ms(
    files: EngineFiles, engine: str, own: EngineFiles, device: str, num_threads: int | None
) -> float | None:
    """The time measured at export, if it was measured with this engine on a machine like this.

    A copy of the artifact's own graphs in the same precision is compared with them only where both
    were measured: otherwise the fact of a measurement alone would decide.
    """
    measured = files.measured
    if measured is None or device != "cpu" or ENGINE_BY_TARGET.get(files.target) != engine:
        return None
    is_copy = (files.target, files.precision) == (own.target, own.precision) and files is not own
    if is_copy and own.measured is None:
        return None
    is_here = (
        measured["machine"] == cpu_model()
        and measured["threads"] == resolve_num_threads(num_threads)
    )  # fmt: skip
    return float(measured["p50_ms"]) if is_here else None


def _files_refusal(option: _Option, device: str, device_index: int) -> str | None:
    """Why these files do not fit here, with an engine that can run; None where they do."""
    files = option.files
    problem = _kernel_refusal(option.engine, device, files.precision)
    if problem is not None:
        return problem
    if not files.batch_min <= 1 <= files.batch_max:
        return f"takes batches of {files.batches}, a detector runs one scan; export with --batch 1"
    if files.target not in LIBRARIES:
        return None
    rebuild = f"build it again with: {_command(files.target, files.precision, device_index)}"
    here = library_version(files.target)
    if files.library != here:
        return f"was built by {files.library}, here is {here}; {rebuild}"
    if files.sms and (sm := gpu_sm(device_index)) not in files.sms:
        return f"the GPU here is sm_{sm}; {rebuild}"
    return None


def _kernel_refusal(engine: str, device: str, precision: str) -> str | None:
    """Why no graph of a precision can be run by an engine; None where one can."""
    if precision not in UNSUPPORTED_PRECISIONS.get((engine, device), ()):
        return None
    return (
        f"it has no {precision} kernels for device {device!r}; take engine 'openvino' (--engine "
        "openvino), or another precision"
    )


def _command(target: str, precision: str, device_index: int) -> str:
    sm = f" --sm {gpu_sm(device_index)}" if target in LIBRARIES else ""
    return f"mmad-fast export ARTIFACT --to {target} --precision {precision}{sm}"


def _others(
    candidates: Sequence[EngineFiles], wanted: str, names: Sequence[str], device: str
) -> list[str]:
    """Labels of the files of another precision that the named engines read."""
    readable = {
        target
        for name in names
        if device in ENGINES[name].devices
        for target in ENGINES[name].reads
    }
    return [
        files.label
        for files in candidates
        if files.precision != wanted and files.target in readable
    ]


def _reason(option: _Option, engine: str, refused: Sequence[str], left_out: Sequence[str]) -> str:
    if engine != AUTO:
        why = "asked for"
    elif option.measured_ms is not None:
        why = f"the fastest of those measured here ({option.measured_ms:.4g} ms)"
    else:
        why = "the first in the order of preference"
    parts = [f"{option.label} is {why}{' that can run here' if refused else ''}"]
    parts += [f"not {reason}" for reason in refused]
    if left_out:
        parts.append(f"in another precision, which must be asked for: {', '.join(left_out)}")
    return "; ".join(parts)


def _listed(refused: Mapping[str, str]) -> list[str]:
    return [f"{label}: {problem}" for label, problem in refused.items()]


def _nothing_to_run(
    candidates: Sequence[EngineFiles],
    names: Sequence[str],
    engine: str,
    device: str,
    wanted: str,
    device_index: int,
) -> BackendUnavailableError:
    what = "" if engine == AUTO else f" for engine {engine!r}"
    problem = _kernel_refusal(engine, device, wanted)
    if problem is not None:
        return BackendUnavailableError(f"the artifact has nothing in {wanted}{what}: {problem}")
    target = candidates[0].target if engine == AUTO else ENGINES[engine].reads[0]
    if engine == AUTO and _kernel_refusal(ENGINE_BY_TARGET[target], device, wanted) is not None:
        target = "openvino"
    held = ", ".join(files.label for files in candidates)
    others = _others(candidates, wanted, names, device)
    instead = f" (or name the precision of what it holds: {', '.join(others)})" * bool(others)
    return BackendUnavailableError(
        f"the artifact has nothing in {wanted}{what}: it holds {held}; make it "
        f"with: {_command(target, wanted, device_index)}{instead}"
    )
