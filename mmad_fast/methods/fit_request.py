"""What to fit: the part that every method has, and the options of the method's family. No torch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmad_fast.data.scan_file import ScanFile
from mmad_fast.errors import EmptyScanError, InvalidInputError
from mmad_fast.methods.family import (
    Family,
    Variant,
    default_method,
    get_method,
    get_recipe,
)
from mmad_fast.methods.options import (
    MethodOptions,
    OptionValue,
    chosen_options,
    may_be_none,
    option_fields,
    read_option,
)
from mmad_fast.missing_values import MissingTally, check_missing
from mmad_fast.preprocess import check_resolution, prepare
from mmad_fast.preprocess.recipes import Recipe
from mmad_fast.scan import PreparedScan, Scan, Unit
from mmad_fast.validation import check_integer

if TYPE_CHECKING:
    from mmad_fast.methods.training_checkpoint import TrainingCheckpoint

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""

Weights = Mapping[str, str | Path]
"""By branch: "auto" (cache or download), "random" (seeded) or a checkpoint's path."""

CALIBRATION_SCANS = 16
"""Training scans, about, that statistics and ranges of a network's activations are taken from."""

MAX_SEED = 2**32 - 1
AUTO, RANDOM = "auto", "random"
_WEIGHTS_SUFFIX = "_weights"


@dataclass(frozen=True)
class FitRequest:
    """What to fit. Checked when it is made.

    Attributes:
        method: A name of mmad_fast.methods.family.method_names().
        weights: By branch; a branch that is left out is "auto".
        threshold_quantile: Quantile of the validation scores that becomes the threshold.
        seed: Seed of everything random.
        unit: Unit of the XYZ files, "m" or "mm".
        missing: Number that stands for no measurement in the XYZ files, beside those that are
            found; see Scan.from_arrays.
        recipe: Preprocessing, see family.get_recipe. None is the family's own, and "none" for raw
            Eyecandies.
        speed: "exact", or a bundle of approximations of the family; options that are set win.
        shots: Only so many of the training scans, chosen by the seed; see fit_run.training_scans.
        options: Options of the method's family by name; see its options.py. Text is read as a value
            of the option's type.

    Raises:
        InvalidInputError: no such method, an option it does not have, or a value of the wrong type
            or out of range; names it, and what it must be.
    """

    method: str = field(default_factory=default_method)
    weights: Weights = field(default_factory=dict, hash=False)
    threshold_quantile: float = 0.99
    seed: int = 0
    unit: Unit = "m"
    missing: float | None = None
    recipe: str | None = None
    speed: str = "exact"
    shots: int | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_request(self)
        # NumPy's numbers are taken, but the manifest holds Python's.
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "threshold_quantile", float(self.threshold_quantile))
        object.__setattr__(self, "missing", check_missing(self.missing))
        if self.shots is not None:
            object.__setattr__(self, "shots", int(self.shots))
        resolve_options(self)

    @classmethod
    def of(cls, method: str | None = None, **chosen: Any) -> FitRequest:
        """The request from keywords alone: fields of the request, `<branch>_weights`, and options
        of the method's family; None leaves one open, but for an option of which it is a value.

        Raises:
            InvalidInputError: as for the record.
        """
        method = default_method() if method is None else method
        family, _ = get_method(method)
        of_branch = {
            branch.key + _WEIGHTS_SUFFIX: branch.key for branch in family.weighted_branches
        }
        common = {one.name for one in fields(cls)} - {"method", "weights", "options"}
        chosen = {
            name: value
            for name, value in chosen.items()
            if value is not None or may_be_none(family.options, name)
        }
        return cls(
            method=method,
            weights={key: chosen.pop(name) for name, key in of_branch.items() if name in chosen},
            **{name: chosen.pop(name) for name in list(chosen) if name in common},
            options=chosen,
        )

    def weights_of(self, branch: str) -> str | Path:
        """The weights of a branch."""
        return self.weights.get(branch, AUTO)


def resolve_options(request: FitRequest) -> MethodOptions:
    """The options of a request: what it sets itself, else what its speed stands for, else what the
    method's name does, else the defaults; with the constants that follow.

    Raises:
        InvalidInputError: no such speed, an option that the family does not have (the message lists
            those it has), one of a branch that the method does not run or without effect, or a
            value that is none of its type or out of range.
    """
    family, variant = get_method(request.method)
    if request.speed not in family.speeds:
        raise InvalidInputError(
            f"speed is {request.speed!r}; it must be one of {', '.join(family.speeds)}"
        )
    known = chosen_options(family.options)
    asked = {}
    for name, value in request.options.items():
        if name not in known:
            raise InvalidInputError(
                f"{request.method} has no option {name!r}; it has: {', '.join(known)}; and, as "
                f"every method: {', '.join(common_options(family))}"
            )
        asked[name] = read_option(family.options, name, value)
    _check_branches(request, family, variant)
    values = {**variant.values, **family.speeds[request.speed], **asked}
    options = family.options(**values).with_constants()
    idle = options.without_effect()
    for name in asked:
        if name in idle:
            raise InvalidInputError(
                f"{name} changes nothing in {request.method} ({idle[name]}); leave it out"
            )
    return options


def common_options(family: Family) -> tuple[str, ...]:
    """What may be asked of every method, and the weights of the family's branches, as keywords."""
    own = [one.name for one in fields(FitRequest) if one.name not in ("weights", "options")]
    return (*own, *(branch.key + _WEIGHTS_SUFFIX for branch in family.weighted_branches))


def _check_branches(request: FitRequest, family: Family, variant: Variant) -> None:
    """Raises InvalidInputError for an option or weights of a branch that the method does not
    run."""
    used = {n for branch in family.branches_of(variant) for n in option_fields(branch.options)}
    for branch in family.branches:
        if branch.key in variant.branches:
            continue
        given = {n: v for n, v in request.options.items() if n in option_fields(branch.options)}
        if request.weights_of(branch.key) not in (AUTO, RANDOM):
            given[branch.key + _WEIGHTS_SUFFIX] = str(request.weights_of(branch.key))
        for name, value in given.items():
            if name not in used:
                raise InvalidInputError(
                    f"{name} is {value!r}, but {request.method} uses no {branch.key} features; "
                    "leave it out"
                )


def _check_request(request: FitRequest) -> None:
    """Raises InvalidInputError if a field has the wrong type or is out of range."""
    family, _ = get_method(request.method)
    if request.recipe is not None:
        _require(isinstance(request.recipe, str), request, "recipe", "a recipe's name")
        get_recipe(request.recipe)
    keys = [branch.key for branch in family.weighted_branches]
    is_mapping = isinstance(request.weights, Mapping)
    _require(is_mapping, request, "weights", f"a dictionary by branch: {', '.join(keys) or 'none'}")
    for key, value in request.weights.items():
        if key not in keys:
            raise InvalidInputError(
                f"there are weights of a branch {key!r}; {family.name} has: "
                f"{', '.join(keys) or 'none'}"
            )
        if not isinstance(value, (str, Path)):
            raise InvalidInputError(
                f"{key}{_WEIGHTS_SUFFIX} is {value!r}; it must be 'auto', 'random' or a "
                "checkpoint's path"
            )
    speeds = ", ".join(map(repr, family.speeds))
    _require(isinstance(request.speed, str), request, "speed", f"one of {speeds}")
    if request.shots is not None:
        check_integer(request.shots, "shots", minimum=1)
    check_integer(request.seed, "seed", minimum=0, maximum=MAX_SEED)
    quantile = request.threshold_quantile
    is_number = isinstance(quantile, numbers.Real) and not isinstance(quantile, bool)
    is_in_range = is_number and math.isfinite(quantile) and 0 <= quantile <= 1
    _require(is_in_range, request, "threshold_quantile", "a number from 0 to 1")
    is_unit = isinstance(request.unit, str) and request.unit in ("m", "mm")
    _require(is_unit, request, "unit", "'m' or 'mm'")
    options = request.options
    are_named = isinstance(options, Mapping) and all(isinstance(name, str) for name in options)
    _require(are_named, request, "options", "a dictionary of values by option name")


def _require(condition: bool, request: FitRequest, name: str, need: str) -> None:
    if not condition:
        raise InvalidInputError(f"{name} is {getattr(request, name)!r}; it must be {need}")


@dataclass(frozen=True)
class FitTask:
    """What the fit half of a family works with.

    Attributes:
        request: What was asked for.
        train: Nominal scans.
        options: Of the request, see resolve_options.
        recipe: Of the request, or the family's own, with what the options say of preparation.
        scratch: A folder for files, which goes when the fit ends.
        progress: Told of every stage.
        missing: What stood for no measurement in the scans that have been loaded.
        checkpoint: Where the trainings keep their state; None: nowhere.
    """

    request: FitRequest
    train: Sequence[ScanFile | Scan]
    options: Any
    recipe: Recipe
    scratch: Path
    progress: Progress
    missing: MissingTally = field(default_factory=MissingTally)
    checkpoint: TrainingCheckpoint | None = None

    @classmethod
    def of(
        cls,
        request: FitRequest,
        train: Sequence[ScanFile | Scan],
        scratch: Path,
        progress: Progress,
    ) -> FitTask:
        """The task of a request."""
        family, _ = get_method(request.method)
        recipe = family.recipe if request.recipe is None else get_recipe(request.recipe)
        options = resolve_options(request)
        return cls(request, train, options, options.prepared_by(recipe), scratch, progress)

    def facts(self) -> dict[str, Any]:
        """What tells its trainings from those of another fit, but for the scans; JSON types."""
        return {
            "method": self.request.method,
            "seed": self.request.seed,
            "recipe": self.recipe.to_dict(),
            **asdict(self.options),
        }

    def load(self, scan: ScanFile | Scan) -> Scan:
        """The scan, read if it is a file, without the values that stood for no measurement in it
        or in one before."""
        request = self.request
        loaded = (
            scan
            if isinstance(scan, Scan)
            else scan.load(
                unit=request.unit, missing=request.missing, with_normals=self.recipe.reads_normals
            )
        )
        key = scan.name or id(scan)
        self.missing.add(key, loaded.missing_values, loaded.missing_share)
        return loaded.without(self.missing.record(request.missing).points)

    def prepare(self, scan: ScanFile | Scan) -> PreparedScan:
        """The scan as the detector reads it.

        Raises:
            InvalidInputError: a scan of too few pixels.
        """
        loaded = self.load(scan)
        check_resolution(loaded)
        options = self.options
        return prepare(loaded, self.recipe, rgb_size=options.rgb_size, grid_size=options.grid_size)

    def calibration_scans(self, *, min_points: int = 1) -> Iterator[PreparedScan]:
        """Some training scans, evenly chosen, as the detector reads them; those with fewer
        foreground points are left out.

        Raises:
            EmptyScanError: that is all of them.
        """
        num_used = 0
        for scan in self.train[:: max(1, len(self.train) // CALIBRATION_SCANS)]:
            try:
                prepared = self.prepare(scan)
            except EmptyScanError:
                continue
            if len(prepared.points) >= min_points:
                num_used += 1
                yield prepared
        if not num_used:
            raise EmptyScanError(
                f"none of the training scans used for calibration has {min_points} foreground "
                "points; check the unit and the background plane"
            )


def silent(stage: str, done: int, total: int) -> None:
    """No progress."""
