"""cosine_maps beside the published steps in torch and SciPy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ops import case as bench
from ops.inputs import Floats

from mmad_fast.ops.cosine_maps import cosine_maps

if TYPE_CHECKING:
    from gpu.device import Device

SHAPES = {
    "WideResNet50-2": ((256, 64, 64), (512, 32, 32), (1024, 16, 16)),
    "ViT-S/14": ((384, 28, 28),) * 3,
}
"""(C, H, W) of the levels."""
MAP_SIZES = {"WideResNet50-2": 256, "ViT-S/14": 224}
SIGMA = 4.0
PAIR_FLOP = 6
"""Of two numbers: a product and two squares, and their sums."""

PIECES = tuple(SHAPES)
MAX_DIFFERENCE = 1e-5
"""Of the peers, which are float32."""

Levels = Sequence[Floats]


def make_levels(name: str) -> tuple[Levels, Levels]:
    """(targets, restored) of the shapes that have the name."""
    rng = np.random.default_rng(0)
    targets = [rng.standard_normal(shape, np.float32) for shape in SHAPES[name]]
    return targets, [one + rng.standard_normal(one.shape, np.float32) for one in targets]


def torch_map(targets: Sequence[Any], restored: Sequence[Any], size: int) -> Any:
    """The published steps up to the smoothing, on tensors (C, H, W)."""
    import torch.nn.functional as F

    total: Any = 0
    for target, other in zip(targets, restored, strict=True):
        distances = 1 - F.cosine_similarity(target, other, dim=0)
        total += F.interpolate(
            distances[None, None], size=(size, size), mode="bilinear", align_corners=True
        )[0, 0]
    return total


def torch_and_scipy(
    targets: Levels, restored: Levels, size: int, num_threads: int
) -> Callable[[], NDArray]:
    from scipy.ndimage import gaussian_filter

    torch = bench.with_threads(num_threads)
    pair = [[torch.from_numpy(one) for one in maps] for maps in (targets, restored)]
    return lambda: gaussian_filter(torch_map(pair[0], pair[1], size).numpy(), SIGMA)


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """The levels of one teacher, or of all."""
    for name in PIECES:
        if options.only not in (None, name):
            continue
        levels, size = make_levels(name), MAP_SIZES[name]
        ours = partial(cosine_maps, *levels, size=size, sigma=SIGMA)
        makes: dict[str, bench.Make] = {
            "mmad-fast": partial(partial, ours),
            "torch + SciPy": partial(torch_and_scipy, *levels, size, options.threads),
        }
        exact = ours(backend="reference")
        yield bench.Case(
            "cosine_maps",
            {"S": size, "levels": len(levels[0])},
            bench.contenders("cosine_maps", makes),
            data=name,
            error_of=partial(_difference, exact),
            max_error=MAX_DIFFERENCE,
            same="same map up to float32's rounding",
        )


def _difference(exact: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    return float(np.abs(got - exact).max())


def work(shapes: Sequence[tuple[int, int, int]], size: int) -> bench.Work:
    """The features' products, and the products with the weights along both axes."""
    numbers = sum(channels * height * width for channels, height, width in shapes)
    products = sum(size * height * width + size * size * width for _, height, width in shapes)
    return bench.Work(
        plain_flop=PAIR_FLOP * numbers + 2 * products,
        device_bytes=bench.FLOAT_BYTES * (2 * numbers + size * size),
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    for name in PIECES:
        yield bench.one(gpu_case, name, device)


def gpu_case(name: str, device: Device) -> bench.Case:
    targets, restored = make_levels(name)
    size = MAP_SIZES[name]
    arrays = [[device.array(one) for one in maps] for maps in (targets, restored)]
    target_tensors, restored_tensors = (
        [device.tensor(one) for one in maps] for maps in (targets, restored)
    )
    backend = bench.public_backend(device, "cuda")
    exact = cosine_maps(targets, restored, size=size, sigma=0, backend="reference")
    return bench.Case(
        "cosine_maps",
        {"S": size, "levels": len(targets)},
        [
            bench.ours("cuda", lambda: cosine_maps(*arrays, size=size, sigma=0, backend=backend)),
            bench.baseline(
                "cosine_similarity and interpolate",
                lambda: torch_map(target_tensors, restored_tensors, size),
            ),
        ],
        data=name,
        work=work(SHAPES[name], size),
        error_of=lambda got: _difference(exact, bench.host(got)),
        max_error=MAX_DIFFERENCE,
    )
