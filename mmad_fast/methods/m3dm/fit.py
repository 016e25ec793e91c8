"""The fit half of M3DM: nominal scans in, detector artifact out."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmad_fast.artifact import Golden, check_target, write_artifact
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.errors import EmptyScanError, InvalidInputError
from mmad_fast.methods.backbone_graphs import (
    BackbonePart,
    backbone_parameters,
    build_backbone_part,
    load_scan,
    prepare_scan,
)
from mmad_fast.methods.fitting import (
    FitRequest,
    Progress,
    count_features,
    scan_label,
    silent,
    threshold_record,
)
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures, bank_queries
from mmad_fast.methods.m3dm.decision_layer import fit_one_class_svm
from mmad_fast.methods.m3dm.detector import M3dmPipeline, M3dmScores, PatchExtractor
from mmad_fast.methods.m3dm.fit_fusion import (
    FusionPart,
    export_fusion,
    fuse_patches,
    load_fusion,
    train_fusion,
)
from mmad_fast.methods.m3dm.fit_options import M3dmFitOptions
from mmad_fast.methods.m3dm.memory_banks import (
    ScanRows,
    as_stored,
    bank_scales,
    build_bank,
    coreset_sizes,
    finish_point_bank,
    in_order_of_occurrence,
)
from mmad_fast.methods.m3dm.parameters import BANK_PREFIX, M3dmParameters
from mmad_fast.methods.m3dm.patch_store import PatchStore
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank
from mmad_fast.preprocess.recipes import RECIPES
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock

logger = logging.getLogger("mmad_fast")

Scans = Sequence[ScanFile | Scan]


def fit_m3dm(
    train: Scans,
    validation: Scans,
    output: Path | str,
    options: M3dmFitOptions | FitRequest | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """The path of the fitted detector's artifact.

    The features of each scan are extracted once, by the graphs that the detector will run, and kept
    in a temporary folder: up to 40 MB per scan. Nothing is written to `output` before everything is
    computed: an interrupted fit leaves it as it was. Only a killed process leaves the temporary
    folder behind.

    Args:
        train: Nominal scans, at least one with foreground.
        validation: Nominal scans for the threshold; without any, the training scans serve, which
            makes the threshold too tight.
        output: The artifact's folder; an artifact there is replaced.
        options: What to fit; None means the defaults, a FitRequest those it leaves open.
        progress: Called with (stage, done, total): stages are "export", "features", "fusion
            training", "fusion", "bank scales", per bank "point bank, projection" and "point bank,
            coreset", "training scores", "decision" and "threshold".

    Raises:
        InvalidInputError: no training scan, or an option is out of range.
        EmptyScanError: no training scan has enough foreground.
        ArtifactError: `output` holds something else.
        WeightsError: weights are missing or do not fit.
        MmadFastError: the fusion's training diverged, all features are the same, or the disk is
            full.
    """
    options = _as_options(options)
    progress = silent if progress is None else progress
    if not train:
        raise InvalidInputError(
            "there is no training scan; M3DM needs at least one nominal scan (20 or more are "
            "better)"
        )
    check_target(output)
    with (
        torch_threads(options.num_threads),
        tempfile.TemporaryDirectory(prefix="mmad-fast-fit-") as folder,
        PatchStore(Path(folder) / "train") as train_store,
        PatchStore(Path(folder) / "validation") as validation_store,
    ):
        scratch = Path(folder)
        draft = options.parameters(backbone_parameters(options))
        network = load_fusion(draft, options)  # a missing file is found before the hours of work
        backbones = build_backbone_part(
            train, options, scratch, modalities=_modalities(draft), progress=progress
        )
        stores = {"train": (train, train_store), "validation": (validation, validation_store)}
        extract_patches(stores, backbones, draft, options, progress)
        fusion = None
        if draft.fuses:
            if network is None:
                network = train_fusion(train_store, draft, options, progress)
            fusion = export_fusion(network, draft, options, scratch)
            fuse_patches((train_store, validation_store), fusion.networks, progress)
        banks, parameters = build_banks(train_store, draft, options, scratch, progress)
        fitted = FittedDetector(backbones, fusion, banks, parameters)
        if parameters.decision == "svm":
            decided = fit_decision(fitted.pipeline, train_store, options, progress)
            fitted = replace(fitted, parameters=decided)
        held_out = "validation" if len(validation_store) else "train"
        if held_out == "train":
            logger.warning(
                "no validation scan: the threshold comes from the training scans, whose patches "
                "are in the banks, so it may be too tight; set some nominal scans aside"
            )
        scans, held_out_store = stores[held_out]
        scores = _scores(held_out_store, fitted.pipeline, progress)
        golden_scan = load_scan(scans[held_out_store.positions[0]], options.unit)
        facts = _facts(options, draft, train_store, validation_store, fusion)
        return _write(fitted, Path(output), options, facts, scores, golden_scan)


@dataclass(frozen=True)
class FittedDetector:
    """A detector, complete but for its threshold.

    Attributes:
        backbones: Their graphs and weights.
        fusion: The feature fusion; None without.
        banks: By name, of the rows (M, C) as they are stored.
        parameters: The constants.
    """

    backbones: BackbonePart
    fusion: FusionPart | None
    banks: dict[str, PreparedBank]
    parameters: M3dmParameters

    @property
    def pipeline(self) -> M3dmPipeline:
        """The run half."""
        networks = self.fusion.networks if self.fusion else None
        backbones, parameters = self.backbones, self.parameters
        extractor = PatchExtractor(backbones.rgb, backbones.point, parameters, networks)
        return M3dmPipeline(extractor, self.banks, parameters)


def _as_options(options: M3dmFitOptions | FitRequest | None) -> M3dmFitOptions:
    if options is None:
        return M3dmFitOptions()
    return M3dmFitOptions.of(options) if isinstance(options, FitRequest) else options


def _modalities(parameters: M3dmParameters) -> tuple[str, ...]:
    read = {"rgb": parameters.reads_rgb, "point": parameters.reads_points}
    return tuple(name for name, is_read in read.items() if is_read)


def extract_patches(
    stores: Mapping[str, tuple[Scans, PatchStore]],
    backbones: BackbonePart,
    parameters: M3dmParameters,
    options: M3dmFitOptions,
    progress: Progress,
) -> None:
    """Fills the stores "train" and "validation" with the patches of their scans, not yet fused.

    Raises:
        EmptyScanError: no training scan has enough foreground.
        MmadFastError: the disk is full.
    """
    extractor = PatchExtractor(backbones.rgb, backbones.point, parameters)

    def extract(scan: ScanFile | Scan) -> PatchFeatures:
        return extractor.extract(prepare_scan(scan, options, parameters), StageClock())

    total = sum(len(scans) for scans, _ in stores.values())
    before = 0
    for scans, store in stores.values():
        store.extend(
            ((scan_label(scan), partial(extract, scan)) for scan in scans),
            progress=partial(count_features, progress, before, total),
        )
        before += len(scans)
    scans, train_store = stores["train"]
    if not len(train_store):
        raise EmptyScanError(
            f"none of the {len(scans)} training scans has enough foreground for a group of "
            f"{options.group_size} points; check the unit of the files and the background plane "
            "(the warnings above name each scan)"
        )


@dataclass(frozen=True)
class StoredRows:
    """The raw patches of one bank, read from a store scan by scan."""

    store: PatchStore
    parameters: M3dmParameters
    bank: str

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, scan: int) -> ScanRows:
        fused = ("fused_points", "fused_tokens")
        names: dict[str, tuple[str, ...]] = {
            "rgb": ("tokens",),
            "point": ("patches", "point_rows"),
            "fusion": ("patches", *(fused if self.parameters.fuses else ("point_rows", "tokens"))),
        }
        features = self.store.read(scan, names=names[self.bank])
        return in_order_of_occurrence(*bank_queries(features, self.parameters, self.bank))

    @property
    def num_patches(self) -> int:
        """Of all scans; equal ones count."""
        if self.bank == "rgb":
            return len(self) * self.parameters.token_grid**2
        return len(self) * ((self.parameters.patch_grid or 0) ** 2 or self.parameters.num_groups)


def build_banks(
    store: PatchStore,
    parameters: M3dmParameters,
    options: M3dmFitOptions,
    scratch: Path,
    progress: Progress,
) -> tuple[dict[str, PreparedBank], M3dmParameters]:
    """The memory banks by name, of the rows (M, C) as they are stored, and the parameters with
    their scales.

    Raises:
        MmadFastError: all features are the same, or float16 cannot hold them, or the disk is full.
    """
    rows = {bank: StoredRows(store, parameters, bank) for bank in parameters.banks}
    progress("bank scales", 0, 1)
    scales = bank_scales(rows, bank_norm=parameters.bank_norm)
    progress("bank scales", 1, 1)
    num_rows = {bank: stored.num_patches for bank, stored in rows.items()}
    sizes = coreset_sizes(num_rows, coreset=options.coreset)
    banks: dict[str, PreparedBank] = {}
    for bank, stored in rows.items():
        built = build_bank(
            stored,
            sizes[bank],
            scales[bank],
            num_rows=num_rows[bank],
            seed=options.seed,
            scratch=scratch,
            progress=partial(_of_bank, progress, bank),
        )
        if bank == "point" and len(rows) > 1:
            built = finish_point_bank(built)
        banks[bank] = PreparedBank(as_stored(built, bank, parameters.bank_dtype))
    return banks, replace(parameters, bank_scales=scales)


def fit_decision(
    pipeline: M3dmPipeline, store: PatchStore, options: M3dmFitOptions, progress: Progress
) -> M3dmParameters:
    """The parameters with the decision layer, fitted on what the banks say of the training scans.

    Source: M3DM, algorithm 1. As in the public code the banks hold the scans' own patches.
    """
    parameters, lambdas = pipeline.parameters, options.lambdas
    num_pixels = parameters.grid_size**2
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
    recipe = options.decision
    progress("decision", 0, 2)
    of_scores = fit_one_class_svm(scores, lambdas, recipe, what="scores")
    progress("decision", 1, 2)
    of_maps = fit_one_class_svm(pixels, lambdas, recipe, what="maps")
    progress("decision", 2, 2)
    return replace(
        parameters,
        score_weights=of_scores.weights,
        score_offset=of_scores.offset,
        map_weights=of_maps.weights,
        map_offset=of_maps.offset,
    )


def _scores(store: PatchStore, pipeline: M3dmPipeline, progress: Progress) -> list[M3dmScores]:
    scores = []
    for done, features in enumerate(store, start=1):
        scores.append(pipeline.score_features(features, StageClock()))
        progress("threshold", done, len(store))
    return scores


def _facts(
    options: M3dmFitOptions,
    parameters: M3dmParameters,
    train_store: PatchStore,
    validation_store: PatchStore,
    fusion: FusionPart | None,
) -> dict[str, Any]:
    """What the fit did that the detector need not know. Options stand under their own names, those
    without a part in this detector left out."""
    facts: dict[str, Any] = {
        "num_train_scans": len(train_store),
        "num_validation_scans": len(validation_store),
        "coreset": options.coreset,
    }
    if len(parameters.banks) > 1:
        facts |= {f"{bank}_lambda": factor for bank, factor in options.lambdas.items()}
    if parameters.decision == "svm":
        recipe = asdict(options.decision)
        facts |= {f"dlf_{name}": recipe.pop(name) for name in ("scores", "schedule")}
        facts["decision"] = recipe
    if fusion is not None and fusion.training:
        training = dict(fusion.training)
        facts |= {f"uff_{name}": training.pop(name) for name in ("pairing", "schedule")}
        facts["uff"] = training
    return facts


def _write(
    fitted: FittedDetector,
    output: Path,
    options: M3dmFitOptions,
    facts: dict[str, Any],
    scores: list[M3dmScores],
    golden_scan: Scan,
) -> Path:
    """The path of the artifact. `scores` are those of the held-out scans; the first is that of the
    golden scan."""
    backbones, fusion = fitted.backbones, fitted.fusion
    return write_artifact(
        output,
        method=options.method,
        family="m3dm",
        preprocess=RECIPES[options.recipe].to_dict(),
        parameters={**fitted.parameters.to_dict(), "training": facts},
        threshold=threshold_record(
            [score.image_score for score in scores], options.threshold_quantile
        ),
        weights={**backbones.weights, **(fusion.weights if fusion else {})},
        graphs={**backbones.graphs, **(fusion.graphs if fusion else {})},
        tensors={
            **backbones.tensors,
            **{BANK_PREFIX + name: bank.rows for name, bank in fitted.banks.items()},
        },
        golden=Golden(
            golden_scan.rgb, golden_scan.xyz, scores[0].anomaly_map, scores[0].image_score
        ),
    )


def _of_bank(progress: Progress, bank: str, stage: str, done: int, total: int) -> None:
    progress(f"{bank} bank, {stage}", done, total)
