"""The network of M3DM that is trained: unsupervised feature fusion (UFF), in torch.

It fuses one patch at a time: what belongs to a patch is LayerNorm and a two-layer MLP per modality.
The heads serve training alone. Key names are those of the published checkpoints.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmad_fast.backbones.checkpoint import read_checkpoint
from mmad_fast.errors import InvalidInputError, WeightsError
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.export.quantization import quantize_graph
from mmad_fast.methods.m3dm.options import UFF_POINT_GRAPH, UFF_RGB_GRAPH
from mmad_fast.whole_folder import whole_file

POINT_ROWS_AT_ONCE = 256
"""Rows of the graph "uff_point", which runs once per so many foreground patches."""
HIDDEN_RATIO = 4
HEAD_CHANNELS = 256
HEAD_PREFIXES = ("rgb_head.", "xyz_head.")
_FACTS_KEY = "mmad_fast"
"""Of a file's metadata: how the network was trained, as JSON."""


class FusionMlp(nn.Module):
    """Linear to HIDDEN_RATIO times the channels, GELU, Linear back. Keys: fc1, fc2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, HIDDEN_RATIO * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(HIDDEN_RATIO * channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(..., C) from (..., C)."""
        return self.fc2(self.act(self.fc1(features)))


class FeatureFusionBlock(nn.Module):
    """Unsupervised feature fusion: point rows (..., C3) and RGB rows (..., C2) to fused ones of the
    same widths, which concatenated, points first, are the fused patch.

    Keys: xyz_norm, xyz_mlp, rgb_norm, rgb_mlp, and of the training heads rgb_head, xyz_head.

    Source: M3DM section 3.3, figure 3; method facts 5.2. No residual connections. The paper's
    equation 3 writes RGB first; the order here is that of its code.
    """

    def __init__(self, point_channels: int, rgb_channels: int, *, seed: int = 0) -> None:
        """Initial weights are drawn with the seed: Linear weights by Xavier's uniform rule, biases
        0; they touch no global random state."""
        super().__init__()
        self.point_channels = point_channels
        self.rgb_channels = rgb_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.xyz_norm = nn.LayerNorm(point_channels)
            self.xyz_mlp = FusionMlp(point_channels)
            self.rgb_norm = nn.LayerNorm(rgb_channels)
            self.rgb_mlp = FusionMlp(rgb_channels)
            self.rgb_head = nn.Linear(rgb_channels, HEAD_CHANNELS)
            self.xyz_head = nn.Linear(point_channels, HEAD_CHANNELS)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)

    def fuse_point(self, point_rows: Tensor) -> Tensor:
        """Fused point rows (..., C3)."""
        return self.xyz_mlp(self.xyz_norm(point_rows))

    def fuse_rgb(self, tokens: Tensor) -> Tensor:
        """Fused RGB rows (..., C2)."""
        return self.rgb_mlp(self.rgb_norm(tokens))

    def forward(self, point_rows: Tensor, rgb_rows: Tensor) -> Tensor:
        """The fused patches (..., C3 + C2)."""
        return torch.cat([self.fuse_point(point_rows), self.fuse_rgb(rgb_rows)], dim=-1)

    def point_keys(self, point_rows: Tensor) -> Tensor:
        """Unit keys (..., 256) of the contrastive loss."""
        return nn.functional.normalize(self.xyz_head(self.fuse_point(point_rows)), dim=-1)

    def rgb_queries(self, tokens: Tensor) -> Tensor:
        """Unit queries (..., 256) of the contrastive loss."""
        return nn.functional.normalize(self.rgb_head(self.fuse_rgb(tokens)), dim=-1)


class _GraphModule(nn.Module):
    """One modality's half, for export."""

    def __init__(self, norm: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.mlp = mlp

    def forward(self, rows: Tensor) -> Tensor:
        return self.mlp(self.norm(rows))


def uff_graph_modules(network: FeatureFusionBlock) -> dict[str, nn.Module]:
    """What is exported, by graph name: rows (1, R, C) -> fused (1, R, C); weights are shared."""
    return {
        UFF_POINT_GRAPH: _GraphModule(network.xyz_norm, network.xyz_mlp).eval(),
        UFF_RGB_GRAPH: _GraphModule(network.rgb_norm, network.rgb_mlp).eval(),
    }


def export_uff_graphs(
    network: FeatureFusionBlock, folder: Path, *, num_tokens: int, precision: str = "fp32"
) -> dict[str, Path]:
    """The ONNX files of both halves by graph name: input "rows", output "fused".

    Args:
        network: Trained or loaded.
        folder: Where to write uff_point.onnx and uff_rgb.onnx.
        num_tokens: T, rows of the graph "uff_rgb"; "uff_point" has POINT_ROWS_AT_ONCE.
        precision: "fp32", or "int8" for 8-bit products, which approximate.

    Raises:
        InvalidInputError: an unknown precision.
        MissingDependencyError: onnx or onnxscript is not installed.
        MmadFastError: a graph does not give what torch gives.
    """
    if precision not in ("fp32", "int8"):
        raise InvalidInputError(f"precision is {precision!r}; it must be 'fp32' or 'int8'")
    shapes = {
        UFF_POINT_GRAPH: (1, POINT_ROWS_AT_ONCE, network.point_channels),
        UFF_RGB_GRAPH: (1, num_tokens, network.rgb_channels),
    }
    generator = torch.Generator().manual_seed(0)
    graphs = {}
    for name, module in uff_graph_modules(network).items():
        example = {"rows": torch.randn(shapes[name], generator=generator)}
        path = export_graph(module, example, folder / f"{name}.onnx", output_name="fused")
        graphs[name] = quantize_graph(path) if precision == "int8" else path
    return graphs


def check_uff_target(path: Path) -> None:
    """Raises if weights cannot be written at `path`; call it before hours of training.

    Raises:
        InvalidInputError: it has another ending than ".safetensors", is a folder, or lies where
            nothing may be written.
    """
    if path.suffix != ".safetensors":
        raise InvalidInputError(f"{path}: weights are written as .safetensors; choose that ending")
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; give the file that the weights go to")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidInputError(
            f"{path}: nothing can be written in {folder}; choose a folder where you may write"
        )


def save_uff(network: FeatureFusionBlock, path: Path, facts: Mapping[str, Any]) -> Path:
    """The path of the network's weights, written as safetensors under the published key names.

    The file appears whole or not at all.

    Args:
        network: With heads, so that its alignment can be measured again.
        path: Ends in ".safetensors"; an existing file is replaced.
        facts: How it was trained, JSON types: part of the file's metadata.

    Raises:
        InvalidInputError: as `check_uff_target`.
        WeightsError: it cannot be written: a full disk, for one.
    """
    check_uff_target(path)
    tensors = {key: tensor.detach().contiguous() for key, tensor in network.state_dict().items()}
    try:
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata={_FACTS_KEY: json.dumps(facts, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: the UFF weights cannot be written ({error}); choose a folder with room where "
            "you may write"
        ) from error
    return path


def read_training_facts(path: Path) -> dict[str, Any]:
    """How the network in a file was trained, as a training's record; empty where the file does not
    say, as the official ones.

    Args:
        path: A file that `load_uff` takes.
    """
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    try:
        training = json.loads(metadata.get(_FACTS_KEY, "{}"))["training"]
    except (ValueError, LookupError, TypeError):  # metadata of another program
        return {}
    is_record = isinstance(training, dict) and {"pairing", "schedule"} <= training.keys()
    return training if is_record else {}


def load_uff(
    path: Path | str, *, point_channels: int | None = None, rgb_channels: int | None = None
) -> FeatureFusionBlock:
    """The network whose weights a file holds: ours (.safetensors) or the official one (.pth).

    A file without the training heads is taken; the heads then are initial ones, which only the
    alignment accuracy would notice.

    Args:
        path: The file; a .pth is read without running code from it.
        point_channels, rgb_channels: C3 and C2 of the features that it must fuse; None: whatever
            the file's are.

    Raises:
        WeightsError: the file is missing, damaged or of another network, or its channels are not
            those of the features.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"UFF weights: {path} is not a file; give the path of a file that "
            "`mmad-fast train-shared` wrote or of an official uff checkpoint (.pth), or 'train', "
            "or 'none'"
        )
    # The official files keep the command line of their training beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = read_checkpoint(path)
    widths = {}
    for name, modality, wanted in (
        ("xyz_norm.weight", "point", point_channels),
        ("rgb_norm.weight", "RGB", rgb_channels),
    ):
        if name not in state or state[name].ndim != 1 or not len(state[name]):
            raise WeightsError(f"{path} holds no UFF: {name!r} is missing; {_ADVICE}")
        widths[modality] = len(state[name])
        if wanted is not None and widths[modality] != wanted:
            raise WeightsError(
                f"{path} fuses {modality} features of {widths[modality]} channels, and this "
                f"detector's have {wanted}; train one for these backbones and layers with "
                "`mmad-fast train-shared`, or with uff='train'"
            )
    network = FeatureFusionBlock(widths["point"], widths["RGB"])
    _check_state(state, network, path)
    network.load_state_dict(state, strict=False)
    return network.eval()


_ADVICE = "give a file that `mmad-fast train-shared` wrote or an official uff checkpoint"


def _check_state(state: Mapping[str, Tensor], network: FeatureFusionBlock, path: Path) -> None:
    expected = network.state_dict()
    faults = [f"key {key!r} is unknown" for key in state if key not in expected]
    for key, tensor in expected.items():
        shape = tuple(tensor.shape)
        if key not in state:
            if not key.startswith(HEAD_PREFIXES):
                faults.append(f"key {key!r} is missing")
        elif tuple(state[key].shape) != shape:
            faults.append(f"key {key!r} has shape {tuple(state[key].shape)}, expected {shape}")
        elif not math.isfinite(float(state[key].float().abs().max())):
            faults.append(f"key {key!r} has values that are not finite")
    if faults:
        raise WeightsError(f"{path} does not fit the UFF: {'; '.join(faults[:8])}; {_ADVICE}")
