"""TensorRT's own objects: the engine in a file, its execution context, and what the library says.

Everything here needs the device's context to be current.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mmad_fast.cache_folder import cache_root
from mmad_fast.engines import batch_one_shape
from mmad_fast.engines.tensorrt_log import library_log
from mmad_fast.errors import ArtifactError
from mmad_fast.gpu.device_context import DriverError
from mmad_fast.whole_folder import whole_file

logger = logging.getLogger("mmad_fast")

MEANINGS: dict[str, str] = {
    "VERSION_MISMATCH": "it was built by another version",
    "UNSUPPORTED_CC": "it was built for another compute capability",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "it is no engine of this library, or damaged",
    "CUDA_ERROR": "CUDA does not work",
}
"""What the library's diagnostics of an engine file say."""


class LoadedEngine:
    """An engine with one execution context, for batch 1.

    The library's objects live in attributes of this one alone, so that `drop` frees them in order
    while the GPU's context is there, also after an error whose traceback holds other names.
    """

    def __init__(self, trt: ModuleType, library: str, path: Path, sm: int) -> None:
        """Takes the library, its name, the engine's file, and the GPU's compute capability."""
        self._trt = trt
        self._library = library
        self._path = path
        self._sm = sm
        self._log: Any = library_log(trt)
        self._runtime: Any = None
        self._engine: Any = None
        self._config: Any = None
        self._kernels: Any = None
        self._saved_kernels = b""
        self._kernels_file: Path | None = None
        self._execution: Any = None

    def open(self, source: Path) -> None:
        """Loads the engine, whose file is read from `source`, and makes its execution context.

        Raises:
            ArtifactError: the file cannot be read, or does not fit the library or the GPU.
            DriverError: the library does not start, or there is no memory for the engine.
        """
        try:
            content = source.read_bytes()
        except OSError as error:
            raise self._not_loaded(str(error.strerror or error)) from error
        self._log.lines.clear()
        try:
            self._runtime = self._trt.Runtime(self._log)
        except TypeError as error:  # what the binding raises where the library returns null
            raise DriverError(
                f"{self._path}: {self._title()} does not start: {self._said()}; check that "
                "`nvidia-smi` shows a driver that is new enough for this version"
            ) from error
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._not_loaded(self._said(), self._diagnosis(content))
        self._require_float32()
        if self._library == "tensorrt-rtx":
            self._configure(content)
            self._execution = self._engine.create_execution_context(self._config)
        else:
            self._execution = self._engine.create_execution_context()
        if self._execution is None:
            raise DriverError(
                f"{self._path}: {self._title()} cannot make an execution context: {self._said()}; "
                "check with `nvidia-smi` that the GPU has memory left"
            )
        self._set_batch()

    def drop(self) -> None:
        """Lets go of the library's objects, each before what it was made from."""
        self._execution = None
        self._config = None
        self._kernels = None
        self._engine = None
        self._runtime = None

    def shapes(self, *, are_inputs: bool) -> dict[str, tuple[int, ...]]:
        """Shape by name, in the engine's order, with batch 1.

        Raises:
            ArtifactError: another axis than the batch is free.
        """
        return {
            name: batch_one_shape(self._path, name, tuple(self._execution.get_tensor_shape(name)))
            for name in self._names(are_inputs)
        }

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Sets where the next runs read and write.

        Raises:
            DriverError: the library refuses an address.
        """
        for name, address in addresses.items():
            if not self._execution.set_tensor_address(name, address):
                raise DriverError(
                    f"{self._path}: {self._title()} refuses the address {address:#x} of {name!r}: "
                    f"{self._said()}"
                )

    def enqueue(self, stream: int) -> None:
        """Hands a run over to the stream.

        Raises:
            DriverError: the library cannot start it.
        """
        if not self._execution.execute_async_v3(stream):
            raise DriverError(
                f"{self._path}: {self._title()} cannot run the engine: {self._said()}; check with "
                "`nvidia-smi` that the GPU works and has memory left"
            )

    def capture_refusal(self, stream: int) -> str | None:
        """Why runs cannot be captured in a CUDA graph, as far as the library can tell before."""
        ask = getattr(self._execution, "is_stream_capturable", None)  # not in every version
        if ask is None or ask(stream):
            return None
        return f"{self._title()} says that this engine cannot be captured: {self._said()}"

    def save_kernels(self) -> None:
        """Keeps the kernels that TensorRT-RTX compiled for this GPU; without them the next start
        only takes longer, so a cache that cannot be written is no error."""
        if self._kernels is None or self._kernels_file is None:
            return
        serialized = self._kernels.serialize()
        content = b"" if serialized is None else bytes(serialized)
        if not content or content == self._saved_kernels:
            return
        try:
            with whole_file(self._kernels_file) as partial:
                partial.write_bytes(content)
        except OSError as error:
            logger.debug("%s: the compiled kernels are not kept: %s", self._path.name, error)
        self._saved_kernels = content

    def _configure(self, content: bytes) -> None:
        """Sets TensorRT-RTX up, with the kernels of an earlier start."""
        config = self._config = self._engine.create_runtime_config()
        digest = hashlib.sha256(content).hexdigest()[:32]
        file = f"{digest}.sm{self._sm}.{self._trt.__version__}.kernels"
        self._kernels_file = cache_root() / "tensorrt-rtx" / file
        self._kernels = config.create_runtime_cache()
        try:
            saved = self._kernels_file.read_bytes()
        except OSError:
            saved = b""
        if saved and self._kernels.deserialize(saved):
            self._saved_kernels = saved
        self._log.lines.clear()  # kernels of another driver are no error: they are compiled again
        config.set_runtime_cache(self._kernels)
        # A detector runs one shape: its kernels are compiled at once, not behind the first runs.
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER

    def _names(self, are_inputs: bool) -> list[str]:
        wanted = self._trt.TensorIOMode.INPUT if are_inputs else self._trt.TensorIOMode.OUTPUT
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == wanted]

    def _require_float32(self) -> None:
        for name in (*self._names(True), *self._names(False)):
            dtype = self._engine.get_tensor_dtype(name)
            if dtype != self._trt.DataType.FLOAT:
                raise ArtifactError(
                    f"{self._path}: {name!r} is {dtype}, a detector's engine has float32 inputs "
                    f"and outputs; {self._command()}"
                )

    def _set_batch(self) -> None:
        for name in self._names(True):
            shape = tuple(self._engine.get_tensor_shape(name))
            if -1 not in shape:
                continue
            one = batch_one_shape(self._path, name, shape)
            if not self._execution.set_input_shape(name, one):
                smallest = tuple(self._engine.get_tensor_profile_shape(name, 0)[0])
                raise ArtifactError(
                    f"{self._path}: {name!r} takes {smallest} at the least, a detector needs "
                    f"{one}: {self._said()}; export it with --batch 1"
                )

    def _title(self) -> str:
        return f"{self._library} {self._trt.__version__}"

    def _said(self) -> str:
        """The last errors in the library's words, which it logs and does not raise."""
        lines = list(self._log.lines)
        self._log.lines.clear()
        return "; ".join(lines) or "it gives no reason"

    def _diagnosis(self, content: bytes) -> str:
        """What the library finds wrong with a file, in words; empty where it cannot tell."""
        ask = getattr(self._runtime, "get_engine_validity", None)  # not in every version
        if ask is None:
            return ""
        _, found = ask(content)
        self._log.lines.clear()
        members = self._trt.EngineInvalidityDiagnostics.__members__
        known = [MEANINGS.get(name, name) for name, bit in members.items() if found & int(bit)]
        return ", and ".join(known)

    def _not_loaded(self, said: str, diagnosis: str = "") -> ArtifactError:
        named = re.search(r"\.(sm\d+(?:-sm\d+)*)\.", self._path.name)
        built_for = f", the file is named for {named[1]}" if named else ""
        why = f"{diagnosis}: {said}" if diagnosis else said
        return ArtifactError(
            f"{self._path}: {self._title()} cannot load the graph on this GPU, which is "
            f"sm{self._sm}{built_for}: {why}; {self._command()}"
        )

    def _command(self) -> str:
        named = re.search(r"\.(fp32|fp16|bf16|int8|fp8)\.", self._path.name)
        precision = named[1] if named else "PRECISION"
        return (
            f"build it for this machine: mmad-fast export ARTIFACT --to {self._library} "
            f"--precision {precision} --sm {self._sm}"
        )
