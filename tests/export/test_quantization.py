"""int8 graphs: smaller, close to the float32 graph, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmad_fast.engines import open_graph
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.export.quantization import quantize_graph


class Perceptron(nn.Module):
    """Two Linear layers on tokens, as a transformer block has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers(tokens)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    inputs = {"tokens": torch.zeros(1, 50, 64)}
    return export_graph(Perceptron().eval(), inputs, tmp_path / "graph.onnx", output_name="tokens_")


def test_products_are_int8_and_close(graph: Path) -> None:
    tokens = np.random.default_rng(0).standard_normal((1, 50, 64)).astype(np.float32)
    size, expected = graph.stat().st_size, open_graph(graph).run({"tokens": tokens})["tokens_"]
    assert quantize_graph(graph) == graph
    assert graph.stat().st_size < 0.4 * size
    result = open_graph(graph).run({"tokens": tokens})["tokens_"]
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.03  # an int8 product is neither exact nor far off
    assert [file.name for file in graph.parent.iterdir()] == ["graph.onnx"]


def test_the_graph_says_nothing_of_the_machine(graph: Path) -> None:
    quantize_graph(graph)
    assert str(graph.parent).encode() not in graph.read_bytes()
