"""The fit half: mean and spread of the nominal scans' patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmad_fast.engines import open_graph
from mmad_fast.methods.family import Trained
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitTask
from mmad_fast.methods.patch_color.detector import GRAPH, PatchColorPipeline, PatchColors
from mmad_fast.methods.patch_color.options import PatchColorOptions
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


class PatchColorFit:
    """One fit; see family.Fit."""

    memory_limit_mib = 1.0

    def __init__(self, task: FitTask) -> None:
        self._options: PatchColorOptions = task.options
        self._graph = _write_graph(task.options, task.scratch / f"{GRAPH}.onnx")
        self._engine = open_graph(self._graph)
        side = self._options.rgb_size // self._options.patch_size
        blank = np.zeros((3, side, side), np.float32)
        self._extractor = PatchColorPipeline(self._engine, blank, blank + 1, self._options)
        task.progress("export", 1, 1)

    def extract(self, prepared: PreparedScan) -> PatchColors:
        """The mean colours of a scan."""
        return self._extractor.extract(prepared, StageClock())

    def train(
        self, train: FeatureStore[PatchColors], held_out: FeatureStore[PatchColors]
    ) -> Trained:
        """The detector."""
        means = np.stack([features.means for features in train])
        nominal = means.mean(axis=0)
        spread = np.maximum(means.std(axis=0), np.float32(self._options.spread_floor))
        return Trained(
            pipeline=PatchColorPipeline(self._engine, nominal, spread, self._options),
            weights={},
            graphs={GRAPH: self._graph},
            tensors={"nominal": nominal, "spread": spread},
            facts={"spread_floor": self._options.spread_floor},
        )


def _write_graph(options: PatchColorOptions, path: Path) -> Path:
    """image (1, 3, R, R) -> means (1, 3, H, W)."""
    size, side = options.rgb_size, options.rgb_size // options.patch_size
    patch = [options.patch_size, options.patch_size]
    node = helper.make_node("AveragePool", ["image"], ["means"], kernel_shape=patch, strides=patch)
    graph = helper.make_graph(
        [node],
        GRAPH,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, [1, 3, side, side])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, path)
    return path
