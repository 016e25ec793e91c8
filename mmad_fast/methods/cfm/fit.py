"""The fit half of CFM: nominal scans in, detector artifact out."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from mmad_fast.artifact import Golden, check_target, write_artifact
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.errors import EmptyScanError, InvalidInputError
from mmad_fast.methods.backbone_graphs import load_scan
from mmad_fast.methods.cfm.detector import CfmScores
from mmad_fast.methods.cfm.feature_cache import FeatureCache
from mmad_fast.methods.cfm.fit_options import CfmFitOptions
from mmad_fast.methods.cfm.frozen_part import (
    FrozenPart,
    assemble_pipeline,
    build_frozen_part,
    extract_features,
)
from mmad_fast.methods.cfm.networks import to_tensors
from mmad_fast.methods.cfm.training import TrainingRecord, train_mappings
from mmad_fast.methods.fitting import (
    FitRequest,
    Progress,
    count_features,
    scan_label,
    silent,
    threshold_record,
)
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.preprocess.recipes import RECIPES
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock

logger = logging.getLogger("mmad_fast")


def fit_cfm(
    train: Sequence[ScanFile | Scan],
    validation: Sequence[ScanFile | Scan],
    output: Path | str,
    options: CfmFitOptions | FitRequest | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """The path of the fitted detector's artifact.

    The features of each scan are extracted once, by the graphs that the detector will run. Nothing
    is written to `output` before everything is computed: an interrupted fit leaves no trace.

    Args:
        train: Nominal scans, at least one with foreground.
        validation: Nominal scans for early stopping and the threshold; without any, the training
            scans serve, which makes the threshold too tight.
        output: The artifact's folder; an artifact there is replaced.
        options: What to fit; None means the defaults, a FitRequest those it leaves open.
        progress: Called with (stage, done, total); the stages are "export", "features", "training"
            and "threshold".

    Raises:
        InvalidInputError: no training scan, or an option is out of range.
        EmptyScanError: no training scan has enough foreground.
        ArtifactError: `output` holds something else.
        WeightsError: backbone weights are missing or do not fit.
        MmadFastError: the training diverged.
    """
    options = _as_options(options)
    progress = silent if progress is None else progress
    if not train:
        raise InvalidInputError(
            "there is no training scan; CFM needs at least one nominal scan (20 or more are better)"
        )
    check_target(output)
    with (
        tempfile.TemporaryDirectory(prefix="mmad-fast-fit-") as folder,
        torch_threads(options.num_threads),
    ):
        scratch = Path(folder)
        frozen = build_frozen_part(train, options, scratch, progress=progress)
        train_cache, validation_cache = cache_features(
            train, validation, frozen, options, scratch, progress=progress
        )
        held_out, held_out_cache = validation, validation_cache
        if not len(validation_cache):
            logger.warning(
                "no validation scan: early stop and threshold use the training scans, so the "
                "threshold may be too tight; set some nominal scans aside"
            )
            held_out, held_out_cache = train, train_cache
        networks, record = train_mappings(
            train_cache,
            held_out_cache,
            tuple(frozen.parameters.networks.values()),
            hidden=options.hidden,
            recipe=options.training,
            progress=partial(progress, "training"),
        )
        tensors = _tensors(networks)
        scores = _scores(held_out_cache, frozen, tensors, progress)
        golden_scan = load_scan(held_out[held_out_cache.positions[0]], options.unit)
        return write_artifact(
            Path(output),
            method=options.method,
            family="cfm",
            preprocess=RECIPES[options.recipe].to_dict(),
            parameters={
                **frozen.parameters.to_dict(),
                "training": _training_facts(record, options, train_cache, validation_cache),
            },
            threshold=threshold_record(
                [score.image_score for score in scores], options.threshold_quantile
            ),
            weights=frozen.backbones.weights,
            graphs=frozen.backbones.graphs,
            tensors={**tensors, **frozen.backbones.tensors},
            golden=Golden(
                golden_scan.rgb, golden_scan.xyz, scores[0].anomaly_map, scores[0].image_score
            ),
        )


def _as_options(options: CfmFitOptions | FitRequest | None) -> CfmFitOptions:
    if options is None:
        return CfmFitOptions()
    return CfmFitOptions.of(options) if isinstance(options, FitRequest) else options


def cache_features(
    train: Sequence[ScanFile | Scan],
    validation: Sequence[ScanFile | Scan],
    frozen: FrozenPart,
    options: CfmFitOptions,
    scratch: Path,
    *,
    progress: Progress,
) -> tuple[FeatureCache, FeatureCache]:
    """The features of the training and of the validation scans.

    Raises:
        EmptyScanError: no training scan has enough foreground.
    """
    total = len(train) + len(validation)
    caches = []
    for name, scans in (("train", train), ("validation", validation)):
        folder = scratch / name
        folder.mkdir(exist_ok=True)
        cache = FeatureCache(folder)
        before = len(train) if name == "validation" else 0
        cache.extend(
            (
                (scan_label(scan), partial(extract_features, scan, frozen, options))
                for scan in scans
            ),
            progress=partial(count_features, progress, before, total),
        )
        caches.append(cache)
    if not len(caches[0]):
        raise EmptyScanError(
            f"none of the {len(train)} training scans has enough foreground for a group of "
            f"{options.group_size} points; check the unit of the files and the background plane "
            "(the warnings above name each scan)"
        )
    return caches[0], caches[1]


def _scores(
    cache: FeatureCache, frozen: FrozenPart, tensors: dict[str, NDArray], progress: Progress
) -> list[CfmScores]:
    pipeline = assemble_pipeline(frozen, tensors)
    scores = []
    for done, features in enumerate(cache, start=1):
        scores.append(pipeline.score_features(features, StageClock()))
        progress("threshold", done, len(cache))
    return scores


def _training_facts(
    record: TrainingRecord,
    options: CfmFitOptions,
    train_cache: FeatureCache,
    validation_cache: FeatureCache,
) -> dict[str, Any]:
    return {
        **asdict(options.training),
        "num_train_scans": len(train_cache),
        "num_validation_scans": len(validation_cache),
        "epochs_run": record.epochs,
        "best_epoch": record.best_epoch,
        "validation_loss": record.validation_losses[record.best_epoch - 1],
    }


def _tensors(networks: Mapping[str, torch.nn.Module]) -> dict[str, NDArray]:
    tensors: dict[str, NDArray] = {}
    for name, network in networks.items():
        tensors.update(to_tensors(network, f"{name}."))
    return tensors
