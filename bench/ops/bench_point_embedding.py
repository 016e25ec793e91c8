"""point_embedding against torch, ONNX Runtime and OpenVINO.

The engines get two graphs: the published order of work, and ours, where the 512 -> 512 layer is
split into a half per group and a half per point.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpu.device import product_precision
from ops import case as bench
from ops.inputs import Floats, depth_frame, surface_groups
from torch import Tensor, nn

from mmad_fast.backbones import build_point_backbone
from mmad_fast.backbones.group_embedder import GroupEmbedder
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.methods.branches.point_groups.reference import group_tokens
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import point_embedding

if TYPE_CHECKING:
    from gpu.device import Device

NUM_GROUPS = 1024
SETTINGS = {"cloud-128": ("cloud", 128), "calibrated-128": ("calibrated", 128)}
SETTINGS |= {"cloud-32": ("cloud", 32)}
PIECES = tuple(SETTINGS)
RUNS, BUDGET_S = 7, 5.0
MAX_RELATIVE_DIFFERENCE = 2e-4
"""Of the largest token: float32 through four layers and two normalisations, in another order."""
EMBEDDING_ERROR = 1e-4
"""Relative to the largest token."""
CHANNELS = (128, 256, 512, 384)
"""Of the mini-PointNet: first hidden, summary, second hidden, token."""

Embed = Callable[[], Floats]


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    bench.with_threads(options.threads)
    with TemporaryDirectory() as folder:
        yield case_of(*SETTINGS[options.only], folder, options.threads)


class PublishedOrder(nn.Module):
    """The embedder's official layers, one after the other over all points."""

    def __init__(self, encoder: GroupEmbedder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, groups: Tensor) -> Tensor:
        """(1, G, 384) of groups (1, G, K, 3)."""
        uses_cloud_statistics = self.encoder.uses_cloud_statistics
        return group_tokens(self.encoder, groups[0], uses_cloud_statistics=uses_cloud_statistics)[
            None
        ]


def torch_eager(module: nn.Module, groups: Floats) -> Embed:
    tensor = torch.from_numpy(groups)[None]

    @torch.inference_mode()
    def embed() -> Floats:
        return module(tensor)[0].numpy()

    return embed


def graph_of(module: nn.Module, groups: Floats, folder: str) -> Path:
    path = Path(folder) / f"{type(module).__name__}.onnx"
    if not path.exists():
        inputs = {"groups": torch.from_numpy(groups)[None]}
        export_graph(module, inputs, path, output_name="tokens")
    return path


def onnx_runtime(path: Path, groups: Floats, num_threads: int) -> Embed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"groups": groups[None]}
    return lambda: session.run(None, feed)[0][0]


def openvino(path: Path, groups: Floats, num_threads: int) -> Embed:
    import openvino

    # Where the CPU has bfloat16, OpenVINO would take it.
    settings = {
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    inputs = {"groups": groups[None]}
    return lambda: model(inputs)[0][0]


def contenders(
    encoder: GroupEmbedder, groups: Floats, folder: str, num_threads: int
) -> list[bench.Contender]:
    published = PublishedOrder(encoder)
    embedder = encoder.to_embedder_weights()

    def with_engine(module: nn.Module, engine: Callable[..., Embed]) -> Embed:
        return engine(graph_of(module, groups, folder), groups, num_threads)

    makes: dict[str, bench.Make] = {
        "mmad-fast": lambda: lambda: point_embedding(groups, embedder),
        "torch eager, as published": lambda: torch_eager(published, groups),
        "torch eager, split": lambda: torch_eager(encoder, groups),
    }
    for module, order in ((published, "as published"), (encoder, "split")):
        for name, engine in (("ONNX Runtime", onnx_runtime), ("OpenVINO", openvino)):
            makes[f"{name}, {order}"] = partial(with_engine, module, engine)
    return bench.contenders("point_embedding", makes)


def case_of(batch_norm: Any, num_neighbors: int, folder: str, num_threads: int) -> bench.Case:
    points = depth_frame().points
    centers = farthest_point_sampling(points, NUM_GROUPS)
    groups = knn_grouping(points, centers, num_neighbors).groups
    backbone = build_point_backbone(layers=(0,), weights="random", batch_norm=batch_norm, seed=0)
    if batch_norm == "calibrated":
        backbone.calibrate([torch.from_numpy(groups)])
    encoder = backbone.encoder
    ours = point_embedding(groups, encoder.to_embedder_weights())

    return bench.Case(
        "point_embedding",
        {"G": NUM_GROUPS, "K": num_neighbors, "batch_norm": batch_norm},
        contenders(encoder, groups, folder, num_threads),
        data="synthetic part",
        error_of=lambda got: float(np.abs(got - ours).max() / np.abs(ours).max()),
        max_error=MAX_RELATIVE_DIFFERENCE,
        same="same tokens",
    )


def work(num_groups: int, num_neighbors: int) -> bench.Work:
    """The composed layers (README.md of the op) by matrix products that store their results: each
    activation is written once and read once."""
    hidden, summary, wide, token = CHANNELS
    points = num_groups * num_neighbors
    per_point = 3 * hidden + hidden * summary + hidden * wide + wide * token + hidden * hidden
    return bench.Work(
        matrix_flop=2.0 * (points * per_point + num_groups * summary * wide),
        plain_flop=points * 4.0 * (hidden + wide),
        device_bytes=bench.FLOAT_BYTES
        * (points * 3 + 2.0 * points * sum(CHANNELS) + num_groups * token),
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    """The group embedder with the statistics of the cloud."""
    yield bench.one(gpu_case, sizes.num_groups, sizes.group_size, device)


def gpu_case(num_groups: int, group_size: int, device: Device) -> bench.Case:
    """Ours in a few products, beside the same layers one by one, each stored for all points."""
    groups = surface_groups(num_groups, group_size)
    backbone = build_point_backbone(layers=(0,), weights="random", batch_norm="cloud", seed=0)
    embedder = backbone.encoder.to_embedder_weights()
    truth = point_embedding(groups, embedder, backend="reference")
    array, backend = device.array(groups), bench.public_backend(device, "torch")
    tensor, layers = device.tensor(groups)[None], backbone.encoder.eval().to(device.name)

    def call() -> Any:
        with product_precision("float32"):
            return point_embedding(array, embedder, backend=backend)

    @torch.inference_mode()
    def one_by_one() -> Any:
        return layers(tensor)[0]

    return bench.Case(
        "point_embedding",
        {"G": num_groups, "K": group_size, "batch_norm": "cloud"},
        [bench.ours("torch", call), bench.baseline("layer by layer", one_by_one)],
        work=work(num_groups, group_size),
        error_of=lambda tokens: float(
            np.abs(bench.host(tokens) - truth).max() / np.abs(truth).max()
        ),
        max_error=EMBEDDING_ERROR,
    )
