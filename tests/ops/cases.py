"""Point clouds of the ops' tests. Procedural and seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ops.inputs import Frame as Frame
from ops.inputs import depth_frame as depth_frame
from ops.inputs import uniform_cloud as uniform_cloud


@dataclass(frozen=True)
class Cloud:
    """One point cloud.

    Attributes:
        name: What it is, as a test's name.
        points: (N, 3) float32.
        is_exact: Integer coordinates so small that squared distances are exact in float32: then
            every backend must agree with the float64 reference index by index, ties included.
    """

    name: str
    points: NDArray[np.float32]
    is_exact: bool


def integer_cloud(num_points: int, *, high: int = 2048, seed: int = 0) -> NDArray[np.float32]:
    """(N, 3) integers in [0, high); up to 2048 all squared distances are exact in float32."""
    return np.random.default_rng(seed).integers(0, high, (num_points, 3)).astype(np.float32)


def _outlier_cloud() -> NDArray[np.float32]:
    points = uniform_cloud(500, seed=5)
    points[250] = (4000, -9000, 12000)
    return points


CLOUDS = (
    Cloud("one-point", integer_cloud(1), True),
    Cloud("seven-integers", integer_cloud(7), True),
    Cloud("sixty-three-integers", integer_cloud(63, seed=1), True),
    Cloud("integers-1025", integer_cloud(1025, seed=2), True),
    Cloud("many-ties", integer_cloud(700, high=6, seed=3), True),
    Cloud("duplicates", np.repeat(integer_cloud(90, seed=4), 4, axis=0), True),
    Cloud("all-equal", np.full((300, 3), 3, np.float32), True),
    Cloud("on-a-line", np.arange(200, dtype=np.float32)[:, None] * np.float32([1, 0, 0]), True),
    Cloud("uniform", uniform_cloud(1025), False),
    Cloud("depth-frame", depth_frame(64, seed=1).points, False),
    Cloud("millimetres", depth_frame(48, seed=2).points * np.float32(1000), False),
    Cloud("far-outlier", _outlier_cloud(), False),
)


def _far_apart() -> NDArray[np.float32]:
    """Two dense clusters and single points at distances that double: boxes cannot be halved."""
    doubling = np.float32(2.0) ** np.arange(-40, 50, dtype=np.float32)
    line = doubling[:, None] * np.float32([1, -1, 0.5])
    clusters = uniform_cloud(900, seed=6)
    return np.concatenate([clusters, line, clusters * np.float32(1e-3) + np.float32(1e4)])


ADVERSARIAL_CLOUDS = (
    *CLOUDS,
    Cloud("two-points", integer_cloud(2, seed=7), True),
    Cloud("sixty-five-equal", np.full((65, 3), -2, np.float32), True),
    Cloud("many-equal", np.full((20_001, 3), 0.25, np.float32), True),
    Cloud("quantised-plane", integer_cloud(15_000, high=40, seed=8) * np.float32([1, 1, 0]), True),
    Cloud(
        "quantised-depth-frame", np.round(depth_frame(150).points * 500) / np.float32(500), False
    ),
    Cloud("on-a-diagonal", np.arange(3000, dtype=np.float32)[::-1, None].repeat(3, axis=1), True),
    Cloud("huge", uniform_cloud(2000, seed=9) * np.float32(1.6e18), False),
    Cloud("denormal", uniform_cloud(2000, seed=9) * np.float32(1e-39), False),
    Cloud("tiny-squares", uniform_cloud(2000, seed=9) * np.float32(1e-21), False),
    Cloud("far-apart", _far_apart(), False),
    Cloud("frame-of-many-blocks", depth_frame(224, coverage=0.5).points, False),
)
"""More clouds, not all of which float64 and float32 see alike: to compare with plain float32."""


def by_name(cloud: Cloud) -> str:
    """A cloud's name, for the ids of parametrized tests."""
    return cloud.name


def float32_squared_distances(
    points: NDArray[np.float32], center: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(N,) float32, each operation rounded: what every fast backend must compute, bit by bit."""
    dx, dy, dz = (points - center).T
    return (dx * dx + dy * dy) + dz * dz
