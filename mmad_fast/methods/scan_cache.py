"""What is extracted of a set of scans, once: the part that the methods' caches share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from mmad_fast.errors import EmptyScanError

logger = logging.getLogger("mmad_fast")

Features = TypeVar("Features")


class ScanCache(ABC, Generic[Features]):
    """The features of those scans that have any.

    Attributes:
        positions: Of each kept scan its position among those that were given to `extend`.
    """

    def __init__(self) -> None:
        self.positions: list[int] = []
        self._num_given = 0

    @abstractmethod
    def append(self, features: Features) -> None:
        """Keeps the features of a scan."""

    def extend(
        self,
        named_scans: Iterable[tuple[str, Callable[[], Features]]],
        *,
        progress: Callable[[int], None],
    ) -> None:
        """Extracts and keeps the features of each scan; one without foreground is skipped.

        Args:
            named_scans: (name, function that extracts) per scan.
            progress: Called with the number of scans given so far.
        """
        for name, extract in named_scans:
            try:
                features = extract()
            except EmptyScanError as error:
                logger.warning("skipped %s: %s", name, error)
            else:
                self.append(features)
                self.positions.append(self._num_given)
            self._num_given += 1
            progress(self._num_given)
