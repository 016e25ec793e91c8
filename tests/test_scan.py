"""Scan.from_arrays: what is a point and what stands for no measurement."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from conftest import make_arrays
from numpy.typing import NDArray

import mmad_fast
from mmad_fast import Scan
from mmad_fast.data.eyecandies import depth_to_world, foreground_mask
from mmad_fast.errors import InvalidInputError
from mmad_fast.missing_values import MissingValue

SIZE = 128
MARKS_MM = (-9999, -1, 0.5, 65535, 32767, 1e10, 10_000, -3.4e38)


def part_mm(size: int = SIZE, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(xyz (H, W, 3) float64 millimetres everywhere, where the part is): a dome half a metre off,
    seen by a pinhole camera; it takes a third of the image."""
    rng = np.random.default_rng(seed)
    u, v = np.meshgrid(np.arange(size) - size / 2 + 0.5, np.arange(size) - size / 2 + 0.5)
    squared_radius = (u**2 + v**2) / (0.33 * size) ** 2
    z = 500 - 20 * np.sqrt(np.clip(1 - squared_radius, 0, 1)) + rng.normal(0, 0.05, u.shape)
    xyz = np.stack([u * z / (7 * size), v * z / (7 * size), z], axis=-1)
    return xyz, squared_radius < 1


def scan_of(xyz: NDArray, **options) -> Scan:
    return Scan.from_arrays(np.zeros(xyz.shape, np.uint8), xyz, **options)


def measured(scan: Scan) -> NDArray[np.bool_]:
    """By the published rule; a pixel that is not measured must be (0, 0, 0)."""
    by_rule = (scan.xyz != 0).all(axis=-1)
    np.testing.assert_array_equal(by_rule, (scan.xyz != 0).any(axis=-1))
    return by_rule


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mark", MARKS_MM)
@pytest.mark.parametrize("unit", ["m", "mm"])
def test_one_point_at_many_pixels_is_no_measurement(dtype, mark: float, unit: str) -> None:
    xyz, is_part = part_mm()
    numbers = (xyz if unit == "mm" else xyz / 1000).astype(dtype)
    zeros = np.where(is_part[..., None], numbers, dtype(0))
    marked = np.where(is_part[..., None], numbers, dtype(mark))
    scan, expected = scan_of(marked, unit=unit), scan_of(zeros, unit=unit)
    np.testing.assert_array_equal(scan.xyz, expected.xyz)
    assert expected.missing_values == ()
    (value,) = scan.missing_values
    assert value.point == (pytest.approx(mark),) * 3
    assert value.share == pytest.approx((~is_part).mean())
    assert scan.missing_share == pytest.approx((~is_part).mean())


def test_each_axis_may_have_its_own_mark() -> None:
    xyz, is_part = part_mm()
    marked = np.where(is_part[..., None], xyz, [-99.5, 12.25, 65535.0]).astype(np.float32)
    scan = scan_of(marked, unit="mm")
    np.testing.assert_array_equal(measured(scan), is_part)
    assert scan.missing_values[0].point == (-99.5, 12.25, 65535.0)


def test_small_holes_are_found() -> None:
    xyz, is_part = part_mm()
    holes = np.zeros_like(is_part)
    holes[60:63, 60:63] = holes[70, 50:57] = True  # 16 pixels
    for is_hole, is_found in ((holes, True), (np.roll(holes, 5, 0) & (xyz[..., 0] > -3), False)):
        marked = np.where(is_hole[..., None], -9.999, xyz).astype(np.float32)
        scan = scan_of(marked, unit="mm")
        assert is_hole.sum() == 16 or not is_found
        np.testing.assert_array_equal(measured(scan), ~is_hole | (not is_found))
    known = scan.without([(-9.999, -9.999, -9.999)])  # as of a fit that saw it elsewhere
    np.testing.assert_array_equal(measured(known), ~is_hole)


def test_several_marks_are_found() -> None:
    xyz, is_part = part_mm()
    marked = np.where(is_part[..., None], xyz, -9999.0)
    marked[:20] = 0.0
    marked[20:25] = [1.0, 2.0, 3.0]
    scan = scan_of(marked.astype(np.float32), unit="mm")
    assert [value.point for value in scan.missing_values] == [(-9999.0,) * 3, (1.0, 2.0, 3.0)]


@pytest.mark.parametrize("mark", [-9999.0, -1.0, 65535.0, 0.0, 1e10])
@pytest.mark.parametrize("grid", ["pinhole", "gridded"])
def test_a_mark_in_z_alone_is_no_measurement(mark: float, grid: str) -> None:
    """x and y computed from the mark, or from the pixel, as height maps have them."""
    xyz, is_part = part_mm()
    size = len(xyz)
    u, v = np.meshgrid(np.arange(size) - size / 2 + 0.5, np.arange(size) - size / 2 + 0.5)
    z = np.where(is_part, xyz[..., 2], mark)
    scale = z / (7 * size) if grid == "pinhole" else np.full_like(z, 0.5)
    marked = np.stack([u * scale, v * scale, z], axis=-1).astype(np.float32)
    np.testing.assert_array_equal(measured(scan_of(marked, unit="mm")), is_part)


@pytest.mark.parametrize("step", [0.1, 1.0])
def test_heights_around_zero_are_measured(step: float) -> None:
    """A height scanner whose zero is the table: z of exactly 0 is most of the scan."""
    columns, rows = np.meshgrid(np.arange(SIZE) * 0.5, np.arange(SIZE) * 0.5)
    noise = np.random.default_rng(0).normal(0, 0.3 * step, columns.shape)
    block = (columns > 20) & (columns < 40) & (rows > 20) & (rows < 40)
    heights = np.round((10.0 * block + noise) / step) * step
    assert 0.3 < (heights == 0).mean() < 0.9
    xyz = np.stack([columns, rows, heights], axis=-1).astype(np.float32)
    scan = scan_of(xyz, unit="mm")
    expected = np.ones_like(block)
    expected[0, 0] = heights[0, 0] != 0
    np.testing.assert_array_equal(measured(scan), expected)
    np.testing.assert_allclose(scan.xyz, xyz / 1000, rtol=1e-7, atol=2e-9)


def test_a_flat_part_on_a_flat_table_is_measured() -> None:
    """No noise at all: each height stands at many pixels."""
    columns, rows = np.meshgrid(np.arange(SIZE) * 0.5, np.arange(SIZE) * 0.5)
    for table, top in ((500.0, 420.0), (3.0, 8.0), (-8.0, -2.0)):
        heights = np.where((columns > 20) & (rows > 20), top, table)
        scan = scan_of(np.stack([columns + 1, rows + 1, heights], axis=-1), unit="mm")
        assert measured(scan).all()
        assert scan.missing_values == ()


@pytest.mark.parametrize("marks", [(-9999,), (0.5,), (-1, -9999), (65535, -1, 1e10)])
@pytest.mark.parametrize("share", [1.0, 0.98])
def test_a_scan_of_nothing_but_marks_has_no_measurement(marks, share: float) -> None:
    values = np.zeros(96 * 96, np.float32)
    for number, mark in enumerate(marks):
        values[number : int(share * values.size) : len(marks)] = mark
    xyz = np.repeat(values.reshape(96, 96, 1), 3, axis=-1)
    scan = Scan.from_arrays(np.full(xyz.shape, 90, np.uint8), xyz, unit="m")
    assert not scan.xyz.any()
    assert {value.point for value in scan.missing_values} == {(np.float32(m),) * 3 for m in marks}


@pytest.mark.parametrize("axis", [0, 1])
def test_a_cross_of_zeros_is_measured(axis: int) -> None:
    """The principal point on a whole pixel."""
    u, v = np.meshgrid(np.arange(SIZE) - 64.0, np.arange(SIZE) - 64.0)
    z = np.full_like(u, 0.5) + np.random.default_rng(0).normal(0, 5e-5, u.shape)
    xyz = np.stack([u * z / 900, v * z / 900, z], axis=-1).astype(np.float32)
    scan = scan_of(xyz)
    assert measured(scan).all()
    is_zero = xyz[..., axis] == 0
    assert is_zero.sum() == SIZE
    assert (np.abs(scan.xyz[..., axis][is_zero]) < 1e-8).all()
    np.testing.assert_array_equal(scan.xyz[xyz != 0], xyz[xyz != 0])
    again = scan_of(scan.xyz)
    np.testing.assert_array_equal(again.xyz, scan.xyz)


def test_a_principal_point_on_a_whole_pixel_changes_no_answer(tiny_artifact) -> None:
    detector = mmad_fast.load(tiny_artifact)
    rgb, xyz = make_arrays()
    xyz[40, :, 1] = xyz[:, 50, 0] = 0
    moved = xyz.copy()
    moved[xyz == 0] = 1e-7
    centred, expected = detector.infer(rgb, xyz), detector.infer(rgb, moved)
    scale = expected.anomaly_map.max()
    np.testing.assert_allclose(centred.anomaly_map, expected.anomaly_map, rtol=0, atol=1e-4 * scale)
    assert detector.prepare(Scan.from_arrays(rgb, xyz)).pixel_indices.tolist() == (
        detector.prepare(Scan.from_arrays(rgb, moved)).pixel_indices.tolist()
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_an_axis_of_zero_at_many_pixels_is_no_measurement(axis: int) -> None:
    xyz, is_part = part_mm()
    dropped = xyz.copy()
    dropped[~is_part, axis] = 0
    np.testing.assert_array_equal(measured(scan_of(dropped / 1000)), is_part)


def test_points_dropped_by_the_published_conversion_of_eyecandies() -> None:
    """Source: method facts 1.5: dropped points become -s in a rotated frame, then (0, y, z)."""
    v = np.indices((SIZE, SIZE))[0]
    depth = 1.2 + 0.001 * v
    depth[40:80, 40:80] -= 0.1
    pose = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0.3], [0, 0, 1, 0.2], [0, 0, 0, 1]])
    points = depth_to_world(depth, pose, focal_length=180.0)
    is_part = foreground_mask(points)
    assert 0.05 < is_part.mean() < 0.5
    bottom = points[-1, SIZE // 2]
    rise, run = points[0, SIZE // 2, 1] - bottom[1], points[0, SIZE // 2, 2] - bottom[2]
    cos, sin = np.array([run, rise]) / np.hypot(rise, run)
    shift = np.array([0, bottom[1], bottom[2]])
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    upright = (points - shift) @ rotation.T
    upright[~is_part] = -shift
    converted = (upright @ rotation + shift)[..., [0, 2, 1]] * [0.1, -0.1, 0.1]
    assert (converted[~is_part, 0] == 0).all()
    assert (converted[~is_part][:, 1:] != 0).all()
    np.testing.assert_array_equal(measured(scan_of(converted)), is_part)


def test_missing_forces_a_number() -> None:
    xyz, _ = part_mm()
    numbers = xyz.astype(np.float32)
    numbers[3, 4, 1] = numbers[5, 6, 2] = np.float32(-0.1)
    numbers[7, 8] = [-0.1, -0.1, 3]
    scan = scan_of(numbers, unit="mm", missing=-0.1)
    expected = np.ones(numbers.shape[:2], bool)
    expected[[3, 5, 7], [4, 6, 8]] = False
    np.testing.assert_array_equal(measured(scan), expected)
    share = 1 / expected.size
    assert scan.missing_values == (
        MissingValue((pytest.approx(-0.1), None, None), share),
        MissingValue((None, pytest.approx(-0.1), None), share),
        MissingValue((None, None, pytest.approx(-0.1)), share),
    )
    cross = part_mm()[0]
    cross[:, 40, 0] = 0
    assert not measured(scan_of(cross, unit="mm", missing=0))[:, 40].any()
    assert measured(scan_of(cross, unit="mm"))[:, 40].all()


@pytest.mark.parametrize("missing", ["-1", np.nan, np.inf, True, [0]])
def test_missing_must_be_a_number(missing) -> None:
    with pytest.raises(InvalidInputError, match="missing is .*; it must be the number that stands"):
        scan_of(part_mm()[0], unit="mm", missing=missing)


@pytest.mark.parametrize("mark", [None, 0, -9999, 65535])
def test_a_wrong_unit_is_refused_with_the_right_advice(mark: float | None) -> None:
    xyz, is_part = part_mm()

    def with_mark(numbers: NDArray) -> NDArray:
        return numbers if mark is None else np.where(is_part[..., None], numbers, mark)

    with pytest.raises(InvalidInputError, match=r"metres.*if they are millimetres, pass unit='mm'"):
        scan_of(with_mark(xyz), unit="m")
    with pytest.raises(InvalidInputError, match="nearer than.*if they are metres, pass unit='m'"):
        scan_of(with_mark(xyz / 1000), unit="mm")
    for unit in ("m", "mm"):  # micrometres: neither
        with pytest.raises(InvalidInputError, match="check the unit of the sensor's export"):
            scan_of(with_mark(xyz * 1e6), unit=unit)
    scan_of(with_mark(xyz), unit="mm")
    scan_of(with_mark(xyz / 1000), unit="m")


def test_stray_points_far_off_are_missing(tiny_artifact) -> None:
    detector = mmad_fast.load(tiny_artifact)
    rgb, xyz = make_arrays()
    holes, strays = xyz.copy(), xyz.copy()
    at = ([10, 48, 50, 90], [10, 48, 47, 3])
    holes[at] = 0
    strays[at] = [[1, 2, 1e4], [-3e5, 1, 1], [0.1, 25, 0.5], [1e30, 1e30, 1e30]]
    result, expected = detector.infer(rgb, strays), detector.infer(rgb, holes)
    np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)


def test_millimetres_and_metres_are_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    metres = (rng.integers(-(2**17), 2**17, (256, 256, 3)) / 2**16).astype(np.float32)
    for dtype in (np.float32, np.float64):
        in_mm = metres.astype(dtype) * dtype(1000)
        np.testing.assert_array_equal(scan_of(in_mm, unit="mm").xyz, scan_of(metres).xyz)
    in_mm = rng.uniform(100, 2000, (64, 64, 3)).astype(np.float32)
    in_m = (in_mm.astype(np.float64) / 1000).astype(np.float32)
    np.testing.assert_array_equal(scan_of(in_mm, unit="mm").xyz, scan_of(in_m).xyz)


QUANTISED = [(name, step) for name in ("bottles", "laptop_0") for step in (1e-3, 2e-3, 5e-3, 1e-2)]


@pytest.mark.parametrize(("name", "step"), QUANTISED)
def test_no_point_of_a_real_frame_is_dropped(shared_folder, name: str, step: float) -> None:
    """Coarsely rounded, too: up to 130 pixels then share a point."""
    xyz = tifffile.imread(shared_folder / "data" / "real_frames" / f"{name}.tiff")
    for numbers in (xyz, np.round(xyz / np.float32(step)) * np.float32(step)):
        scan = scan_of(numbers)
        np.testing.assert_array_equal(measured(scan), (numbers != 0).any(axis=-1))
        assert scan.missing_values == ()


@pytest.mark.parametrize("category", ["cookie", "gear", "potato"])
def test_no_point_of_a_rendered_scan_is_dropped(shared_folder, category: str) -> None:
    folder = shared_folder / "data" / "rendered3d" / category
    for path in sorted(folder.glob("*/*/xyz/*.tiff"))[::20]:
        xyz = tifffile.imread(path)
        enlarged = xyz.repeat(5, axis=0).repeat(5, axis=1)  # to the resolution of the colour image
        rounded = np.round(xyz, 2)
        for numbers in (xyz, enlarged, rounded):
            scan = scan_of(numbers)
            np.testing.assert_array_equal(measured(scan), (numbers != 0).any(axis=-1))
            assert scan.missing_values == ()


def hostile_numbers(rng: np.random.Generator) -> NDArray:
    """Noise, coarse numbers, or marks of any kind at any share of the pixels."""
    marks = np.array([np.nan, np.inf, 0, -0.0, 1e-45, 3e38, -9999, -1, 65535, 20.1, 0.5, 1e300])
    shape = (*rng.integers(1, 60, 2), 3)
    numbers = rng.normal(0.5, 10.0 ** rng.integers(-4, 1), shape)
    is_marked = rng.random(shape[:2]) < rng.random()
    kind = rng.integers(4)
    if kind == 0:
        numbers = rng.choice(marks, shape)
    elif kind == 1:
        numbers = np.round(numbers, rng.integers(0, 4))
    elif kind == 2:
        numbers[is_marked] = rng.choice(marks, 3)
    else:
        numbers[is_marked, rng.integers(3)] = rng.choice(marks)
    with np.errstate(over="ignore"):
        return numbers.astype(rng.choice([np.float32, np.float64]))


def test_whatever_the_numbers_are() -> None:
    """Refused, or a scan by the published rule that is the same when it is read again."""
    rng = np.random.default_rng(0)
    num_scans = 0
    for _ in range(600):
        try:
            scan = scan_of(hostile_numbers(rng))
        except InvalidInputError:
            continue
        num_scans += 1
        assert np.isfinite(scan.xyz).all()
        if measured(scan).any():
            np.testing.assert_array_equal(scan_of(scan.xyz).xyz, scan.xyz)
    assert num_scans > 200


def test_what_was_found_does_not_depend_on_the_threads() -> None:
    from mmad_fast.threads import get_num_threads, set_num_threads

    xyz, is_part = part_mm(size=512)
    marked = np.where(is_part[..., None], xyz, -9999.0)
    marked[300:308, 250:255] = [1.0, 2.0, 3.0]  # 40 pixels
    before = get_num_threads()
    scans = []
    try:
        for count in (1, 2, 5):
            set_num_threads(count)
            scans.append(scan_of(marked, unit="mm"))
    finally:
        set_num_threads(before)
    for first, second in pairwise(scans):
        np.testing.assert_array_equal(first.xyz, second.xyz)
        assert first.missing_values == second.missing_values
    assert len(scans[0].missing_values) == 2


@pytest.mark.parametrize(
    "normals", [np.zeros((8, 8)), np.zeros((8, 8, 3)), np.zeros((8, 7, 3), np.uint8), "normals.png"]
)
def test_a_picture_of_normals_is_one_of_the_scan(normals) -> None:
    xyz = np.full((8, 8, 3), 0.5, np.float32)
    rgb = np.zeros(xyz.shape, np.uint8)
    with pytest.raises(InvalidInputError, match=r"'part': normals.* uint8 of shape \(8, 8, 3\)"):
        Scan.from_arrays(rgb, xyz, name="part", normals=normals)
    assert Scan.from_arrays(rgb, xyz, normals=rgb + 1).normals.max() == 1


def test_a_scan_keeps_nothing_of_its_arrays() -> None:
    rgb, xyz = make_arrays()
    scan = Scan.from_arrays(rgb, xyz)
    assert not np.shares_memory(scan.rgb, rgb)
    assert not np.shares_memory(scan.xyz, xyz)


def test_arrays_that_are_rewritten_meanwhile(tiny_artifact) -> None:
    """Each outcome is a finite answer or a refusal."""
    detector = mmad_fast.load(tiny_artifact)
    rgb, xyz = make_arrays(size=64)
    original = xyz.copy()
    stop = threading.Event()

    def scribble() -> None:
        rng = np.random.default_rng(0)
        hostile = np.float32([np.nan, np.inf, -np.inf, 3e38, 1e5, -9999, 0])
        while not stop.is_set():
            rows = rng.integers(0, 64, 40)
            xyz[rows] = rng.choice(hostile, (40, 64, 3))
            xyz[:] = np.where(rng.random((64, 64, 1)) < 0.9, original, xyz)

    thread = threading.Thread(target=scribble)
    thread.start()
    answers = refusals = 0
    try:
        for _ in range(60):
            try:
                result = detector.infer(rgb, xyz)
            except (InvalidInputError, mmad_fast.errors.EmptyScanError):
                refusals += 1
                continue
            answers += 1
            assert np.isfinite(result.anomaly_map).all()
    finally:
        stop.set()
        thread.join()
    assert answers + refusals == 60
    assert answers > 0


def test_the_kernels_refuse_results_of_another_size() -> None:
    from mmad_fast import _kernels

    points = np.ones((4, 5, 3), np.float32)
    for result in (np.zeros((4, 4, 3), np.float32), np.zeros((0, 0, 3), np.float32)):
        with pytest.raises(InvalidInputError, match="points and a result of different sizes"):
            _kernels.read_points(points, 1.0, None, result)
        with pytest.raises(InvalidInputError, match="points and a result of different sizes"):
            _kernels.clear_marks(points, [(1.0, None, None)], 1.0, result)
