"""Times point_embedding against engines and torch in the same run, each with the rewritten embedder
and with the published order of work: one JSON line per row. Needs the extra "fit" for the peers.

python bench/ops/bench_point_embedding.py [--threads 2] [--runs 7] [--groups 1024]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from op_rows import parse_options, print_rows
from ops.embedding_cases import embedder_weights, surface_groups

from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding

if TYPE_CHECKING:
    from torch import nn

CASES = [(128, "cloud"), (128, "checkpoint"), (32, "cloud")]  # K, batch_norm
MACS_PER_POINT = 3 * 128 + 128 * 256 + 128 * 512 + 512 * 384
"""Of the rewritten embedder, without the moments (128 * 129 / 2, batch_norm="cloud") and without
what the kernel leaves out."""


def networks(batch_norm: str) -> tuple[EmbedderWeights, dict[str, nn.Module]]:
    """The weights, and the torch embedder in its rewritten and in its published order of work."""
    import torch
    from torch import nn

    from mmad_fast.backbones import build_point_backbone

    encoder = build_point_backbone(layers=(0,), weights="random", batch_norm=batch_norm).encoder

    class Published(nn.Module):
        """As methods/dense_features.py, with train-mode BatchNorm spelt out: no engine has it."""

        def norm(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
            if batch_norm != "cloud":
                return layer(x)
            x = x - x.mean((0, 2), keepdim=True)
            scale = torch.rsqrt(x.square().mean((0, 2), keepdim=True) + layer.eps)
            return x * scale * layer.weight[:, None] + layer.bias[:, None]

        def forward(self, groups: torch.Tensor) -> torch.Tensor:
            first, second = encoder.first_conv, encoder.second_conv
            hidden = torch.relu(self.norm(first[1], first[0](groups[0].transpose(1, 2))))
            local = first[3](hidden)
            summary = local.amax(dim=2, keepdim=True).expand_as(local)
            wide = second[0](torch.cat([summary, local], dim=1))
            return second[3](torch.relu(self.norm(second[1], wide))).amax(dim=2)[None]

    published = Published().eval()
    published.encoder = encoder
    return encoder.to_embedder_weights(), {"rewritten": encoder, "published": published}


def peers(
    modules: dict[str, nn.Module], groups: NDArray[np.float32], num_threads: int, folder: Path
) -> dict[str, Callable[[], NDArray[np.float32]]]:
    """Tokens (G, 384) by torch and by the engines that are installed."""
    import onnxruntime
    import torch

    from mmad_fast.export.onnx_graph import export_graph

    torch.set_num_threads(num_threads)
    feed = {"groups": groups[None]}
    cloud = torch.from_numpy(groups)[None]
    functions: dict[str, Callable[[], NDArray[np.float32]]] = {}
    for name, module in modules.items():
        path = export_graph(
            module, {"groups": cloud}, folder / f"{name}.onnx", output_name="tokens"
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        functions[f"onnxruntime, {name}"] = lambda s=session: s.run(None, feed)[0][0]
        if find_spec("openvino"):
            import openvino

            settings = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"}
            compiled = openvino.Core().compile_model(str(path), "CPU", settings)
            functions[f"openvino, {name}"] = lambda c=compiled: c(feed)[0][0]
        functions[f"torch, {name} (slow)"] = lambda m=module: torch_tokens(m, cloud)
    return functions


def torch_tokens(module: nn.Module, groups: object) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        return module(groups)[0].numpy()


def bench_case(group_size: int, batch_norm: str, options: argparse.Namespace) -> None:
    groups = surface_groups(options.groups, group_size)
    with tempfile.TemporaryDirectory() as folder:
        if find_spec("torch"):
            weights, modules = networks(batch_norm)
            functions = peers(modules, groups, options.threads, Path(folder))
        else:
            weights = embedder_weights(uses_cloud_statistics=batch_norm == "cloud")
            functions = {}
        truth = point_embedding(groups, weights, backend="reference")
        print_rows(
            "point_embedding",
            {"cpu": lambda: point_embedding(groups, weights), **functions},
            lambda got: float(np.abs(got - truth).max() / np.abs(truth).max()),
            shapes={"G": options.groups, "K": group_size, "batch_norm": batch_norm},
            options=options,
            max_error=1e-4,
            flop=2.0 * options.groups * group_size * MACS_PER_POINT,
        )


def main() -> None:
    options = parse_options(__doc__, runs=7, groups=1024)
    for group_size, batch_norm in CASES:
        bench_case(group_size, batch_norm, options)


if __name__ == "__main__":
    main()
