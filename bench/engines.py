"""Times the engines on the graphs of CFM, and what they take of memory, in the same run.

python bench/engines.py [--threads 2] [--runs 15] [--blocks 4] [--graphs rgb points] [--settings]

The graphs are DINO ViT-B/8 (image to tokens) and the transformer of Point-MAE (embedded groups to
features), cut after 4, 8 or 12 blocks, with seeded random weights. The engines take turns, so that
a slow moment of the machine falls on all of them. Memory is that of a process with the one graph.
--settings adds ONNX Runtime and OpenVINO with one setting changed at a time. One JSON line per row;
no row for an engine whose answer is not torch's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.engines import ENGINES, Engine, engine_refusal, onnx_runtime, open_graph
from mmad_fast.measure.environment import environment
from mmad_fast.measure.memory import MIB, peak_working_mib, process_peak_mib
from mmad_fast.measure.timing import Timing
from mmad_fast.threads import get_num_threads

Run = Callable[[], NDArray[np.float32]]
POINT_LAYERS = {4: (1, 2, 3), 8: (1, 4, 7), 12: (3, 7, 11)}
TOLERANCE = 1e-4
"""Largest difference to torch, relative to the largest output, that lets an engine be timed."""

ORT_SETTINGS: dict[str, Callable[[Any], object]] = {
    "memory pattern and reuse": lambda options: _set(
        options, enable_mem_pattern=True, enable_mem_reuse=True
    ),
    "own arena": lambda options: _entry(options, "session.use_env_allocators", "0"),
    "no arena": lambda options: (
        _entry(options, "session.use_env_allocators", "0"),
        _set(options, enable_cpu_mem_arena=False),
    ),
    "no prepacking": lambda options: _entry(options, "session.disable_prepacking"),
    "spinning": lambda options: _entry(options, "session.intra_op.allow_spinning"),
    "denormals are zero": lambda options: _entry(options, "session.set_denormal_as_zero"),
    "basic optimisation": lambda options: _set(
        options,
        graph_optimization_level=onnx_runtime.onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ),
}
OPENVINO_SETTINGS: dict[str, dict[str, Any]] = {"pinning": {"ENABLE_CPU_PINNING": True}}


def _set(options: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(options, name, value)


def _entry(options: Any, key: str, value: str = "1") -> None:
    options.add_session_config_entry(key, value)


@dataclass(frozen=True)
class Case:
    """A graph to run.

    Attributes:
        name: "rgb" or "points".
        blocks: Transformer blocks in it.
        path: Its ONNX file.
        inputs: Array by name.
        expected: torch's answer.
        module: The torch network.
    """

    name: str
    blocks: int
    path: Path
    inputs: dict[str, NDArray[np.float32]]
    expected: NDArray[np.float32]
    module: Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4], choices=sorted(POINT_LAYERS))
    parser.add_argument("--graphs", nargs="+", default=["rgb", "points"])
    parser.add_argument("--settings", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("GRAPH", "ENGINE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_memory(Path(options.child[0]), options.child[1], options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for blocks in options.blocks:
            for name in options.graphs:
                print_rows(make_case(name, blocks, Path(folder), options.threads), options)


def make_case(name: str, blocks: int, folder: Path, threads: int) -> Case:
    """The exported graph with torch's answer to random inputs."""
    import torch

    from mmad_fast.backbones import build_rgb_backbone
    from mmad_fast.export.onnx_graph import export_graph

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    if name == "rgb":
        module = build_rgb_backbone("dino-vitb8", num_layers=blocks, weights="random", seed=0)
        size = module.image_size
        inputs = {"image": torch.randn(1, 3, size, size, generator=generator)}
    else:
        module = _point_transformer(blocks)
        inputs = {
            "tokens": torch.randn(1, 1024, 384, generator=generator),
            "centers": 0.1 * torch.randn(1, 1024, 3, generator=generator),
        }
    path = export_graph(module, inputs, folder / f"{name}-{blocks}.onnx", output_name="features")
    with torch.inference_mode():
        expected = module(*inputs.values()).numpy()
    arrays = {key: tensor.numpy() for key, tensor in inputs.items()}
    return Case(name, blocks, path, arrays, expected, module)


def _point_transformer(blocks: int) -> Any:
    """Point-MAE without its group embedder, which is a compiled op and no part of a graph."""
    import torch

    from mmad_fast.backbones import build_point_backbone

    network = build_point_backbone(
        layers=POINT_LAYERS[blocks], weights="random", batch_norm="cloud", seed=0
    )

    class PointTransformer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed, self.blocks, self.norm = (
                network.pos_embed,
                network.blocks.blocks,
                network.norm,
            )

        def forward(self, tokens: Any, centers: Any) -> Any:
            position = self.pos_embed(centers)
            fetched = []
            for index, block in enumerate(self.blocks):
                tokens = block(tokens + position)
                if index in POINT_LAYERS[blocks]:
                    fetched.append(self.norm(tokens))
            return torch.cat(fetched, dim=-1)

    return PointTransformer().eval()


def engine_names(with_settings: bool) -> list[str]:
    """The engines that run here; "ENGINE, SETTING" for one setting changed."""
    names = [
        name
        for name, entry in ENGINES.items()
        if "onnx" in entry.reads and engine_refusal(name) is None
    ]
    if with_settings:
        changed = {"onnxruntime": ORT_SETTINGS, "openvino": OPENVINO_SETTINGS}
        names += [f"{name}, {setting}" for name in names for setting in changed[name]]
    return names


def open_engine(path: Path, name: str, threads: int) -> Engine:
    """The graph, opened by an engine of `engine_names`."""
    engine, _, setting = name.partition(", ")
    if not setting:
        return open_graph(path, engine=engine, num_threads=threads)
    if engine == "onnxruntime":
        original, change = onnx_runtime.session_options, ORT_SETTINGS[setting]

        def changed(num_threads: int) -> Any:
            options = original(num_threads)
            change(options)
            return options

        onnx_runtime.session_options = changed
        try:
            return open_graph(path, engine=engine, num_threads=threads)
        finally:
            onnx_runtime.session_options = original
    from mmad_fast.engines import openvino

    settings = openvino.compile_settings
    openvino.compile_settings = lambda num_threads: (
        settings(num_threads) | OPENVINO_SETTINGS[setting]
    )
    try:
        return open_graph(path, engine=engine, num_threads=threads)
    finally:
        openvino.compile_settings = settings


def print_rows(case: Case, options: argparse.Namespace) -> None:
    """Checks every engine's answer, times them in turns, and prints a row for each."""
    names = engine_names(options.settings)
    runs = {name: _run_of(case, open_engine(case.path, name, options.threads)) for name in names}
    runs["torch"] = _torch_run(case)
    errors = {name: _error(case, run()) for name, run in runs.items()}
    latencies_ms: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.runs):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            latencies_ms[name].append((time.perf_counter() - start) * 1e3)
    facts = environment()
    for name in runs:
        timing = Timing.from_latencies(latencies_ms[name])
        memory = {} if name == "torch" else _memory_of_child(case.path, name, options.threads)
        row = {
            "what": f"{case.name} graph, {case.blocks} blocks",
            "backend": name,
            "shapes": {key: list(array.shape) for key, array in case.inputs.items()},
            "dtype": "float32",
            "threads": options.threads,
            "p50_ms": timing.p50_ms,
            "p95_ms": timing.p95_ms,
            "p99_ms": timing.p99_ms,
            "runs": timing.runs,
            "max_error": errors[name],
            "weights_mib": case.path.stat().st_size / MIB,
            **memory,
            "environment": facts,
        }
        print(json.dumps(row), flush=True)


def _run_of(case: Case, engine: Engine) -> Run:
    return lambda: engine.run(case.inputs)["features"]


def _torch_run(case: Case) -> Run:
    import torch

    inputs = [torch.from_numpy(array) for array in case.inputs.values()]

    def run() -> NDArray[np.float32]:
        with torch.inference_mode():
            return case.module(*inputs).numpy()

    return run


def _error(case: Case, answer: NDArray[np.float32]) -> float:
    error = float(np.abs(answer - case.expected).max() / np.abs(case.expected).max())
    if not error <= TOLERANCE:
        raise SystemExit(f"{case.name}: differs from torch by {error:g}; no timing")
    return error


def _memory_of_child(path: Path, name: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--threads", str(threads), "--child", str(path), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_memory(path: Path, name: str, threads: int) -> dict[str, float | None]:
    """load_ms, and of this process: its peak after loading, by how much the first run rises above
    that, and its peak after three runs."""
    start = time.perf_counter()
    engine = open_engine(path, name, threads)
    load_ms = (time.perf_counter() - start) * 1e3
    load_peak_mib = process_peak_mib()
    rng = np.random.default_rng(0)
    inputs = {
        key: rng.standard_normal(shape, np.float32) for key, shape in engine.input_shapes.items()
    }
    working_mib = peak_working_mib(lambda: engine.run(inputs))
    for _ in range(2):
        engine.run(inputs)
    return {
        "load_ms": load_ms,
        "load_peak_mib": load_peak_mib,
        "peak_working_mib": working_mib,
        "process_peak_mib": process_peak_mib(),
    }


if __name__ == "__main__":
    main()
