"""How well anomaly scores and maps separate anomalous from nominal: I-AUROC, P-AUROC, AUPRO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmad_fast.errors import InvalidInputError, MissingDependencyError

try:
    from scipy.ndimage import label as label_components
    from sklearn.metrics import roc_auc_score
except ImportError as error:
    raise MissingDependencyError(
        f"measuring accuracy needs scikit-learn and scipy ({error}); "
        "install them with: pip install 'mmad-fast[fit]'"
    ) from error

AuproMode = Literal["published", "exact"]
AUPRO_LIMITS = (0.3, 0.1, 0.05, 0.01)
EIGHT_CONNECTED = np.ones((3, 3), np.int8)
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def image_auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """The area under the ROC curve of image scores; None if only one class is present.

    One class is a normal case (a category, or a defect type, without good scans) and not an error:
    the value is undefined and becomes null in JSON.

    Args:
        scores: (B,) image scores of one category, finite; higher is more anomalous.
        labels: (B,) bool or integer; non-zero is anomalous.

    Raises:
        InvalidInputError: lengths that differ, no scores, a score that is NaN or infinite, or
            labels that are neither bool nor integer.

    Source: method facts, section 10 (I-AUROC).
    """
    score_array = np.asarray(scores, np.float64)
    label_array = _as_bool(np.asarray(labels), "labels")
    if score_array.ndim != 1 or score_array.shape != label_array.shape or score_array.size == 0:
        raise InvalidInputError(
            f"image_auroc got scores of shape {score_array.shape} and labels of shape "
            f"{label_array.shape}; both must be (B,) with B >= 1: one score and one label per scan"
        )
    _require_finite(score_array, "scores")
    return _auroc(score_array, label_array)


def pixel_auroc(maps: Iterable[ArrayLike], masks: Iterable[ArrayLike]) -> float | None:
    """The area under the ROC curve over all pixels of all scans; None if only one class is present.

    Args:
        maps: B anomaly maps (H, W), finite; sizes may differ between scans.
        masks: B ground truths (H, W) bool or integer, non-zero is anomalous; nominal scans have
            all-zero masks.

    Raises:
        InvalidInputError: see `aupro`.

    Source: method facts, section 10 (P-AUROC).
    """
    pairs = _checked_pairs(maps, masks)
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in pairs])
    return _auroc(scores, np.concatenate([mask.ravel() for _, mask in pairs]))


def aupro(
    maps: Iterable[ArrayLike],
    masks: Iterable[ArrayLike],
    *,
    limits: Sequence[float] = AUPRO_LIMITS,
    mode: AuproMode = "published",
    num_thresholds: int = 99,
) -> dict[float, float | None]:
    """The normalised area under the per-region-overlap curve up to each FPR limit, 0 to 1.

    The regions are the 8-connected components of the ground truth; those of all scans count the
    same. The values are None if there is no anomalous region, or no nominal pixel: undefined.

    Args:
        maps: B anomaly maps (H, W) of one category, finite; sizes may differ between scans.
        masks: B ground truths (H, W) bool or integer, non-zero is anomalous; nominal scans, which
            count too, have all-zero masks.
        limits: False-positive rates in (0, 1] up to which the curve is integrated.
        mode: "published" evaluates the curve at few rank-spaced thresholds, as the papers did: it
            understates the area at small limits (one single trapezoid at 1 %). "exact" integrates
            the curve over all distinct scores, ties as one step.
        num_thresholds: Of the published mode: 99 in CFM, 100 in BTF, M3DM and EasyNet.

    Returns:
        {limit: area / limit}, in the order of `limits`; all None where undefined.

    Raises:
        InvalidInputError: numbers of maps and masks that differ or are zero, a map whose shape
            differs from its mask's, NaN or infinite values, masks that are neither bool nor
            integer, a limit outside (0, 1], an unknown mode, fewer than 2 thresholds.

    Source: MVTec 3D-AD evaluation as used by BTF, M3DM and CFM; method facts, section 10.
    """
    _check_aupro_options(limits, mode, num_thresholds)
    nominal, regions = _split_scores(_checked_pairs(maps, masks))
    if not regions or not nominal.size:
        return dict.fromkeys(limits)
    if mode == "published":
        curve = _published_curve(nominal, regions, num_thresholds)
    else:
        curve = _exact_curve(nominal, regions)
    return {limit: _area_up_to(curve, limit) / limit for limit in limits}


def _auroc(scores: NDArray, labels: NDArray[np.bool_]) -> float | None:
    if labels.all() or not labels.any():
        return None
    return float(roc_auc_score(labels, scores))


def _split_scores(
    pairs: list[tuple[NDArray, NDArray[np.bool_]]],
) -> tuple[NDArray, list[NDArray]]:
    """The nominal scores (n,) ascending, and the ascending scores of each anomalous region."""
    regions = []
    for anomaly_map, mask in pairs:
        if not mask.any():
            continue
        components, count = label_components(mask, EIGHT_CONNECTED)
        scores, owners = anomaly_map[mask], components[mask]
        order = np.lexsort((scores, owners))
        ends = np.searchsorted(owners[order], np.arange(1, count + 1), side="right")
        regions += np.split(scores[order], ends[:-1])
    nominal = np.sort(np.concatenate([anomaly_map[~mask] for anomaly_map, mask in pairs]))
    return nominal, regions


def _published_curve(nominal: NDArray, regions: list[NDArray], num_thresholds: int) -> Curve:
    """(FPR, PRO), ascending: rank-based FPR, overlap strictly above the threshold."""
    count = len(nominal)
    positions = np.linspace(0, count - 1, num_thresholds, dtype=int)
    thresholds = nominal[positions]
    overlap = np.zeros(num_thresholds)
    for region in regions:
        overlap += 1.0 - np.searchsorted(region, thresholds, side="right") / len(region)
    false_positive_rate = 1.0 - (positions + 1) / count
    return (
        np.append(false_positive_rate[::-1], 1.0),
        np.append(overlap[::-1] / len(regions), 1.0),
    )


def _exact_curve(nominal: NDArray, regions: list[NDArray]) -> Curve:
    """(FPR, PRO), ascending, over all distinct scores.

    Between two distinct anomalous scores the overlap stands still, so the corners are: just above
    and just at each distinct anomalous score. A tie with nominal scores is one slanted step, as in
    the ROC curve.
    """
    pixels = np.concatenate(regions)
    weights = np.concatenate([np.full(len(region), 1.0 / len(region)) for region in regions])
    scores, owners = np.unique(pixels, return_inverse=True)
    gains = np.bincount(owners, weights)[::-1] / len(regions)  # descending by score
    scores = scores[::-1]
    reached = np.cumsum(gains)
    above = len(nominal) - np.searchsorted(nominal, scores, side="right")
    at_or_above = len(nominal) - np.searchsorted(nominal, scores, side="left")
    false_positive_rate = np.stack([above, at_or_above], axis=1).ravel() / len(nominal)
    overlap = np.stack([reached - gains, reached], axis=1).ravel()
    return np.append(false_positive_rate, 1.0), np.append(overlap, 1.0)


def _area_up_to(curve: Curve, limit: float) -> float:
    """The trapezoid area under the curve from FPR 0 to the limit, interpolated at the limit."""
    rates, overlap = curve
    inside = int(np.searchsorted(rates, limit, side="right"))
    if inside < len(rates) and rates[inside - 1] < limit:
        fraction = (limit - rates[inside - 1]) / (rates[inside] - rates[inside - 1])
        at_limit = overlap[inside - 1] + fraction * (overlap[inside] - overlap[inside - 1])
        rates = np.append(rates[:inside], limit)
        overlap = np.append(overlap[:inside], at_limit)
    else:
        rates, overlap = rates[:inside], overlap[:inside]
    return float(np.sum(np.diff(rates) * (overlap[1:] + overlap[:-1])) / 2)


def _check_aupro_options(limits: Sequence[float], mode: str, num_thresholds: int) -> None:
    if mode not in ("published", "exact"):
        raise InvalidInputError(f"AUPRO mode is {mode!r}; it must be 'published' or 'exact'")
    if num_thresholds < 2:
        raise InvalidInputError(f"num_thresholds is {num_thresholds}; it must be at least 2")
    for limit in limits:
        if not 0 < limit <= 1:
            raise InvalidInputError(
                f"AUPRO limit is {limit}; it must be a false-positive rate in (0, 1], e.g. 0.3"
            )


def _checked_pairs(
    maps: Iterable[ArrayLike], masks: Iterable[ArrayLike]
) -> list[tuple[NDArray, NDArray[np.bool_]]]:
    map_list = [np.asarray(anomaly_map) for anomaly_map in maps]
    mask_list = [np.asarray(mask) for mask in masks]
    if len(map_list) != len(mask_list) or not map_list:
        raise InvalidInputError(
            f"got {len(map_list)} anomaly maps and {len(mask_list)} masks; "
            "there must be one mask per map, and at least one"
        )
    pairs = []
    for index, (anomaly_map, mask) in enumerate(zip(map_list, mask_list, strict=True)):
        if anomaly_map.ndim != 2 or anomaly_map.shape != mask.shape:
            raise InvalidInputError(
                f"anomaly map {index} has shape {anomaly_map.shape} and its mask {mask.shape}; "
                "both must be (H, W) on the same grid: prepare the mask with "
                "mmad_fast.preprocess.prepare_ground_truth"
            )
        _require_finite(anomaly_map, f"anomaly map {index}")
        pairs.append((anomaly_map, _as_bool(mask, f"mask {index}")))
    return pairs


def _require_finite(values: NDArray, what: str) -> None:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise InvalidInputError(
            f"{what}: {bad} of {values.size} values are NaN or infinite; a score must be a finite "
            "number, and background without a score must be 0"
        )


def _as_bool(values: NDArray, what: str) -> NDArray[np.bool_]:
    if values.dtype != np.bool_ and not np.issubdtype(values.dtype, np.integer):
        raise InvalidInputError(
            f"{what} has dtype {values.dtype}; it must be bool or integer, non-zero is anomalous "
            "(compare a resized mask with a threshold first)"
        )
    return values != 0
