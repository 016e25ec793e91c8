"""The front door of fitting: from a data set to an artifact. Needs torch once a fit begins."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mmad_fast.artifact import check_target
from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.data.selection import pick_category
from mmad_fast.detector import Detector, load
from mmad_fast.errors import DataError, InvalidInputError, MissingDependencyError
from mmad_fast.methods.variants import FAMILY_FITS, FAMILY_OPTIONS, get_variant
from mmad_fast.ops.validation import check_integer
from mmad_fast.preprocess.recipes import get_recipe
from mmad_fast.scan import Scan, Unit

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""

MAX_SEED = 2**32 - 1
MAX_GROUPS = 4096
"""Point groups per scan: the memory of Point-MAE's attention grows with their square."""
_FIT_PACKAGES = ("torch", "sklearn", "onnx", "onnxscript")
_INTEGERS = ("rgb_layers", "epochs", "num_groups", "group_size", "pixel_stride", "shots")


@dataclass(frozen=True)
class FitRequest:
    """What to fit. None means the method's own choice. Checked when it is made.

    Attributes:
        method: A name in methods/variants.py.
        rgb_backbone: A name in mmad_fast.backbones.
        rgb_weights: Checkpoint path, "auto" (download) or "random" (seeded).
        point_weights: Likewise for Point-MAE.
        rgb_layers: Transformer blocks of the RGB backbone that are kept.
        point_layers: 0-based Point-MAE blocks whose outputs are concatenated.
        threshold_quantile: Quantile of the validation scores that becomes the threshold.
        epochs: Passes over the training scans. CFM.
        seed: Seed of everything random.
        unit: Unit of the XYZ files, "m" or "mm".
        recipe: Preprocessing: a name in preprocess/recipes.py. None is "none" for raw Eyecandies.
        num_groups: Point groups per scan: 1024, or 784 as in M3DM's small setting.
        group_size: Points per group: 128 as in the public code, 32 as in the CFM paper.
        batch_norm: Statistics of Point-MAE's BatchNorm: "cloud", "calibrated" or "checkpoint".
        aggregation: "product", "sum", "max", "psi_2d" or "psi_3d". CFM.
        mapping: "crossmodal" or "intramodal". CFM.
        pixel_stride: 1, 2 or 4: the discrepancy is computed at every pixel, or at one per block.
            CFM.
        precision: "float32" or "int8": of the backbones' matrix products.
        speed: "exact", or "fast": a bundle of approximations; options that are set win over it.
        shots: Only so many of the training scans, chosen by the seed; see `training_scans`.
        options: What only the method's family knows, by name, e.g. {"point_patches": "28x28"};
            text is read as a value of the option's type. See methods/<family>/fit_options.py.
    """

    method: str = "cfm-s"
    rgb_backbone: str | None = None
    rgb_weights: str | Path = "auto"
    point_weights: str | Path = "auto"
    rgb_layers: int | None = None
    point_layers: tuple[int, ...] | None = None
    threshold_quantile: float = 0.99
    epochs: int | None = None
    seed: int = 0
    unit: Unit = "m"
    recipe: str | None = None
    num_groups: int | None = None
    group_size: int | None = None
    batch_norm: str | None = None
    aggregation: str | None = None
    mapping: str | None = None
    pixel_stride: int | None = None
    precision: str | None = None
    speed: str = "exact"
    shots: int | None = None
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_request(self)
        # NumPy's numbers are taken, but the manifest holds Python's.
        for name in (*_INTEGERS, "seed"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))
        if self.point_layers is not None:
            object.__setattr__(self, "point_layers", tuple(map(int, self.point_layers)))
        object.__setattr__(self, "threshold_quantile", float(self.threshold_quantile))
        plain = {name: _plain_value(value) for name, value in self.options.items()}
        object.__setattr__(self, "options", plain)


def fit(
    data: str | Path,
    output: str | Path,
    *,
    method: str = "cfm-s",
    category: str | None = None,
    rgb_backbone: str | None = None,
    rgb_weights: str | Path = "auto",
    point_weights: str | Path = "auto",
    rgb_layers: int | None = None,
    point_layers: Sequence[int] | None = None,
    threshold_quantile: float = 0.99,
    epochs: int | None = None,
    seed: int = 0,
    unit: Unit = "m",
    recipe: str | None = None,
    num_groups: int | None = None,
    group_size: int | None = None,
    batch_norm: str | None = None,
    aggregation: str | None = None,
    mapping: str | None = None,
    pixel_stride: int | None = None,
    precision: str | None = None,
    speed: str = "exact",
    shots: int | None = None,
    options: Mapping[str, str | int | float | bool] | None = None,
    progress: Progress | None = None,
) -> Detector:
    """The detector fitted on a data set's nominal scans, loaded from the artifact it wrote.

    Args:
        data: Data set (MVTec 3D-AD or Eyecandies layout) or one category's folder.
        output: Folder for the artifact; an artifact there is replaced.
        method: A name of methods/variants.py: "cfm", "cfm-m", "cfm-s", "cfm-t", "m3dm",
            "m3dm-rgb", "m3dm-3d", "m3dm-fusion", "m3dm-rgb+3d" or "m3dm-rgb+3d-add".
        category: Which category, where the data set has several.
        rgb_backbone: "dino-vitb8", "dinov2-vits14" or "dinov2-vitb14"; None: the method's own.
        rgb_weights: Checkpoint path, "auto" (download) or "random" (seeded, for trials).
        point_weights: Likewise for Point-MAE.
        rgb_layers: Transformer blocks of the RGB backbone to keep; None: the method's own.
        point_layers: 0-based Point-MAE blocks whose outputs are used; None: the method's own.
        threshold_quantile: Quantile of the validation scores that becomes the threshold, 0-1.
        epochs: Passes over the training scans; None: the method's own. CFM only.
        seed: Seed of everything random.
        unit: Unit of the XYZ files, "m" or "mm".
        recipe: Preprocessing recipe: "cfm", "m3dm" or "none"; None: the method's own, and "none"
            for raw Eyecandies, whose published conversion removes no background.
        num_groups: Point groups per scan; None: the method's own.
        group_size: Points per group; None: the method's own.
        batch_norm: "cloud", "calibrated" or "checkpoint"; None: "cloud".
        aggregation: "product", "sum", "max", "psi_2d" or "psi_3d"; None: the method's own. CFM
            only.
        mapping: "crossmodal" or "intramodal"; None: the method's own. CFM only.
        pixel_stride: 1 (exact), 2 or 4: the discrepancy at one pixel per block of that side. CFM
            only.
        precision: "float32" (exact) or "int8": of the backbones' matrix products.
        speed: "exact", or "fast": approximations that trade some accuracy for time. Options that
            are set win over it.
        shots: Fit on so many of the training scans only, chosen by the seed; None: on all.
        options: What only the method's family knows, by name, e.g. {"point_patches": "28x28"}. An
            unknown name is answered with the known ones.
        progress: Called with (what, done, total).

    Raises:
        InvalidInputError: an unknown method, backbone, layer or option, one that the method does
            not have, of the wrong type or out of range, or more shots than training scans.
        DataError: the data set is missing, unreadable or has no training scans.
        WeightsError: the weights cannot be had or do not fit.
        ArtifactError: the artifact cannot be written there.
        MissingDependencyError: torch and the other packages of the fit half are not installed.
    """
    request = FitRequest(
        method=method,
        rgb_backbone=rgb_backbone,
        rgb_weights=rgb_weights,
        point_weights=point_weights,
        rgb_layers=rgb_layers,
        point_layers=tuple(point_layers) if isinstance(point_layers, Sequence) else point_layers,
        threshold_quantile=threshold_quantile,
        epochs=epochs,
        seed=seed,
        unit=unit,
        recipe=recipe,
        num_groups=num_groups,
        group_size=group_size,
        batch_norm=batch_norm,
        aggregation=aggregation,
        mapping=mapping,
        pixel_stride=pixel_stride,
        precision=precision,
        speed=speed,
        shots=shots,
        options={} if options is None else options,
    )
    return fit_detector(data, output, category=category, request=request, progress=progress)


def fit_detector(
    data: str | Path | Dataset,
    output: str | Path,
    *,
    category: str | None = None,
    request: FitRequest,
    max_train_scans: int | None = None,
    progress: Progress | None = None,
) -> Detector:
    """As `fit`, with the options as a record, and on the first `max_train_scans` scans if given.

    Raw Eyecandies without an explicit recipe is prepared by "none": its published conversion
    neither looks for a background plane nor cleans up.
    """
    if not isinstance(data, (str, os.PathLike, Dataset)):
        raise InvalidInputError(f"data is {data!r}; it must be the path of a data set's folder")
    check_fit_packages()
    check_options(request)
    check_target(output)
    dataset = data if isinstance(data, Dataset) else open_dataset(Path(data))
    if dataset.layout == "eyecandies" and request.recipe is None:
        request = replace(request, recipe="none")
    name = pick_category(dataset, category)
    train = training_scans(dataset, name, shots=request.shots, seed=request.seed)
    has_validation = "validation" in dataset.splits(name)
    fit_family = _imported(FAMILY_FITS[get_variant(request.method).family])
    path = fit_family(
        train[:max_train_scans],
        dataset.scans(name, "validation") if has_validation else (),
        Path(output),
        request,
        progress=progress,
    )
    return load(path)


def training_scans(
    dataset: Dataset, category: str, *, shots: int | None = None, seed: int = 0
) -> Sequence[ScanFile]:
    """The nominal scans that a category is fitted on, in the data set's order.

    With `shots` a subset that depends on the seed alone, so that it is the same for every method;
    that of fewer shots is part of that of more.

    Raises:
        DataError: the category has no training scans.
        InvalidInputError: fewer training scans than shots.
    """
    if "train" not in dataset.splits(category):
        raise DataError(
            f"{dataset.root}: category {category!r} has no training scans; put nominal scans into "
            "train/good/rgb and train/good/xyz"
        )
    scans = dataset.scans(category, "train")
    if shots is None:
        return scans
    if shots > len(scans):
        raise InvalidInputError(
            f"shots is {shots}, but category {category!r} has {len(scans)} training scans; ask for "
            f"at most {len(scans)}, or leave it out to fit on all"
        )
    order = np.random.default_rng(seed).permutation(len(scans))
    return [scans[index] for index in sorted(order[:shots].tolist())]


def check_options(request: FitRequest) -> None:
    """Raises if the method's family does not have an option of the request, or not that value.

    Raises:
        InvalidInputError: names the option, and what the method has.
    """
    options_class = _imported(FAMILY_OPTIONS[get_variant(request.method).family])
    options_class.of(request)


def _imported(place: str) -> Any:
    """What a table names as "module:name"."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def _check_request(request: FitRequest) -> None:
    """Raises if an option has the wrong type or is out of range, before any work.

    Which backbones, layers and switches exist is for the family to say.

    Raises:
        InvalidInputError: names the option, what it is and what it must be.
    """
    get_variant(request.method)
    if request.recipe is not None:
        _require(isinstance(request.recipe, str), request, "recipe", "a recipe's name")
        get_recipe(request.recipe)
    for name in ("rgb_weights", "point_weights"):
        is_text = isinstance(getattr(request, name), (str, Path))
        _require(is_text, request, name, "'auto', 'random' or a checkpoint's path")
    _require(isinstance(request.speed, str), request, "speed", "'exact' or 'fast'")
    for name in ("rgb_backbone", "batch_norm", "aggregation", "mapping", "precision"):
        value = getattr(request, name)
        _require(value is None or isinstance(value, str), request, name, "a name or None")
    for name in _INTEGERS:
        if getattr(request, name) is not None:
            maximum = MAX_GROUPS if name == "num_groups" else None
            check_integer(getattr(request, name), name, minimum=1, maximum=maximum)
    check_integer(request.seed, "seed", minimum=0, maximum=MAX_SEED)
    if request.point_layers is not None:
        are_layers = isinstance(request.point_layers, tuple) and len(request.point_layers) > 0
        _require(are_layers, request, "point_layers", "block numbers, e.g. (1, 2, 3)")
        for layer in request.point_layers:
            check_integer(layer, "point_layers", minimum=0)
    quantile = request.threshold_quantile
    is_number = isinstance(quantile, numbers.Real) and not isinstance(quantile, bool)
    is_in_range = is_number and math.isfinite(quantile) and 0 <= quantile <= 1
    _require(is_in_range, request, "threshold_quantile", "a number from 0 to 1")
    is_unit = isinstance(request.unit, str) and request.unit in ("m", "mm")
    _require(is_unit, request, "unit", "'m' or 'mm'")
    options = request.options
    are_named = isinstance(options, Mapping) and all(isinstance(name, str) for name in options)
    _require(are_named, request, "options", "a dictionary of values by option name")


def _plain_value(value: Any) -> Any:
    """A path as text, a NumPy number as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _require(condition: bool, request: FitRequest, name: str, need: str) -> None:
    if not condition:
        raise InvalidInputError(f"{name} is {getattr(request, name)!r}; it must be {need}")


def check_fit_packages() -> None:
    """Raises if the packages of the fit half are not installed.

    Raises:
        MissingDependencyError: names what is missing and the command that installs it.
    """
    missing = [name for name in _FIT_PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"fitting needs {', '.join(missing)}, not installed here; install with: "
            "pip install 'mmad-fast[fit]'"
        )


def silent(stage: str, done: int, total: int) -> None:
    """No progress."""


def count_features(progress: Progress, before: int, total: int, done: int) -> None:
    """Tells the progress of extracting, of which so many scans were done before."""
    progress("features", before + done, total)


def scan_label(scan: ScanFile | Scan) -> str:
    """What messages call a training scan."""
    return f"scan {scan.name!r}" if scan.name else "an unnamed scan"


def threshold_record(image_scores: Sequence[float], quantile: float) -> dict[str, Any]:
    """What the manifest says of the threshold: the quantile of the scores, rounded up to one of
    them."""
    value = np.quantile(np.array(image_scores), quantile, method="higher")
    return {"value": float(value), "quantile": quantile, "num_scans": len(image_scores)}
