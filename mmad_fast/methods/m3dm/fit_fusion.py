"""The feature fusion of a fit: its networks trained or loaded, exported, and run on the patches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmad_fast.engines import open_graph
from mmad_fast.methods.fitting import Progress
from mmad_fast.methods.m3dm.detector import UFF_POINT_GRAPH, UFF_RGB_GRAPH, PatchFusion
from mmad_fast.methods.m3dm.fit_options import M3dmFitOptions
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock, export_uff_graphs, load_uff
from mmad_fast.methods.m3dm.parameters import M3dmParameters
from mmad_fast.methods.m3dm.patch_store import PatchStore
from mmad_fast.methods.m3dm.uff_training import train_uff


@dataclass(frozen=True)
class FusionPart:
    """The feature fusion of a detector, ready to run and to be written.

    Attributes:
        networks: Both graphs, loaded.
        graphs: ONNX file by graph name.
        weights: Where the weights came from, as the manifest has it.
        training: What the training did; empty for weights from a file.
    """

    networks: PatchFusion
    graphs: dict[str, Path]
    weights: dict[str, Any]
    training: dict[str, Any]


def build_fusion_part(
    store: PatchStore,
    parameters: M3dmParameters,
    options: M3dmFitOptions,
    scratch: Path,
    *,
    progress: Progress,
) -> FusionPart:
    """The networks as graphs in `scratch`, loaded: trained on the scans of the store, or from the
    options' file.

    Raises:
        WeightsError: the file is missing, damaged, or of other features than the store's.
        EmptyScanError: no scan has a foreground patch to train on.
        MmadFastError: the training diverged.
    """
    network, weights, training = _network(store, parameters, options, progress)
    graphs = export_uff_graphs(
        network,
        scratch,
        num_tokens=parameters.token_grid**2,
        precision=parameters.precision,
    )
    networks = PatchFusion(
        *(
            open_graph(graphs[name], num_threads=options.num_threads)
            for name in (UFF_POINT_GRAPH, UFF_RGB_GRAPH)
        )
    )
    return FusionPart(networks, graphs, {"uff": weights}, training)


def _network(
    store: PatchStore, parameters: M3dmParameters, options: M3dmFitOptions, progress: Progress
) -> tuple[FeatureFusionBlock, dict[str, Any], dict[str, Any]]:
    """(network, where its weights came from, what its training did)."""
    if options.uff == "train":
        assert parameters.patch_grid is not None
        network, record = train_uff(
            store,
            options.uff_training,
            patch_grid=parameters.patch_grid,
            progress=partial(progress, "fusion training"),
        )
        detail = f"on {record.num_scans} training scans"
        source = {"name": "uff", "kind": "trained", "detail": detail, "sha256": None}
        return network, source, record.to_dict()
    path = Path(options.uff).expanduser()
    features = store[0]
    assert features.point_rows is not None
    assert features.tokens is not None
    network = load_uff(
        path, point_channels=features.point_rows.shape[1], rgb_channels=features.tokens.shape[1]
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return network, {"name": "uff", "kind": "file", "detail": path.name, "sha256": sha256}, {}


def fuse_patches(stores: Iterable[PatchStore], networks: PatchFusion, progress: Progress) -> None:
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
