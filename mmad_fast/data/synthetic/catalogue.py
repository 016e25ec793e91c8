"""The categories, and how each is seen.

A category couples colour and shape: some coloured feature is also relief. Its part keeps the two
sides of such a feature apart, so that a mismatch can change one of them only, to another value
that is nominal by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmad_fast.data.synthetic import biscuit, bolt_plate, bottle_cap, foam_pad
from mmad_fast.data.synthetic.surface import Canvas, Surface


@dataclass(frozen=True)
class Category:
    """A kind of part, and the camera it is seen with.

    Attributes:
        sample: A nominal part, drawn with a random generator.
        mismatch: The same part with one side of its coupled features changed; also takes the
            generator, and the severity, 0 to 1.
        draw: The part's surface on a canvas of its coordinates.
        height_mm: Its mean height, at which pixels and the part's coordinates are matched.
        view_mm: What the image shows from edge to edge at that height.
        distance_m: From the camera to the conveyor.
        turn_degrees: The part lies turned by at most this, either way.
    """

    sample: Callable[[np.random.Generator], Any]
    mismatch: Callable[[Any, np.random.Generator, float], Any]
    draw: Callable[[Any, Canvas], Surface]
    height_mm: float
    view_mm: float
    distance_m: float
    turn_degrees: float


CATALOGUE: dict[str, Category] = {
    "bolt_plate": Category(
        bolt_plate.sample,
        bolt_plate.mismatch,
        bolt_plate.draw,
        height_mm=8.0,
        view_mm=158.0,
        distance_m=0.50,
        turn_degrees=12.0,
    ),
    "biscuit": Category(
        biscuit.sample,
        biscuit.mismatch,
        biscuit.draw,
        height_mm=8.0,
        view_mm=152.0,
        distance_m=0.45,
        turn_degrees=20.0,
    ),
    "bottle_cap": Category(
        bottle_cap.sample,
        bottle_cap.mismatch,
        bottle_cap.draw,
        height_mm=10.5,
        view_mm=150.0,
        distance_m=0.42,
        turn_degrees=180.0,
    ),
    "foam_pad": Category(
        foam_pad.sample,
        foam_pad.mismatch,
        foam_pad.draw,
        height_mm=12.0,
        view_mm=166.0,
        distance_m=0.55,
        turn_degrees=10.0,
    ),
}
