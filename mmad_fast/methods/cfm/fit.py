"""The fit half of CFM: its mapping networks, trained on the features of nominal scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray

from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.point_groups.extractor import PointExtractor
from mmad_fast.methods.branches.point_groups.graph import build_point_groups
from mmad_fast.methods.branches.vit_tokens.graph import build_vit_tokens
from mmad_fast.methods.cfm.detector import (
    CfmPipeline,
    FeatureExtractor,
    geometry_tokens,
    mapping_networks,
)
from mmad_fast.methods.cfm.features import CfmFeatures
from mmad_fast.methods.cfm.networks import to_tensors
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.cfm.token_features import TokenFeatureExtractor
from mmad_fast.methods.cfm.training import TrainingRecipe, train_mappings
from mmad_fast.methods.family import Trained
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitTask
from mmad_fast.ops.pixel_mapping import MappingNetwork
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


class CfmFit:
    """One fit of CFM; see family.Fit."""

    memory_limit_mib = 2048.0
    """About 200 scans of a full-size CFM: each step of the training reads some of them."""

    def __init__(self, task: FitTask) -> None:
        """Builds the backbones of the task."""
        self._options: CfmOptions = task.options
        self._recipe = training_recipe(self._options, task.request.seed)
        self._task = task
        task.progress("export", 0, 2)
        self._rgb = build_vit_tokens(task)
        task.progress("export", 1, 2)
        self._point: BranchPart[PointExtractor] | None = None
        self._extractor: FeatureExtractor | TokenFeatureExtractor
        rgb, options = self._rgb.extractor, self._options
        if options.geometry == "point":
            self._point = build_point_groups(task)
            self._extractor = FeatureExtractor(rgb, self._point.extractor, options)
        else:
            self._extractor = TokenFeatureExtractor(rgb, geometry_tokens(rgb, options), options)
        task.progress("export", 2, 2)

    def extract(self, prepared: PreparedScan) -> CfmFeatures:
        """The features of a scan, as the detector computes them."""
        return self._extractor.extract(prepared, StageClock())

    def train(
        self, train: FeatureStore[CfmFeatures], held_out: FeatureStore[CfmFeatures]
    ) -> Trained:
        """The detector with trained mapping networks.

        Raises:
            MmadFastError: the training diverged.
        """
        options = self._options
        networks, record = train_mappings(
            train,
            held_out,
            tuple(options.networks.values()),
            hidden=options.hidden,
            recipe=self._recipe,
            progress=partial(self._task.progress, "training"),
        )
        tensors = _tensors(networks)
        parts: dict[str, BranchPart[Any]] = {"rgb": self._rgb}
        if self._point is not None:
            parts["point"] = self._point
        return Trained(
            pipeline=CfmPipeline(self._extractor, mapping_networks(tensors, options), options),
            weights={key: part.source for key, part in parts.items()},
            graphs={name: file for part in parts.values() for name, file in part.graphs.items()},
            tensors={
                **tensors,
                **{n: t for part in parts.values() for n, t in part.tensors.items()},
            },
            facts={
                **asdict(self._recipe),
                "epochs_run": record.epochs,
                "best_epoch": record.best_epoch,
                "validation_loss": record.validation_losses[record.best_epoch - 1],
            },
        )


def training_recipe(options: CfmOptions, seed: int) -> TrainingRecipe:
    """The training's part of the options."""
    names = {field.name for field in fields(TrainingRecipe)} - {"seed"}
    return TrainingRecipe(**{name: getattr(options, name) for name in names}, seed=seed)


def _tensors(networks: Mapping[str, torch.nn.Module]) -> dict[str, NDArray]:
    tensors: dict[str, NDArray] = {}
    for name, network in networks.items():
        tensors.update(to_tensors(network, f"{name}."))
        # Found once, here: the run half, with or without Python, has no QR decomposition to do.
        tensors.update(MappingNetwork.from_tensors(tensors, f"{name}.").rotated_tensors(f"{name}."))
    return tensors
