"""Scans of every nasty kind through small detectors of each family.

Each is answered (a finite map of the right shape, the documented score, the same bits when asked
again, by two callers at once and with two threads, arguments left alone) or refused with
InvalidInputError or EmptyScanError, in time and in bounded memory. So is one whose arrays are
rewritten during the call, but for the bits.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from robustness.attack import (
    ANSWER,
    DIFFERENT_REPEAT,
    NOT_FINITE,
    REFUSAL,
    WRONG_ANSWER,
    WRONG_EXCEPTION,
    Outcome,
    Work,
    run_guarded,
)

import mmad_fast
from mmad_fast.errors import InvalidInputError
from mmad_fast.threads import set_num_threads

LIMIT_S = 10.0
"""A scan takes milliseconds; the slowest kinds of the largest size tenths of a second."""
LIMIT_MIB = 1024.0
"""Of the process with all detectors, which has 150 MiB before the first scan."""
FAMILIES = {
    **{"cfm": 35.0, "cfm-fpfh": 10.0, "m3dm": 15.0},
    **{"btf": 10.0, "ast": 10.0, "mmrd": 10.0, "patch_color": 10.0},
}
"""How often each is asked: CFM reads most of a scan, and is what most people run."""
Rng = np.random.Generator
Image = NDArray[Any]
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class HostileScan:
    """The arguments of a call of `Detector.infer`.

    Attributes:
        rgb, xyz, unit: As given.
        kind: What is nasty about it.
        is_nonsense: An answer would be a fault: the documented types and shapes are others.
    """

    rgb: Any
    xyz: Any
    unit: Any = "m"
    kind: str = ""
    is_nonsense: bool = False


def run(count: int, seed: int) -> Iterator[Outcome]:
    """What became of `count` hostile scans."""
    with tempfile.TemporaryDirectory(prefix="hostile-scans-") as folder:
        outcomes = run_guarded(
            open_detectors, (folder, seed), range(count), limit_s=LIMIT_S, limit_mib=LIMIT_MIB
        )
        for case, outcome in enumerate(outcomes):
            if outcome.case == str(
                case
            ):  # it ended its process, which so could not say what it was
                family, scan, _ = draw(seed, case)
                outcome = outcome._replace(case=_label(case, family, scan))
            yield outcome


def _label(case: int, family: str, scan: HostileScan) -> str:
    return f"{case}: {family}, {scan.kind}"


def draw(seed: int, case: int) -> tuple[str, HostileScan, Rng]:
    """(the family that is asked, the scan, what else is random) of a case."""
    rng = np.random.default_rng([seed, case])
    return _pick(rng, FAMILIES), hostile_scan(rng), rng


# --- what is asked of a detector


def open_detectors(folder: str, seed: int) -> Work:
    """Scores the hostile scan of a number with a detector of one family."""
    from tiny_artifacts import write_small_artifacts

    detectors = {
        family: {threads: mmad_fast.load(path, num_threads=threads) for threads in (1, 2)}
        for family, path in write_small_artifacts(Path(folder)).items()
    }

    def work(case: int) -> Outcome:
        family, scan, rng = draw(seed, case)
        chosen, way = detectors[family], rng.random()
        if way < 0.03:
            outcome = judge_rewritten(chosen, scan, rng)
        else:
            outcome = judge(chosen, scan, asks_two_threads=way < 0.3, asks_at_once=way > 0.95)
        return outcome._replace(case=_label(case, family, scan))

    return work


def judge(
    detectors: dict[int, mmad_fast.Detector],
    scan: HostileScan,
    *,
    asks_two_threads: bool = False,
    asks_at_once: bool = False,
) -> Outcome:
    """What becomes of a scan."""
    before = _bits_of(scan.rgb), _bits_of(scan.xyz)
    set_num_threads(1)
    first = ask(detectors[1], scan)
    outcome = _judge_first(first, detectors[1], scan)
    if outcome.is_fault:
        return outcome
    if _bits(ask(detectors[1], scan)) != _bits(first):
        return Outcome(DIFFERENT_REPEAT, what="asked again")
    if asks_two_threads:
        set_num_threads(2)
        if _bits(ask(detectors[2], scan)) != _bits(first):
            return Outcome(DIFFERENT_REPEAT, what="with two threads")
    if asks_at_once:
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: ask(detectors[1], scan), "ab"))
        if any(_bits(one) != _bits(first) for one in both):
            return Outcome(DIFFERENT_REPEAT, what="by two callers at once")
    if (_bits_of(scan.rgb), _bits_of(scan.xyz)) != before:
        return Outcome(WRONG_ANSWER, what="the arguments were changed")
    return outcome


def judge_rewritten(
    detectors: dict[int, mmad_fast.Detector], scan: HostileScan, rng: Rng
) -> Outcome:
    """What becomes of a scan whose arrays another thread writes into during the call."""
    if scan.is_nonsense or not isinstance(scan.xyz, np.ndarray) or scan.xyz.dtype.kind != "f":
        return judge(detectors, scan)
    with np.errstate(all="ignore"):
        xyz = np.array(scan.xyz, np.float32, order="C")  # which is read in place
    scan, is_done = replace(scan, xyz=xyz), threading.Event()
    values = [xyz.copy(), *(np.full_like(xyz, value) for value in (0, np.nan, np.inf, 1e30, 0.5))]
    order = rng.permutation(len(values))

    def rewrite() -> None:
        while not is_done.is_set():
            for place in order:
                xyz[:] = values[place]

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        answer = ask(detectors[1], scan)
    finally:
        is_done.set()
        thread.join()
    outcome = _judge_first(answer, detectors[1], scan)
    what = f"rewritten during the call: {outcome.what}"
    return outcome._replace(what=what) if outcome.is_fault else outcome


def ask(detector: mmad_fast.Detector, scan: HostileScan) -> mmad_fast.Result | Exception:
    try:
        return detector.infer(scan.rgb, scan.xyz, unit=scan.unit)
    except Exception as error:
        return error


def _judge_first(
    answer: mmad_fast.Result | Exception, detector: mmad_fast.Detector, scan: HostileScan
) -> Outcome:
    if isinstance(answer, Exception):
        return _judge_error(answer)
    return _judge_result(answer, detector, scan)


def _judge_error(error: Exception) -> Outcome:
    if isinstance(error, InvalidInputError):
        return Outcome(REFUSAL, what=str(error))
    return Outcome(WRONG_EXCEPTION, what=f"{type(error).__name__}: {error}")


def _judge_result(
    result: mmad_fast.Result, detector: mmad_fast.Detector, scan: HostileScan
) -> Outcome:
    anomaly_map, score = result.anomaly_map, result.image_score
    size = detector.options.grid_size
    if scan.is_nonsense:
        return Outcome(WRONG_ANSWER, what=f"{scan.kind} was accepted")
    if anomaly_map.shape != (size, size) or anomaly_map.dtype != np.float32:
        return Outcome(WRONG_ANSWER, what=f"map {anomaly_map.dtype} {anomaly_map.shape}")
    if not (np.isfinite(anomaly_map).all() and np.isfinite(score)):
        return Outcome(NOT_FINITE, what=f"score {score}")
    if detector.family.score_is_map_maximum and score != anomaly_map.max():
        return Outcome(WRONG_ANSWER, what=f"score {score}, map's maximum {anomaly_map.max()}")
    if result.is_anomalous != (score > detector.threshold):
        return Outcome(WRONG_ANSWER, what=f"score {score} and anomalous {result.is_anomalous}")
    native = result.native_anomaly_map
    if native.shape != scan.rgb.shape[:2]:
        return Outcome(WRONG_ANSWER, what=f"native map {native.shape}")
    if not np.isfinite(native).all():
        return Outcome(NOT_FINITE, what="native map")
    return Outcome(ANSWER)


def _bits(answer: mmad_fast.Result | Exception) -> tuple[Any, ...]:
    if isinstance(answer, Exception):
        return type(answer), str(answer)
    return answer.image_score, answer.is_anomalous, answer.anomaly_map.tobytes()


def _bits_of(array: Any) -> bytes | None:
    is_plain = isinstance(array, np.ndarray) and not array.dtype.hasobject
    return array.tobytes() if is_plain else None


# --- the scans


def hostile_scan(rng: Rng) -> HostileScan:
    """A surface with one or more things wrong."""
    shape = _pick(rng, SURFACES)
    is_slow_when_large = shape is _dense_clumps and rng.random() < 0.3
    height, width = (_large if is_slow_when_large else _pick(rng, SIZES))(rng)
    xyz = shape(rng, height, width)
    names = [f"{height}x{width}", _name(shape)]
    for _ in range(rng.choice([0, 1, 1, 2])):
        change = _pick(rng, CONTENTS)
        with np.errstate(all="ignore"):
            xyz = change(rng, xyz)
        names.append(_name(change))
    color = _pick(rng, COLORS)
    names.append(_name(color))
    unit: Any = "m"
    if rng.random() < 0.3:
        unit, factor = UNITS[rng.integers(len(UNITS))]
        with np.errstate(all="ignore"):
            xyz = xyz * xyz.dtype.type(factor)
        names.append(f"unit {unit!r} x {factor:g}")
    scan = HostileScan(color(rng, height, width), xyz, unit)
    if rng.random() < 0.6:
        layout = _pick(rng, LAYOUTS)
        scan = layout(rng, scan)
        names.append(_name(layout))
    return replace(scan, kind=", ".join(names))


def _pick(rng: Rng, choices: dict[Choice, float]) -> Choice:
    """One of them, as often as its weight says."""
    weights = np.fromiter(choices.values(), float)
    return list(choices)[rng.choice(len(choices), p=weights / weights.sum())]


def _name(function: Callable[..., Any]) -> str:
    return function.__name__.strip("_").replace("_", " ")


def _small(rng: Rng) -> tuple[int, int]:
    side = int(rng.integers(32, 65))
    return side, int(rng.integers(32, 65)) if rng.random() < 0.5 else side


def _medium(rng: Rng) -> tuple[int, int]:
    return int(rng.integers(33, 161)), int(rng.integers(33, 161))


def _large(rng: Rng) -> tuple[int, int]:
    return int(rng.integers(200, 401)), int(rng.integers(200, 401))


def _thin(rng: Rng) -> tuple[int, int]:
    short, long = int(rng.choice([1, 2, 31, 32, 33])), int(rng.integers(1, 600))
    return (short, long) if rng.random() < 0.5 else (long, short)


def _longest(rng: Rng) -> tuple[int, int]:
    return (
        (2000, int(rng.choice([1, 32]))) if rng.random() < 0.5 else (int(rng.choice([1, 32])), 2000)
    )


def _tiny(rng: Rng) -> tuple[int, int]:
    return int(rng.integers(1, 34)), int(rng.integers(1, 34))


SIZES = {_small: 75.0, _medium: 18.0, _large: 2.0, _tiny: 2.0, _thin: 2.0, _longest: 0.3}


def _grid(height: int, width: int, depth: Any, pitch: float = 0.0004) -> Image:
    """Points `pitch` apart at this depth."""
    xyz = np.empty((height, width, 3))
    xyz[..., 0] = (np.arange(width) - width / 2 + 0.25) * pitch
    xyz[..., 1] = ((np.arange(height) - height / 2 + 0.25) * pitch)[:, None]
    xyz[..., 2] = depth
    return xyz


def _radius(height: int, width: int) -> Image:
    rows, columns = np.arange(height)[:, None], np.arange(width)
    return np.hypot(rows / height - 0.5, columns / width - 0.5)


def _part_on_a_plane(rng: Rng, height: int, width: int) -> Image:
    radius = _radius(height, width)
    depth = np.where(radius < 0.3, 0.48 + 0.004 * np.cos(12 * radius), 0.5)
    return _grid(height, width, depth + rng.normal(0, 1e-4, depth.shape), rng.uniform(1e-4, 3e-3))


def _part_alone(rng: Rng, height: int, width: int) -> Image:
    xyz = _part_on_a_plane(rng, height, width)
    xyz[_radius(height, width) >= rng.uniform(0.02, 0.5)] = 0
    return xyz


def _plane(rng: Rng, height: int, width: int) -> Image:
    depth = 0.5 + rng.normal() * 0.1 * (np.arange(width) / width)
    return _grid(height, width, depth + rng.normal(0, 1e-4, (height, width)))


def _perfect_plane(rng: Rng, height: int, width: int) -> Image:
    return _grid(height, width, 0.5, rng.uniform(1e-4, 1e-2))


def _nothing(_rng: Rng, height: int, width: int) -> Image:
    return np.zeros((height, width, 3))


def _one_value(rng: Rng, height: int, width: int) -> Image:
    return np.full((height, width, 3), rng.choice([0.5, 1e-3, 20.0, -0.3, 1.0, 0.0050001]))


def _constant_axis(rng: Rng, height: int, width: int) -> Image:
    xyz = _part_on_a_plane(rng, height, width)
    xyz[..., rng.integers(3)] = rng.choice([0.0, 0.1, 0.5])
    return xyz


def _noise(rng: Rng, height: int, width: int) -> Image:
    return rng.normal(0, rng.choice([1e-3, 0.1, 1.0, 5.0]), (height, width, 3))


def _coincident(rng: Rng, height: int, width: int) -> Image:
    few = rng.normal((0, 0, 0.5), 0.1, (int(rng.integers(1, 6)), 3))
    return few[rng.integers(len(few), size=(height, width))]


def _collinear(rng: Rng, height: int, width: int) -> Image:
    direction = rng.normal(0, 1, 3) * (rng.random(3) < 0.7) + 1e-9
    return (0.1, 0.1, 0.5) + direction * rng.random((height, width, 1)) * 0.2


CELL_M = 0.006 / 3**0.5 * (1 - 1e-6)
"""Side of the cells that the clean-up sorts points into (csrc/foreground)."""


def _dense_clumps(rng: Rng, height: int, width: int) -> Image:
    """A few, at the edges of neighbouring cells of the clean-up: it may compare all points of one
    with all of another in vain. Nothing at the rim, where a background would be looked for."""
    xyz = np.zeros((height, width, 3))
    inner = xyz[10:-10, 10:-10] if min(height, width) > 40 else xyz
    # Of the first two the box is within the radius of the third, and none of their points.
    places = np.array([(0.02, 0.98, 0.5), (0.98, 0.02, 0.5), (-0.98, -0.98, 0.5)])
    if rng.random() < 0.5:
        shape = (int(rng.integers(3, 6)), 3)
        places = rng.integers(-1, 2, shape) + rng.choice([0.02, 0.5, 0.98], shape)
    centers = CELL_M * (np.round(0.4 / CELL_M) + rng.permutation(places, axis=1))
    inner[:] = centers[rng.integers(len(centers), size=inner.shape[:2])]
    inner += rng.random(inner.shape) * 10.0 ** rng.uniform(-7, -4.5)
    return xyz


def _few_points(rng: Rng, height: int, width: int) -> Image:
    xyz = np.zeros((height, width, 3))
    rows, columns = rng.integers(height, size=3), rng.integers(width, size=3)
    number = int(rng.choice([1, 2, 3]))
    xyz[rows[:number], columns[:number]] = rng.normal((0, 0, 0.5), 0.05, (number, 3))
    return xyz


def _little_foreground(rng: Rng, height: int, width: int) -> Image:
    """About as many points as a group holds."""
    xyz = np.zeros((height, width, 3))
    place = rng.permutation(height * width)[: int(rng.integers(1, 40))]
    xyz.reshape(-1, 3)[place] = _part_on_a_plane(rng, height, width).reshape(-1, 3)[place]
    return xyz


def _spacing_of_the_radius(rng: Rng, height: int, width: int) -> Image:
    """Neighbours as far apart as the clean-up joins, give or take a rounding."""
    pitch = rng.choice([0.005, 0.006, 0.01]) * (1 + rng.choice([-1, 0, 1]) * 2.0**-23)
    depth = 0.5 + pitch * rng.integers(0, 2, (height, width))
    return _grid(height, width, depth, pitch)


def _steps(rng: Rng, height: int, width: int) -> Image:
    depth = 0.4 + 0.01 * rng.integers(0, 5, (height // 8 + 1, width // 8 + 1))
    return _grid(height, width, np.kron(depth, np.ones((8, 8)))[:height, :width])


SURFACES = {
    _part_on_a_plane: 20.0, _part_alone: 20.0, _plane: 2.0, _perfect_plane: 1.0, _nothing: 0.5,
    _one_value: 1.0, _constant_axis: 2.0, _noise: 2.0, _coincident: 2.0, _collinear: 2.0,
    _dense_clumps: 2.0, _few_points: 1.0, _little_foreground: 2.0, _spacing_of_the_radius: 2.0,
    _steps: 2.0,
}  # fmt: skip


def _where(rng: Rng, xyz: Image) -> Image:
    """(H, W) bool: single pixels, many, a row, a block, a checkerboard, or all."""
    height, width = xyz.shape[:2]
    mask = np.zeros((height, width), bool)
    kind = rng.integers(7)
    if kind < 3:
        return rng.random((height, width)) < (0.001, 0.3, 0.95)[kind]
    if kind == 3:
        mask[rng.integers(height)] = True
    elif kind == 4:
        mask[rng.integers(height) :, rng.integers(width) :] = True
    elif kind == 5:
        mask[::2, ::2] = mask[1::2, 1::2] = True
    else:
        mask[:] = rng.random() < 0.2
    return mask


VALUES = (
    np.nan, np.inf, -np.inf, -0.0, 0.0, 5e-324, 1e-45, 1e-38, 1e-30, 1e38, -1e38, 1.7e308, 1e19,
    1e10, -9999.0, -1.0, 10.0, 19.999, 65535.0, 32.767, -1e-12, 0.5, -0.5, 0.003,
)  # fmt: skip


def _value(rng: Rng) -> float:
    return VALUES[rng.integers(len(VALUES))]


def _marked(rng: Rng, xyz: Image) -> Image:
    """The same value in all three coordinates, as cameras mark what they did not measure."""
    xyz[_where(rng, xyz)] = _value(rng)
    return xyz


def _marked_by_axis(rng: Rng, xyz: Image) -> Image:
    xyz[_where(rng, xyz)] = [_value(rng) for _ in range(3)]
    return xyz


def _one_coordinate_marked(rng: Rng, xyz: Image) -> Image:
    xyz[_where(rng, xyz), rng.integers(3)] = _value(rng)
    return xyz


def _all_values(rng: Rng, xyz: Image) -> Image:
    where = _where(rng, xyz)
    xyz[where] = rng.choice(VALUES, size=(int(where.sum()), 3))
    return xyz


def _any_bits(rng: Rng, xyz: Image) -> Image:
    """What a broken transfer leaves."""
    where = _where(rng, xyz)
    count = int(where.sum())
    bits = np.frombuffer(rng.bytes(12 * count), np.float32).reshape(count, 3)
    xyz[where] = bits
    return xyz


def _holes(rng: Rng, xyz: Image) -> Image:
    xyz[_where(rng, xyz)] = 0
    return xyz


def _quantised(rng: Rng, xyz: Image) -> Image:
    step = rng.choice([1e-6, 1e-4, 1e-3, 2.0**-10, 0.01])
    return np.round(xyz / step) * step


def _quantised_depth(rng: Rng, xyz: Image) -> Image:
    step = rng.choice([1e-4, 1e-3, 0.01])
    xyz[..., 2] = np.round(xyz[..., 2] / step) * step
    return xyz


def _scaled(rng: Rng, xyz: Image) -> Image:
    return xyz * 10.0 ** rng.uniform(-3, 2)


def _one_axis_scaled(rng: Rng, xyz: Image) -> Image:
    xyz[..., rng.integers(3)] *= 10.0 ** rng.uniform(-12, 4)
    return xyz


def _far_away(rng: Rng, xyz: Image) -> Image:
    return xyz + rng.normal(0, 1, 3) * rng.choice([0.01, 0.1, 5.0, 15.0, 1e3])


def _units_mixed(rng: Rng, xyz: Image) -> Image:
    xyz[_where(rng, xyz)] *= 1000
    return xyz


def _negated(rng: Rng, xyz: Image) -> Image:
    return xyz * rng.choice([-1.0, 1.0], 3)


def _permuted_pixels(rng: Rng, xyz: Image) -> Image:
    return rng.permutation(xyz.reshape(-1, 3)).reshape(xyz.shape)


def _outliers(rng: Rng, xyz: Image) -> Image:
    where = rng.random(xyz.shape[:2]) < 0.01
    xyz[where] += rng.normal(0, rng.choice([0.01, 1.0, 6.0]), (int(where.sum()), 3))
    return xyz


CONTENTS = dict.fromkeys(
    (
        _marked, _marked_by_axis, _one_coordinate_marked, _all_values, _any_bits, _holes,
        _quantised, _quantised_depth, _scaled, _one_axis_scaled, _far_away, _units_mixed, _negated,
        _permuted_pixels, _outliers,
    ),
    1.0,
)  # fmt: skip


def _any_color(rng: Rng, height: int, width: int) -> Image:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _one_color(rng: Rng, height: int, width: int) -> Image:
    return np.full((height, width, 3), rng.choice([0, 1, 127, 254, 255]), np.uint8)


def _board_of_colors(_rng: Rng, height: int, width: int) -> Image:
    board = (np.arange(height)[:, None] + np.arange(width)) % 2 * 255
    return np.repeat(board[..., None], 3, axis=2).astype(np.uint8)


COLORS = {_any_color: 4.0, _one_color: 2.0, _board_of_colors: 1.0}

UNITS: tuple[tuple[Any, float], ...] = (
    *[("mm", 1000.0)] * 20, ("mm", 1.0), ("m", 1000.0), ("m", 100.0), ("cm", 100.0), ("", 1.0),
    (None, 1.0), (0, 1.0), ("M", 1.0), (["m"], 1.0),
)  # fmt: skip


def _float32(_rng: Rng, scan: HostileScan) -> HostileScan:
    with np.errstate(all="ignore"):
        return replace(scan, xyz=scan.xyz.astype(np.float32))


def _fortran_order(_rng: Rng, scan: HostileScan) -> HostileScan:
    return replace(scan, rgb=np.asfortranarray(scan.rgb), xyz=np.asfortranarray(scan.xyz))


def _views(rng: Rng, scan: HostileScan) -> HostileScan:
    """Negative and long strides of a larger array."""

    def view(array: Image) -> Image:
        height, width = array.shape[:2]
        larger = np.full((2 * height, width + 3, 3), array.dtype.type(7))
        larger[::2, 1 : width + 1] = array[::-1, ::-1]
        return larger[::2, 1 : width + 1][::-1, ::-1]

    return replace(scan, rgb=view(scan.rgb), xyz=view(scan.xyz))


def _broadcast(_rng: Rng, scan: HostileScan) -> HostileScan:
    """Strides of 0."""
    shape = scan.xyz.shape
    return replace(
        scan,
        rgb=np.broadcast_to(scan.rgb[:1, :1], shape),
        xyz=np.broadcast_to(scan.xyz[:, :1], shape),
    )


def _byte_swapped(_rng: Rng, scan: HostileScan) -> HostileScan:
    return replace(scan, xyz=scan.xyz.astype(scan.xyz.dtype.newbyteorder()))


def _read_only(_rng: Rng, scan: HostileScan) -> HostileScan:
    rgb, xyz = scan.rgb.copy(), scan.xyz.copy()
    rgb.flags.writeable = xyz.flags.writeable = False
    return replace(scan, rgb=rgb, xyz=xyz)


def _unaligned(_rng: Rng, scan: HostileScan) -> HostileScan:
    size = scan.xyz.nbytes
    memory = np.empty(size + 1, np.uint8)
    xyz = memory[1:].view(scan.xyz.dtype).reshape(scan.xyz.shape)
    xyz[:] = scan.xyz
    return replace(scan, xyz=xyz)


def _masked(rng: Rng, scan: HostileScan) -> HostileScan:
    mask = np.repeat(_where(rng, scan.xyz)[..., None], 3, axis=2)
    return replace(scan, xyz=np.ma.masked_array(scan.xyz, mask & (rng.random(3) < 0.8)))


def _lists(_rng: Rng, scan: HostileScan) -> HostileScan:
    """Python's own numbers: rgb is int64 then."""
    return replace(scan, rgb=scan.rgb[:8].tolist(), xyz=scan.xyz[:8].tolist(), is_nonsense=True)


def _other_types(rng: Rng, scan: HostileScan) -> HostileScan:
    name = rng.choice(
        ["f2", "i2", "u2", "i4", "i8", "u1", "c16", "O", "S8", "U8", "M8[s]", "?", "g"]
    )
    with np.errstate(all="ignore"):
        xyz = np.nan_to_num(scan.xyz).clip(-100, 100).astype("i8" if name == "M8[s]" else name)
    xyz = xyz.astype(name)
    is_float64 = xyz.dtype == np.float64  # as long doubles are on some processors
    return replace(scan, xyz=xyz, is_nonsense=not is_float64)


def _other_colors(rng: Rng, scan: HostileScan) -> HostileScan:
    name = rng.choice(["f4", "f8", "i1", "u2", "i8", "?", "O", "c8"])
    return replace(scan, rgb=scan.rgb.astype(name), is_nonsense=True)


def _other_shapes(rng: Rng, scan: HostileScan) -> HostileScan:
    rgb, xyz = scan.rgb, scan.xyz
    record = np.zeros((4, 4), [("x", "f4"), ("y", "f4"), ("z", "f4")])
    choices: tuple[tuple[Any, Any], ...] = (
        (rgb[..., 0], xyz), (rgb, xyz[..., 2]), (rgb[None], xyz[None]), (rgb[:, :, :2], xyz),
        (rgb, np.concatenate([xyz, xyz], axis=2)), (rgb[:-1], xyz), (rgb, xyz[:, :-1]),
        (rgb[:0], xyz[:0]), (rgb[:, :0], xyz[:, :0]), (rgb.ravel(), xyz.ravel()),
        (rgb, xyz.reshape(-1, 3)), (rgb, record), (rgb[..., :1], xyz[..., :1]),
        (rgb.transpose(2, 0, 1), xyz.transpose(2, 0, 1)), (np.uint8(3), np.float32(0.5)),
        (rgb, [[1.0, 2.0], [3.0]]), (None, xyz), (rgb, None), ("rgb", "xyz"), (rgb, {"z": xyz}),
    )  # fmt: skip
    chosen = int(rng.integers(len(choices)))
    found = choices[chosen]
    shapes = _shape(found[0]), _shape(found[1])
    # A channels-first scan that is 3 pixels wide has the right shape.
    is_right = shapes[0] == shapes[1] and shapes[0][2:] == (3,) and 0 not in shapes[0]
    return replace(scan, rgb=found[0], xyz=found[1], is_nonsense=not is_right)


def _shape(array: Any) -> tuple[int, ...]:
    return array.shape if isinstance(array, np.ndarray) else ()


LAYOUTS = {
    _float32: 40.0, _fortran_order: 5.0, _views: 5.0, _broadcast: 1.0, _byte_swapped: 5.0,
    _read_only: 5.0, _unaligned: 3.0, _masked: 5.0, _lists: 0.5, _other_types: 2.0,
    _other_colors: 1.0, _other_shapes: 3.0,
}  # fmt: skip
