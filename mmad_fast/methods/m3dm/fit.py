"""The fit half of M3DM: memory banks, feature fusion and decision layer of nominal scans."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.point_groups.extractor import PointExtractor
from mmad_fast.methods.branches.point_groups.graph import build_point_groups
from mmad_fast.methods.branches.vit_tokens.extractor import RgbExtractor
from mmad_fast.methods.branches.vit_tokens.graph import build_vit_tokens
from mmad_fast.methods.family import Trained
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitTask
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures, bank_queries
from mmad_fast.methods.m3dm.decision_layer import DecisionRecipe, fit_one_class_svm
from mmad_fast.methods.m3dm.detector import M3dmPipeline, M3dmScores, PatchExtractor
from mmad_fast.methods.m3dm.fit_fusion import (
    FusionPart,
    export_fusion,
    fuse_patches,
    load_fusion,
    train_fusion,
)
from mmad_fast.methods.m3dm.memory_banks import bank_scales, coreset_sizes, finish_point_bank
from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.methods.memory_bank.bank_rows import (
    ScanRows,
    as_stored,
    build_bank,
    in_order_of_occurrence,
    without_own,
)
from mmad_fast.methods.memory_bank.options import BANK_PREFIX
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


class M3dmFit:
    """One fit of M3DM; see family.BankFit.

    Stages of its training: "fusion training", "fusion", "bank scales", per bank "point bank,
    projection" and "point bank, coreset", "training scores" and "decision".
    """

    memory_limit_mib = 0.0
    """Scans are read one after the other, and there may be hundreds of 40 MB."""

    def __init__(self, task: FitTask) -> None:
        """Builds the backbones that the banks read, and reads the feature fusion's file."""
        options: M3dmOptions = task.options
        self._task = task
        self._options = options
        self._decision = decision_recipe(options)
        self._network = load_fusion(options)  # a missing file is found before the hours of work
        self._rgb: BranchPart[RgbExtractor] | None = None
        self._point: BranchPart[PointExtractor] | None = None
        num_parts = options.reads_rgb + options.reads_points
        task.progress("export", 0, num_parts)
        if options.reads_rgb:
            self._rgb = build_vit_tokens(task)
            task.progress("export", 1, num_parts)
        if options.reads_points:
            self._point = build_point_groups(task)
            task.progress("export", num_parts, num_parts)
        self._extractor = self._patch_extractor(None)
        self._fitted: tuple[M3dmPipeline, Banks] | None = None

    @property
    def weights(self) -> dict[str, Any]:
        """Where the backbones' weights came from, JSON types."""
        parts = {"rgb": self._rgb, "point": self._point}
        return {name: part.source for name, part in parts.items() if part is not None}

    def extract(self, prepared: PreparedScan) -> PatchFeatures:
        """The patches of a scan, not yet fused."""
        return self._extractor.extract(prepared, StageClock())

    def train(
        self, train: FeatureStore[PatchFeatures], held_out: FeatureStore[PatchFeatures]
    ) -> Trained:
        """The detector with memory banks and, where it has them, fusion and decision layer.

        Raises:
            EmptyScanError: the feature fusion finds no foreground patch.
            MmadFastError: the fusion's training diverged, all features are the same, or the disk is
                full.
        """
        task, options, fusion = self._task, self._options, None
        if options.fuses:
            network = self._network or train_fusion(train, task)
            fusion = export_fusion(network, task)
            stores = (train,) if held_out is train else (train, held_out)
            fuse_patches(stores, fusion.networks, task.progress)
        banks, options = build_banks(train, task)
        extractor = self._patch_extractor(fusion)
        pipeline = M3dmPipeline(extractor, banks.prepared, options)
        if options.decision == "svm":
            options = fit_decision(pipeline, train, self._decision, task)
            pipeline = M3dmPipeline(extractor, banks.prepared, options)
        self._fitted = (pipeline, banks)
        return Trained(
            pipeline=pipeline,
            weights={**self.weights, **(fusion.weights if fusion else {})},
            graphs={
                **(self._rgb.graphs if self._rgb else {}),
                **(self._point.graphs if self._point else {}),
                **(fusion.graphs if fusion else {}),
            },
            tensors={
                **(self._point.tensors if self._point else {}),
                **{BANK_PREFIX + name: bank.rows for name, bank in banks.prepared.items()},
            },
            facts=self._facts(fusion),
        )

    def score_without_own(self, index: int, features: PatchFeatures) -> M3dmScores | None:
        """The anomaly map and image score of a training scan, by banks without the rows that only
        it has; see family.BankFit.

        Nearest rows and neighbours are those among the other rows. Scales, feature fusion and
        decision layer stay: what the scan did to them is not undone.
        """
        assert self._fitted is not None  # `train` comes first
        pipeline, banks = self._fitted
        others: dict[str, PreparedBank] = {}
        for name, bank in banks.prepared.items():
            rows = without_own(bank.rows, banks.scans[name], index)
            if rows is None:
                return None
            others[name] = PreparedBank(rows)
        without = M3dmPipeline(pipeline.extractor, others, pipeline.options)
        return without.score_features(features, StageClock())

    def _patch_extractor(self, fusion: FusionPart | None) -> PatchExtractor:
        return PatchExtractor(
            self._rgb.extractor if self._rgb else None,
            self._point.extractor if self._point else None,
            self._options,
            fusion.networks if fusion else None,
        )

    def _facts(self, fusion: FusionPart | None) -> dict[str, Any]:
        """What the fit did that the detector need not know. Options stand under their own names,
        those without a part in this detector left out."""
        options = self._options
        facts: dict[str, Any] = {"coreset": options.coreset}
        if len(options.banks) > 1:
            facts |= {f"{bank}_lambda": factor for bank, factor in options.lambdas.items()}
        if options.decision == "svm":
            recipe = asdict(self._decision)
            facts |= {f"dlf_{name}": recipe.pop(name) for name in ("scores", "schedule")}
            facts["decision"] = recipe
        if fusion is not None and fusion.training:
            training = dict(fusion.training)
            facts |= {f"uff_{name}": training.pop(name) for name in ("pairing", "schedule")}
            facts["uff"] = training
        return facts


def decision_recipe(options: M3dmOptions) -> DecisionRecipe:
    """The decision layer's part of the options."""
    return DecisionRecipe(scores=options.dlf_scores, schedule=options.dlf_schedule)


@dataclass(frozen=True)
class StoredRows:
    """The raw patches of one bank, read from a store scan by scan."""

    store: FeatureStore[PatchFeatures]
    options: M3dmOptions
    bank: str

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, scan: int) -> ScanRows:
        fused = ("fused_points", "fused_tokens")
        names: dict[str, tuple[str, ...]] = {
            "rgb": ("tokens",),
            "point": ("patches", "point_rows"),
            "fusion": ("patches", *(fused if self.options.fuses else ("point_rows", "tokens"))),
        }
        features = self.store.read(scan, names=names[self.bank])
        return in_order_of_occurrence(*bank_queries(features, self.options, self.bank))

    @property
    def num_patches(self) -> int:
        """Of all scans; equal ones count."""
        if self.bank == "rgb":
            return len(self) * self.options.token_grid**2
        return len(self) * ((self.options.patch_grid or 0) ** 2 or self.options.num_groups)


class Banks(NamedTuple):
    """The memory banks by name.

    Attributes:
        prepared: Of the rows (M, C) as they are stored.
        scans: (M,) int64 whose rows they are, see bank_rows.BankRows.
    """

    prepared: dict[str, PreparedBank]
    scans: dict[str, NDArray[np.int64]]


def build_banks(store: FeatureStore[PatchFeatures], task: FitTask) -> tuple[Banks, M3dmOptions]:
    """The memory banks, and the task's options with their scales.

    Raises:
        MmadFastError: all features are the same, or float16 cannot hold them, or the disk is full.
    """
    options: M3dmOptions = task.options
    rows = {bank: StoredRows(store, options, bank) for bank in options.banks}
    task.progress("bank scales", 0, 1)
    scales = bank_scales(rows, bank_norm=options.bank_norm)
    task.progress("bank scales", 1, 1)
    num_rows = {bank: stored.num_patches for bank, stored in rows.items()}
    sizes = coreset_sizes(num_rows, coreset=options.coreset)
    banks = Banks({}, {})
    for bank, stored in rows.items():

        def tell(stage: str, done: int, total: int, bank: str = bank) -> None:
            task.progress(f"{bank} bank, {stage}", done, total)

        built = build_bank(
            stored,
            sizes[bank],
            scales[bank],
            num_rows=num_rows[bank],
            seed=task.request.seed,
            scratch=task.scratch,
            progress=tell,
        )
        if bank == "point" and len(rows) > 1:
            built = finish_point_bank(built)
        banks.prepared[bank] = PreparedBank(as_stored(built.rows, bank, options.bank_dtype))
        banks.scans[bank] = built.scans
    return banks, replace(options, bank_scales=scales)


def fit_decision(
    pipeline: M3dmPipeline,
    store: FeatureStore[PatchFeatures],
    recipe: DecisionRecipe,
    task: FitTask,
) -> M3dmOptions:
    """The pipeline's options with the decision layer, fitted on what its banks say of the training
    scans.

    Source: M3DM, algorithm 1. As in the public code the banks hold the scans' own patches.
    """
    options, progress = pipeline.options, task.progress
    lambdas, num_pixels = options.lambdas, options.grid_size**2
    scores = np.empty((len(store), len(lambdas)))
    pixels = np.empty((len(store) * num_pixels, len(lambdas)))
    for scan, features in enumerate(store):
        by_bank = pipeline.bank_scores(features, StageClock())
        for column, (bank, factor) in enumerate(lambdas.items()):
            scores[scan, column] = factor * by_bank[bank].score
            pixels[scan * num_pixels : (scan + 1) * num_pixels, column] = (
                np.float32(factor) * by_bank[bank].anomaly_map.ravel()
            )
        progress("training scores", scan + 1, len(store))
    progress("decision", 0, 2)
    of_scores = fit_one_class_svm(scores, lambdas, recipe, what="scores")
    progress("decision", 1, 2)
    of_maps = fit_one_class_svm(pixels, lambdas, recipe, what="maps")
    progress("decision", 2, 2)
    return replace(
        options,
        score_weights=of_scores.weights,
        score_offset=of_scores.offset,
        map_weights=of_maps.weights,
        map_offset=of_maps.offset,
    )
