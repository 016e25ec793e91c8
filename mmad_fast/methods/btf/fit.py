"""The fit half of BTF: the memory bank of nominal scans' patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.cnn_pyramid.extractor import CnnPyramidExtractor
from mmad_fast.methods.branches.cnn_pyramid.graph import build_cnn_pyramid
from mmad_fast.methods.branches.fpfh.extractor import FpfhExtractor
from mmad_fast.methods.btf.detector import BtfPipeline, BtfScores, PatchExtractor
from mmad_fast.methods.btf.options import BANK, PATCH_GRID, BtfOptions
from mmad_fast.methods.btf.patches import Patches
from mmad_fast.methods.family import Trained
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitTask
from mmad_fast.methods.memory_bank.bank_rows import (
    ScanRows,
    as_stored,
    build_bank,
    coreset_size,
    in_order_of_occurrence,
    without_own,
)
from mmad_fast.methods.memory_bank.options import BANK_PREFIX
from mmad_fast.methods.memory_bank.search import prepare_bank
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

NO_SCALE = (0.0, 1.0)
"""Mean and standard deviation: rows are kept as they are."""


class BtfFit:
    """One fit of BTF; see family.BankFit. Stages of its training: "projection" and "coreset"."""

    memory_limit_mib = 64.0
    """Histograms of all scans; RGB features take 5 MB a scan and go to disk."""

    def __init__(self, task: FitTask) -> None:
        """Builds the network, where the patches have RGB features."""
        options: BtfOptions = task.options
        self._task = task
        self._rgb: BranchPart[CnnPyramidExtractor] | None = None
        if options.reads_rgb:
            task.progress("export", 0, 1)
            self._rgb = build_cnn_pyramid(task)
            task.progress("export", 1, 1)
        self._extractor = PatchExtractor(
            self._rgb.extractor if self._rgb else None,
            FpfhExtractor(options) if options.reads_points else None,
            options,
        )
        self._fitted: tuple[NDArray, NDArray[np.int64]] | None = None

    def extract(self, prepared: PreparedScan) -> Patches:
        """The patches of a scan."""
        return self._extractor.extract(prepared, StageClock())

    def train(self, train: FeatureStore[Patches], held_out: FeatureStore[Patches]) -> Trained:
        """The detector with its memory bank.

        Raises:
            MmadFastError: float16 cannot hold the features, or the disk is full.
        """
        task, options = self._task, self._task.options
        num_patches = len(train) * PATCH_GRID**2
        bank = build_bank(
            _StoredRows(train),
            coreset_size(num_patches, options.coreset_fraction),
            NO_SCALE,
            num_rows=num_patches,
            seed=task.request.seed,
            scratch=task.scratch,
            progress=task.progress,
        )
        rows = as_stored(bank.rows, BANK, options.bank_dtype)
        self._fitted = (rows, bank.scans)
        rgb = self._rgb
        return Trained(
            pipeline=self._pipeline(rows),
            weights={} if rgb is None else {"rgb": rgb.source},
            graphs={} if rgb is None else rgb.graphs,
            tensors={BANK_PREFIX + BANK: rows},
            facts={},
        )

    def score_without_own(self, index: int, features: Patches) -> BtfScores | None:
        """The anomaly map and image score of a training scan, by the bank without the rows that
        only it has; see family.BankFit."""
        assert self._fitted is not None  # `train` comes first
        others = without_own(*self._fitted, index)
        if others is None:
            return None
        return self._pipeline(others).score_features(features, StageClock())

    def _pipeline(self, rows: NDArray) -> BtfPipeline:
        return BtfPipeline(self._extractor, prepare_bank(rows), self._task.options)


@dataclass(frozen=True)
class _StoredRows:
    """The patches of the scans in a store, one after the other."""

    store: FeatureStore[Patches]

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, scan: int) -> ScanRows:
        features = self.store[scan]
        return in_order_of_occurrence(features.rows, features.owner)
