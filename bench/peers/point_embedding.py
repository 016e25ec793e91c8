"""point_embedding against torch, ONNX Runtime and OpenVINO, in turns in one run.

The engines get two graphs: the published order of work, and ours, where the 512 -> 512 layer is
split into a half per group and a half per point.

python bench/peers/point_embedding.py [--only cloud-128]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from peer_rows import Agreement, Case, Contender, DisagreementError, compare, parse_options

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
from ops.cases import depth_frame
from torch import Tensor, nn

from mmad_fast.backbones import build_point_backbone
from mmad_fast.backbones.group_embedder import GroupEmbedder
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.methods.dense_features import group_tokens
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import point_embedding

NUM_GROUPS = 1024
PARTS = {"cloud-128": ("cloud", 128), "calibrated-128": ("calibrated", 128)}
PARTS |= {"cloud-32": ("cloud", 32)}
MAX_RELATIVE_DIFFERENCE = 2e-4
"""Of the largest token: float32 through four layers and two normalisations, in another order."""

Embed = Callable[[], NDArray[np.float32]]


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


def torch_eager(module: nn.Module, groups: NDArray[np.float32]) -> Embed:
    tensor = torch.from_numpy(groups)[None]

    @torch.inference_mode()
    def embed() -> NDArray[np.float32]:
        return module(tensor)[0].numpy()

    return embed


def graph_of(module: nn.Module, groups: NDArray[np.float32], folder: str) -> Path:
    path = Path(folder) / f"{type(module).__name__}.onnx"
    if not path.exists():
        inputs = {"groups": torch.from_numpy(groups)[None]}
        export_graph(module, inputs, path, output_name="tokens")
    return path


def onnx_runtime(path: Path, groups: NDArray[np.float32], num_threads: int) -> Embed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"groups": groups[None]}
    return lambda: session.run(None, feed)[0][0]


def openvino(path: Path, groups: NDArray[np.float32], num_threads: int) -> Embed:
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
    encoder: GroupEmbedder, groups: NDArray[np.float32], folder: str, num_threads: int
) -> list[Contender]:
    published = PublishedOrder(encoder)
    embedder = encoder.to_embedder_weights()
    listed = [
        Contender("mmad-fast", lambda: lambda: point_embedding(groups, embedder), is_ours=True),
        Contender("torch eager, as published", lambda: torch_eager(published, groups)),
        Contender("torch eager, split", lambda: torch_eager(encoder, groups)),
    ]
    for module, order in ((published, "as published"), (encoder, "split")):
        for name, engine in (("ONNX Runtime", onnx_runtime), ("OpenVINO", openvino)):
            listed.append(
                Contender(
                    f"{name}, {order}",
                    lambda module=module, engine=engine: engine(
                        graph_of(module, groups, folder), groups, num_threads
                    ),
                )
            )
    return listed


def run(batch_norm: str, num_neighbors: int, options: argparse.Namespace) -> None:
    points = depth_frame().points
    centers = farthest_point_sampling(points, NUM_GROUPS)
    groups = knn_grouping(points, centers, num_neighbors).groups
    backbone = build_point_backbone(layers=(0,), weights="random", batch_norm=batch_norm, seed=0)
    if batch_norm == "calibrated":
        backbone.calibrate([torch.from_numpy(groups)])
    encoder = backbone.encoder
    ours = point_embedding(groups, encoder.to_embedder_weights())

    def agreement(got: NDArray[np.float32]) -> Agreement:
        difference = float(np.abs(got - ours).max() / np.abs(ours).max())
        if not difference <= MAX_RELATIVE_DIFFERENCE:
            raise DisagreementError(f"tokens differ by {difference:.2g} of the largest")
        return Agreement("same tokens", f"within {difference:.0e} of the largest")

    shapes = {"G": NUM_GROUPS, "K": num_neighbors, "batch_norm": batch_norm}
    case = Case("point_embedding", "synthetic part", shapes, agreement)
    with TemporaryDirectory() as folder:
        compare(case, contenders(encoder, groups, folder, options.threads), options)


def main() -> None:
    options = parse_options(__doc__, parts=tuple(PARTS), runs=7, budget_s=5.0)
    torch.set_num_threads(options.threads)
    for name, (batch_norm, num_neighbors) in PARTS.items():
        if options.only in (None, name):
            run(batch_norm, num_neighbors, options)


if __name__ == "__main__":
    main()
