"""The feature fusion of a fit: its networks trained or loaded, exported, and run on the patches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmad_fast.backbones.table import get_rgb_spec
from mmad_fast.engines import open_graph
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitTask, Progress
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures
from mmad_fast.methods.m3dm.detector import PatchFusion
from mmad_fast.methods.m3dm.networks import (
    FeatureFusionBlock,
    export_uff_graphs,
    load_uff,
    read_training_facts,
)
from mmad_fast.methods.m3dm.options import UFF_POINT_GRAPH, UFF_RGB_GRAPH, M3dmOptions
from mmad_fast.methods.m3dm.uff_training import UffRecipe, train_uff
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS as POINT_TOKEN_CHANNELS
from mmad_fast.whole_folder import fingerprint


@dataclass(frozen=True)
class FusionNetwork:
    """Trained or loaded networks, in torch.

    Attributes:
        block: The networks.
        source: Where the weights came from, as the manifest has it.
        training: What the training did; empty for a file that does not say.
    """

    block: FeatureFusionBlock
    source: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True)
class FusionPart:
    """The feature fusion of a detector, ready to run and to be written.

    Attributes:
        networks: Both graphs, loaded.
        graphs: ONNX file by graph name.
        weights, training: `source` by name, and `training`, of the FusionNetwork.
    """

    networks: PatchFusion
    graphs: dict[str, Path]
    weights: dict[str, Any]
    training: dict[str, Any]


def uff_recipe(options: M3dmOptions, seed: int) -> UffRecipe:
    """The training's part of the options."""
    return UffRecipe(
        pairing=options.uff_pairing,
        schedule=options.uff_schedule,
        updates=options.uff_updates,
        seed=seed,
    )


def load_fusion(options: M3dmOptions) -> FusionNetwork | None:
    """The networks in the file that the options name; None where they name none.

    Raises:
        WeightsError: the file is missing, damaged, or of features of other widths.
    """
    if not options.fuses or options.trains_uff:
        return None
    path = Path(options.uff).expanduser()
    block = load_uff(
        path,
        point_channels=POINT_TOKEN_CHANNELS * len(options.point_layers),
        rgb_channels=get_rgb_spec(options.rgb_backbone).dim,
    )
    sha256 = fingerprint(path)["sha256"]
    source = {"name": "uff", "kind": "file", "detail": path.name, "sha256": sha256}
    return FusionNetwork(block, source, read_training_facts(path))


def train_fusion(store: FeatureStore[PatchFeatures], task: FitTask) -> FusionNetwork:
    """The networks, trained on the scans of the store.

    Raises:
        EmptyScanError: no scan has a foreground patch.
        MmadFastError: the training diverged.
    """
    options: M3dmOptions = task.options
    assert options.patch_grid is not None  # a fusion bank has one
    block, record = train_uff(
        store,
        uff_recipe(options, task.request.seed),
        patch_grid=options.patch_grid,
        progress=partial(task.progress, "fusion training"),
    )
    detail = f"on {record.num_scans} training scans"
    source = {"name": "uff", "kind": "trained", "detail": detail, "sha256": None}
    return FusionNetwork(block, source, record.to_dict())


def export_fusion(network: FusionNetwork, task: FitTask) -> FusionPart:
    """The networks as graphs in the task's scratch folder, loaded."""
    options: M3dmOptions = task.options
    graphs = export_uff_graphs(
        network.block,
        task.scratch,
        num_tokens=options.token_grid**2,
        precision=options.precision,
    )
    point, rgb = (open_graph(graphs[name]) for name in (UFF_POINT_GRAPH, UFF_RGB_GRAPH))
    return FusionPart(PatchFusion(point, rgb), graphs, {"uff": network.source}, network.training)


def fuse_patches(
    stores: Iterable[FeatureStore[PatchFeatures]], networks: PatchFusion, progress: Progress
) -> None:
    """Adds their fused parts to the patches of all scans of the stores.

    Raises:
        MmadFastError: the disk is full.
    """
    todo = [(store, scan) for store in stores for scan in range(len(store))]
    for done, (store, scan) in enumerate(todo, start=1):
        fused = networks.fuse(store[scan])
        assert fused.fused_points is not None
        assert fused.fused_tokens is not None
        store.add(scan, fused_points=fused.fused_points, fused_tokens=fused.fused_tokens)
        progress("fusion", done, len(todo))
