"""Deployment graph -> the files that an engine opens."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmad_fast.engine_record import EngineKey, engine_file_name
from mmad_fast.errors import MmadFastError

if TYPE_CHECKING:
    import onnx

ENDINGS = {
    "onnx": "onnx",
    "openvino": "openvino.xml",
    "tensorrt-rtx": "tensorrt-rtx.engine",
    "tensorrt": "tensorrt.engine",
}


@dataclass(frozen=True)
class WrittenGraph:
    """One graph of an engine on disk.

    Attributes:
        paths: Its files; the first is what an engine opens.
        sms: Compute capabilities that it was built for; empty where it is bound to none.
        library: What built it, with its version.
        build_s: Seconds of building; of a cached one, when it was built.
        from_cache: It was built before.
        layers: Of a TensorRT engine: what its layers are (engine_layers.LayerSummary), JSON types.
    """

    paths: tuple[Path, ...]
    sms: tuple[int, ...]
    library: str
    build_s: float
    from_cache: bool = False
    layers: dict[str, Any] | None = None


def write_graph(
    model: onnx.ModelProto,
    graph: str,
    key: EngineKey,
    folder: Path,
    *,
    cache: bool,
) -> WrittenGraph:
    """The files of a graph, written to the folder.

    Args:
        model: The deployment graph of the key's target, precision and batch.
        graph: The graph's name.
        key: What to write. Its sms may be empty for a library that knows them itself.
        folder: An existing folder.
        cache: Take a TensorRT engine that was built before, and keep a new one.

    Raises:
        InvalidInputError: what the library refuses.
        BackendUnavailableError: the target's library is not installed or needs a GPU.
        OSError: no room, or the folder may not be written.
    """
    start = time.perf_counter()
    path = folder / engine_file_name(graph, key, ENDINGS[key.target])
    if key.target == "onnx":
        import onnx

        onnx.save_model(model, path)
        return WrittenGraph((path,), (), f"onnx {onnx.__version__}", time.perf_counter() - start)
    if key.target == "openvino":
        from mmad_fast.engines import engine_version
        from mmad_fast.export.openvino_model import save_openvino_model

        paths = tuple(save_openvino_model(model, path, precision=key.precision))
        # The second file has the weights, of which a graph may have none.
        filled = paths if model.graph.initializer else paths[:1]
        if not all(file.is_file() and file.stat().st_size for file in filled):
            raise MmadFastError(
                f"OpenVINO wrote an incomplete model to {folder}; make room on that disk"
            )
        library = f"openvino {engine_version('openvino')}"
        return WrittenGraph(paths, (), library, time.perf_counter() - start)
    return _write_tensorrt(model, graph, key, path, cache=cache)


def _write_tensorrt(
    model: onnx.ModelProto, graph: str, key: EngineKey, path: Path, *, cache: bool
) -> WrittenGraph:
    from mmad_fast.export.batch import Batch
    from mmad_fast.export.engine_cache import EngineCache
    from mmad_fast.export.engine_layers import summarize
    from mmad_fast.export.tensorrt_engine import build_engine

    engine = build_engine(
        model,
        path,
        target=key.target,
        precision=key.precision,
        sms=key.sms,
        batch=Batch(*key.batch),
        cache=EngineCache() if cache else None,
    )
    # A library that builds for the GPU at hand says which one that is.
    named = path.with_name(
        engine_file_name(graph, key._replace(sms=tuple(engine.sms)), ENDINGS[key.target])
    )
    os.replace(engine.path, named)
    return WrittenGraph(
        (named,),
        tuple(engine.sms),
        engine.library,
        engine.build_s,
        engine.from_cache,
        asdict(summarize(engine.layers)),
    )
