"""One feature fusion (UFF) for several categories, as published: from a data set to its weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmad_fast.data.dataset import Dataset
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.backbone_graphs import backbone_parameters, build_backbone_part
from mmad_fast.methods.fitting import FitRequest, Progress, silent, training_scans
from mmad_fast.methods.m3dm.contrastive_loss import AlignmentAccuracy, alignment_accuracy
from mmad_fast.methods.m3dm.fit import extract_patches
from mmad_fast.methods.m3dm.fit_options import M3dmFitOptions
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock, check_uff_target, save_uff
from mmad_fast.methods.m3dm.patch_store import PatchStore
from mmad_fast.methods.m3dm.uff_training import UffRecord, train_uff
from mmad_fast.methods.torch_threads import torch_threads


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


def train_for_categories(
    dataset: Dataset,
    categories: Sequence[str],
    request: FitRequest,
    output_folder: Path,
    progress: Progress | None,
) -> FitRequest:
    """The request with the path of a feature fusion that was trained on all the categories, in
    `output_folder`; the request itself where it needs none: the method has no fusion bank, or the
    request names one, or none.

    Raises:
        As `train_shared_uff`.
    """
    options = M3dmFitOptions.of(request)
    if "fusion" not in options.banks or options.uff != "train":
        return request
    path = output_folder / "uff.safetensors"
    train_shared_uff(dataset, categories, request, path, progress=progress)
    return replace(request, options={**request.options, "uff": str(path)})


def train_shared_uff(
    dataset: Dataset,
    categories: Sequence[str],
    request: FitRequest,
    output: Path,
    *,
    updates: int | None = None,
    progress: Progress | None = None,
) -> SharedUff:
    """The feature fusion trained on the nominal training scans of all the categories, written.

    The features are extracted as a fit does it, and kept in a temporary folder meanwhile: up to 17
    MB per scan.

    Args:
        dataset: With training scans of each category.
        categories: At least one.
        request: A method with a fusion bank, its backbones, and options as in M3dmFitOptions.
        output: A .safetensors file; its metadata says how it was trained.
        updates: Replaces the schedule's number of updates.
        progress: Called with (stage, done, total).

    Raises:
        InvalidInputError: the method has no fusion bank, an option is out of range, or nothing can
            be written at `output`.
        DataError: a category has no training scans.
        EmptyScanError: no training scan has enough foreground.
        WeightsError: backbone weights are missing or do not fit, or `output` cannot be written.
        MmadFastError: the training diverged, or the disk is full.
    """
    options = _options(dataset, request)
    check_uff_target(output)
    recipe = replace(options.uff_training, updates=updates)
    tell = progress or silent
    train = [
        scan
        for category in categories
        for scan in training_scans(dataset, category, shots=request.shots, seed=request.seed)
    ]
    with (
        torch_threads(options.num_threads),
        extracted_patches(train, _validation_scans(dataset, categories), options, tell) as patches,
    ):
        network, record = train_uff(
            patches.train,
            recipe,
            patch_grid=patches.patch_grid,
            progress=partial(tell, "fusion training"),
        )
        has_validation = len(patches.validation) > 0
        judged = patches.validation if has_validation else patches.train
        initial = FeatureFusionBlock(network.point_channels, network.rgb_channels, seed=recipe.seed)
        before, after = (
            alignment_accuracy(one, judged, patch_grid=patches.patch_grid)
            for one in (initial, network)
        )
    uff = SharedUff(output, record, before, after, "validation" if has_validation else "train")
    facts = {**uff.to_dict(), "categories": list(categories), "weights": patches.weights}
    save_uff(network, output, facts)
    return uff


@dataclass(frozen=True)
class ExtractedPatches:
    """The patches of nominal scans, on disk.

    Attributes:
        train: Of the training scans.
        validation: Of the validation scans; may be none.
        patch_grid: Patches per side.
        weights: Where the backbones' weights came from, JSON types.
    """

    train: PatchStore
    validation: PatchStore
    patch_grid: int
    weights: dict[str, Any]


@contextmanager
def extracted_patches(
    train: Sequence[ScanFile],
    validation: Sequence[ScanFile],
    options: M3dmFitOptions,
    progress: Progress,
) -> Iterator[ExtractedPatches]:
    """The patches of the scans, extracted as a fit does it; they are on disk inside the block.

    Raises:
        InvalidInputError: the point groups are the patches.
        EmptyScanError: no training scan has enough foreground.
        WeightsError: backbone weights are missing or do not fit.
        MmadFastError: the disk is full.
    """
    parameters = replace(options.parameters(backbone_parameters(options)), uses_uff=False)
    if parameters.patch_grid is None:
        raise InvalidInputError(
            "point_patches is 'groups'; a UFF is trained on 56x56 or 28x28 patches"
        )
    with (
        tempfile.TemporaryDirectory(prefix="mmad-fast-uff-") as folder,
        PatchStore(Path(folder) / "train") as train_store,
        PatchStore(Path(folder) / "validation") as validation_store,
    ):
        backbones = build_backbone_part(train, options, Path(folder), progress=progress)
        stores = {"train": (train, train_store), "validation": (validation, validation_store)}
        extract_patches(stores, backbones, parameters, options, progress)
        yield ExtractedPatches(
            train_store, validation_store, parameters.patch_grid, backbones.weights
        )


def _options(dataset: Dataset, request: FitRequest) -> M3dmFitOptions:
    """The options of the request on this data set.

    Raises:
        InvalidInputError: the method has no fusion bank.
    """
    if dataset.layout == "eyecandies" and request.recipe is None:
        request = replace(request, recipe="none")  # as a fit does it
    options = M3dmFitOptions.of(request)
    if "fusion" not in options.banks:
        raise InvalidInputError(
            f"{request.method} has no fusion bank, and so no UFF to train; choose m3dm or "
            "m3dm-fusion"
        )
    return options


def _validation_scans(dataset: Dataset, categories: Sequence[str]) -> list[ScanFile]:
    return [
        scan
        for category in categories
        if "validation" in dataset.splits(category)
        for scan in dataset.scans(category, "validation")
    ]
