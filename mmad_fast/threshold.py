"""The decision threshold: its value, the scans it rests on, and the false-reject rate that these
can promise. To read or describe one needs the standard library only."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmad_fast.errors import ArtifactError, InvalidInputError, MmadFastError

CONFIDENCE = 0.95
"""Of every interval."""
MAX_SCANS = 10**9

VALIDATION = "validation"
SET_ASIDE = "training, set aside"
OWN_LEFT_OUT = "training, own rows left out"
UNKNOWN = "unknown"
SOURCES = {
    VALIDATION: "validation scans",
    SET_ASIDE: "training scans that were set aside and not fitted on",
    OWN_LEFT_OUT: "training scans, each scored without its own rows in the memory banks",
    UNKNOWN: "scans that this artifact does not name",
}
"""Where the scores come from, in the manifest's word and in words for people."""
MORE_SCANS = "put good scans that are not fitted on into validation/good, the more the better"


@dataclass(frozen=True)
class Rate:
    """A rate of parts and its interval, all in 0..1.

    Attributes:
        value: The rate that is expected or was measured.
        low: Lower end of the interval.
        high: Its upper end.
        confidence: Of the interval.
    """

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    def __str__(self) -> str:
        return f"{_percent(self.value)} ({_percent(self.low)} to {_percent(self.high)})"


@dataclass(frozen=True)
class Threshold:
    """A decision threshold on the image score; a scan is anomalous where its score is above.

    Attributes:
        value: The threshold, one of the scores.
        quantile: Which quantile of the scores it is, in 0..1, rounded up to one of them.
        num_scans: Number of nominal scores it was chosen from.
        source: What these are scores of, a key of SOURCES.
        false_reject_rate: What share of new good parts will be rejected; None where the artifact
            is older than this record.
    """

    value: float
    quantile: float
    num_scans: int
    source: str = UNKNOWN
    false_reject_rate: Rate | None = None

    @classmethod
    def of_scores(cls, image_scores: Sequence[float], quantile: float, source: str) -> Threshold:
        """The quantile of nominal scores, with the rate that it can promise. Needs scipy.

        Args:
            image_scores: (R,) of nominal scans, at least one.
            quantile: In 0..1.
            source: A key of SOURCES, not UNKNOWN.

        Raises:
            MmadFastError: a score is not finite.
        """
        ordered = sorted(map(float, image_scores))
        if not all(map(math.isfinite, ordered)):
            raise MmadFastError(
                "a nominal scan's score is not finite, so there is no threshold; check the weights "
                "of the backbones and the values of the scans"
            )
        threshold = cls(ordered[0], quantile, len(ordered), source)
        rank = threshold.rank
        rate = promised_rate(len(ordered), rank)
        return cls(ordered[rank - 1], quantile, len(ordered), source, rate)

    @classmethod
    def from_dict(cls, content: Any, *, manifest: Path) -> Threshold | None:
        """The record in a manifest; None where there is no threshold. Artifacts before schema 5
        have value, quantile and number of scans only.

        Raises:
            ArtifactError: a field is missing, unknown, of the wrong type, not finite or out of
                range: with such a threshold every part could pass.
        """
        if content is None:
            return None
        names = [one.name for one in fields(cls)]
        found = list(content) if isinstance(content, Mapping) else None
        if found is None or sorted(found) not in (sorted(names), sorted(names[:3])):
            raise _damaged(manifest, "threshold", content, f"null, or have {', '.join(names)}")
        source = content.get("source", UNKNOWN)
        if not isinstance(source, str) or source not in SOURCES:
            raise _damaged(manifest, "threshold.source", source, f"one of {', '.join(SOURCES)}")
        count = content["num_scans"]
        if type(count) is not int or not 1 <= count <= MAX_SCANS:
            raise _damaged(manifest, "threshold.num_scans", count, f"an integer in 1..{MAX_SCANS}")
        value, share = content["value"], content["quantile"]
        return cls(
            _number(value, manifest, "threshold.value", -math.inf, math.inf),
            _number(share, manifest, "threshold.quantile", 0, 1),
            count,
            source,
            _rate(content.get("false_reject_rate"), manifest),
        )

    def to_dict(self) -> dict[str, Any]:
        """The record in JSON types."""
        return asdict(self)

    @property
    def rank(self) -> int:
        """Which of the scores it is, counted from 1, the smallest."""
        return math.ceil(self.quantile * (self.num_scans - 1)) + 1

    def __str__(self) -> str:
        """One line for an engineer at a line."""
        place = self.num_scans - self.rank + 1
        which = "largest" if place == 1 else f"{_ordinal(place)} largest"
        of_scores = f"the {which} of {self.num_scans} scores"
        told = f"threshold {self.value:.4g} = "
        told += of_scores if self.num_scans > 1 else "the only score"
        told += f" ({SOURCES[self.source]}): "
        rate = self.false_reject_rate
        if rate is None:
            return told + "how many good parts it rejects is unknown; fit the detector again"
        share = "most" if rate.value > 0.5 else f"about 1 in {round(1 / rate.value)}"
        told += (
            f"{share} good parts will be rejected ({100 * rate.confidence:g} % interval "
            f"{_percent(rate.low)} to {_percent(rate.high)})"
        )
        target = 1 - self.quantile if self.quantile < 1 else 0.01
        if target < 1 and rate.high > target:
            needed = scans_to_promise(target)
            told += f"; the largest of {needed} would promise at most {_percent(target)}"
        return told


def checked_threshold(value: Any) -> float | None:
    """The threshold as float; None for none.

    Raises:
        InvalidInputError: it is no finite number: every part would pass.
    """
    if value is None:
        return None
    number = _as_float(value)
    if not math.isfinite(number):
        raise InvalidInputError(
            f"threshold is {value!r}; it must be a finite number, or None for no decision"
        )
    return number


def describe_threshold(threshold: Threshold | None) -> str:
    """One line: where a detector's threshold comes from and what it can promise."""
    if threshold is None:
        return f"no threshold: scans are scored, not decided; {MORE_SCANS}, and fit again"
    return str(threshold)


def promised_rate(num_scans: int, rank: int) -> Rate:
    """The false-reject rate of the rank-th smallest of n nominal scores as threshold. Needs scipy.

    The share of new good parts above it has the distribution Beta(n - rank + 1, rank), whatever
    that of the scores, where they are independent and of the same kind as those to come; equal
    scores make it smaller.

    Source: Wilks, Determination of sample sizes for setting tolerance limits, Annals of
        Mathematical Statistics 12 (1941).
    """
    from scipy.special import betaincinv

    above, tail = num_scans - rank + 1, (1 - CONFIDENCE) / 2
    low, high = (float(betaincinv(above, rank, share)) for share in (tail, 1 - tail))
    return Rate(above / (num_scans + 1), low, high)


def scans_to_promise(rate: float) -> int:
    """How many nominal scores it takes until their largest is exceeded by at most this share of new
    good parts, with a confidence of 95 %: 1 - (1 - rate)^n >= 0.95 (Wilks, 1941)."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-rate))


def _rate(content: Any, manifest: Path) -> Rate | None:
    if content is None:
        return None
    where = "threshold.false_reject_rate"
    names = [one.name for one in fields(Rate)]
    if not isinstance(content, Mapping) or sorted(content) != sorted(names):
        raise _damaged(manifest, where, content, f"null, or have {', '.join(names)}")
    rate = Rate(**{n: _number(content[n], manifest, f"{where}.{n}", 0, 1) for n in names})
    if not max(rate.low, 1 / (MAX_SCANS + 1)) <= rate.value <= rate.high:
        raise _damaged(manifest, where, content, "a rate above 0 inside of its interval")
    return rate


def _number(value: Any, manifest: Path, where: str, low: float, high: float) -> float:
    number = _as_float(value)
    if not math.isfinite(number) or not low <= number <= high:
        ends = "" if math.isinf(low) else f" in {low:g}..{high:g}"
        raise _damaged(manifest, where, value, f"a finite number{ends}")
    return number


def _as_float(value: Any) -> float:
    """The number as float, NaN for what is none: text, a bool, an integer beyond float64."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _damaged(manifest: Path, where: str, value: Any, need: str) -> ArtifactError:
    return ArtifactError(
        f"{manifest}: {where} is {repr(value)[:80]}; it must be {need}; copy the artifact again, "
        "or fit it again"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"
