"""One feature fusion (UFF) for several categories, as published: from a data set to its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmad_fast.data.dataset import Dataset
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.family import get_method
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import (
    FitRequest,
    FitTask,
    Progress,
    resolve_options,
    silent,
)
from mmad_fast.methods.fit_run import (
    extract_features,
    request_on,
    training_scans,
    validation_scans,
)
from mmad_fast.methods.m3dm.bank_queries import PatchFeatures
from mmad_fast.methods.m3dm.contrastive_loss import AlignmentAccuracy, alignment_accuracy
from mmad_fast.methods.m3dm.fit import M3dmFit
from mmad_fast.methods.m3dm.fit_fusion import uff_recipe
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock, check_uff_target, save_uff
from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.methods.m3dm.uff_training import UffRecord, train_uff
from mmad_fast.methods.torch_threads import torch_threads
from mmad_fast.scratch_folder import temporary_folder


@dataclass(frozen=True)
class SharedUff:
    """A feature fusion that was trained on several categories.

    Attributes:
        path: Its weights.
        record: How it was trained.
        before: Alignment of the initial network.
        after: Alignment of the trained one.
        measured_on: The split of both: "validation", or "train" where there is no other.
    """

    path: Path
    record: UffRecord
    before: AlignmentAccuracy
    after: AlignmentAccuracy
    measured_on: str

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON types; no path, since it names a machine."""
        return {
            "training": self.record.to_dict(),
            "alignment_before": asdict(self.before),
            "alignment_after": asdict(self.after),
            "measured_on": self.measured_on,
        }

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """(title, columns, rows): how well a token finds its own patches, before and after."""
        title = (
            f"Alignment on {self.after.num_scans} {self.measured_on} scans after "
            f"{self.record.plan.updates} updates on {self.record.num_scans} scans"
        )
        rows = []
        for name, accuracy in (("before", self.before), ("after", self.after)):
            shares = (accuracy.same_token, accuracy.within_one, accuracy.chance)
            rows.append([name, *(f"{100 * share:.2f} %" for share in shares)])
        return title, ["network", "own token", "within one token", "by chance"], rows


def train_shared_uff(
    dataset: Dataset,
    categories: Sequence[str],
    request: FitRequest,
    output: Path,
    *,
    progress: Progress = silent,
) -> SharedUff:
    """The feature fusion trained on the nominal training scans of all the categories, written.

    The features are extracted as a fit does it, and kept in a temporary folder meanwhile: up to 17
    MB per scan.

    Args:
        dataset: With training scans of each category.
        categories: At least one.
        request: A method with a fusion bank, its backbones, and options as in M3dmOptions.
        output: A .safetensors file; its metadata says how it was trained.
        progress: Called with (stage, done, total).

    Raises:
        InvalidInputError: the method has no fusion bank, an option is out of range, or nothing can
            be written at `output`.
        DataError: a category has no training scans.
        EmptyScanError: no training scan has enough foreground.
        WeightsError: backbone weights are missing or do not fit, or `output` cannot be written.
        MmadFastError: the training diverged, or the disk is full.
    """
    request = request_on(dataset, request)
    options = _fusion_options(request)
    check_uff_target(output)
    recipe = uff_recipe(options, request.seed)
    train = [
        scan
        for category in categories
        for scan in training_scans(dataset, category, shots=request.shots, seed=request.seed)
    ]
    validation = [scan for name in categories for scan in validation_scans(dataset, name)]
    with torch_threads(), temporary_folder("uff") as folder:
        task = FitTask.of(request, train, folder, progress)
        # The fusion that is to be trained is none of a fit of these features.
        fit = M3dmFit(replace(task, options=replace(options, uses_uff=False)))
        with (
            FeatureStore[PatchFeatures](folder / "train") as train_store,
            FeatureStore[PatchFeatures](folder / "validation") as validation_store,
        ):
            extract_features(train, validation, (train_store, validation_store), fit, task)
            grid = options.patch_grid or 0
            network, record = train_uff(
                train_store, recipe, patch_grid=grid, progress=partial(progress, "fusion training")
            )
            has_validation = len(validation_store) > 0
            judged = validation_store if has_validation else train_store
            initial = FeatureFusionBlock(
                network.point_channels, network.rgb_channels, seed=recipe.seed
            )
            before, after = (
                alignment_accuracy(one, judged, patch_grid=grid) for one in (initial, network)
            )
    uff = SharedUff(output, record, before, after, "validation" if has_validation else "train")
    weights = {**fit.weights, "seed": request.seed}
    save_uff(network, output, {**uff.to_dict(), "categories": list(categories), "weights": weights})
    return uff


def _fusion_options(request: FitRequest) -> M3dmOptions:
    """The options of a request for a method whose fusion is to be trained.

    Raises:
        InvalidInputError: the method has no fusion bank, or the request names a fusion.
    """
    options = resolve_options(request)
    assert isinstance(options, M3dmOptions)
    if "fusion" not in options.banks:
        with_fusion = [
            v.name for v in get_method(request.method)[0].variants if "fusion" in v.values["banks"]
        ]
        raise InvalidInputError(
            f"{request.method} has no fusion bank, and so no UFF to train; choose "
            f"{' or '.join(with_fusion)}"
        )
    if not options.trains_uff:
        raise InvalidInputError(
            f"uff is {options.uff!r}, so that there is none to train; leave it out"
        )
    return options
