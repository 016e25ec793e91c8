"""Tests of raw Eyecandies: geometry (reprojection, plain formulas) and the conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmad_fast.data import convert_eyecandies, open_dataset
from mmad_fast.data.eyecandies import (
    FOCAL_LENGTH,
    depth_to_world,
    foreground_mask,
    read_eyecandies_xyz,
)
from mmad_fast.errors import DataError, InvalidInputError

HEIGHT, WIDTH = 24, 32
NEAREST, FARTHEST = 1.5, 3.25
# World to camera: the camera stands 1.7 in front of the scene, 1.2 above the ground, looks down.
TILT = 0.6
POSE = np.array(
    [
        [1, 0, 0, 0.01],
        [0, np.cos(TILT), np.sin(TILT), -0.3],
        [0, -np.sin(TILT), np.cos(TILT), 2.1],
        [0, 0, 0, 1],
    ]
)


def make_depth(seed: int) -> np.ndarray:
    """(H, W) uint16: a sloping ground with a block standing on it."""
    depth = 2.6 - 0.03 * np.arange(HEIGHT)[:, None] + np.zeros(WIDTH)
    depth += np.random.default_rng(seed).uniform(-0.001, 0.001, depth.shape)
    depth[8:16, 10:20] -= 0.25
    return np.rint((depth - NEAREST) / (FARTHEST - NEAREST) * 65535).astype(np.uint16)


def write_sample(data: Path, stem: str, seed: int, *, bad: bool | None = None) -> None:
    data.mkdir(parents=True, exist_ok=True)
    for light in range(6):
        Image.new("RGB", (WIDTH, HEIGHT), (light, seed, 0)).save(data / f"{stem}_image_{light}.png")
    Image.fromarray(make_depth(seed)).save(data / f"{stem}_depth.png")
    (data / f"{stem}_info_depth.yaml").write_text(
        f"normalization:\n  max: {FARTHEST}\n  min: {NEAREST:e}\nunits: 1.0\n"
    )
    np.savetxt(data / f"{stem}_pose.txt", POSE)
    Image.new("RGB", (WIDTH, HEIGHT), (0, seed, 255)).save(data / f"{stem}_normals.png")
    if bad is not None:
        mask = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        mask[9, 12] = 255 * bad
        Image.fromarray(mask).save(data / f"{stem}_mask.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for candy in ("Lollipop", "CandyCane"):
        folder = tmp_path / "raw" / candy
        for index in (0, 1, 10):
            write_sample(folder / "train" / "data", f"{index:03d}", index)
        write_sample(folder / "val" / "data", "00", 20)
        for index, bad in enumerate((True, False, True)):
            write_sample(folder / "test_public" / "data", f"{index:02d}", 30 + index, bad=bad)
        (folder / "test_private" / "data").mkdir(parents=True)
    return tmp_path / "raw"


def published_points(stored: np.ndarray) -> np.ndarray:
    """(H, W, 3): the conversion's formulas, a pixel at a time; dropped points are zero."""
    depth = stored / 65535 * (FARTHEST - NEAREST) + NEAREST
    intrinsics = np.array(
        [
            [FOCAL_LENGTH, 0, WIDTH / 2, 0],
            [0, FOCAL_LENGTH, HEIGHT / 2, 0],
            [0, 0, 1, 0],
            [0, 0, 0, 1],
        ]
    )
    inverse = np.linalg.inv(intrinsics @ POSE)
    world = np.zeros((HEIGHT, WIDTH, 3))
    for v in range(HEIGHT):
        for u in range(WIDTH):
            d = depth[v, u]
            world[v, u] = (d * (inverse @ np.array([u, v, 1, 1 / d])))[:3]
    top, bottom = world[0, WIDTH // 2], world[-1, -(WIDTH // 2)]
    rise, run = top[1] - bottom[1], top[2] - bottom[2]
    cos, sin = run / np.hypot(rise, run), rise / np.hypot(rise, run)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    start = np.array([0, bottom[1], bottom[2]])
    result = np.zeros_like(world)
    for v in range(HEIGHT):
        for u in range(WIDTH):
            x, y, z = turn @ (world[v, u] - start)
            if not (y > -0.02 or z > 1.8 or abs(x) > 1):
                back = turn.T @ np.array([x, y, z]) + start
                result[v, u] = back[0] * 0.1, back[2] * -0.1, back[1] * 0.1
    return result


def test_points_agree_with_the_published_formulas(root: Path) -> None:
    xyz = read_eyecandies_xyz(root / "Lollipop" / "train" / "data" / "001_depth.png")
    expected = published_points(make_depth(1))
    kept = (expected != 0).any(axis=-1)
    assert 30 < kept.sum() < HEIGHT * WIDTH // 2, "the case must keep some points and drop others"
    assert kept[10:15, 11:19].all()
    np.testing.assert_array_equal((xyz != 0).any(axis=-1), kept)
    np.testing.assert_allclose(xyz, expected, atol=2e-8, rtol=2e-7)
    assert xyz.dtype == np.float32


def test_points_reproject_onto_their_pixels(root: Path) -> None:
    xyz = read_eyecandies_xyz(root / "Lollipop" / "train" / "data" / "000_depth.png")
    rows, columns = np.nonzero((xyz != 0).any(axis=-1))
    x, minus_z, y = np.moveaxis(xyz[rows, columns].astype(np.float64) * 10, -1, 0)
    camera = np.stack([x, y, -minus_z, np.ones_like(x)], axis=-1) @ POSE.T
    np.testing.assert_allclose(
        camera[:, 0] / camera[:, 2] * FOCAL_LENGTH + WIDTH / 2, columns, atol=1e-3
    )
    np.testing.assert_allclose(
        camera[:, 1] / camera[:, 2] * FOCAL_LENGTH + HEIGHT / 2, rows, atol=1e-3
    )
    depth = make_depth(0)[rows, columns] / 65535 * (FARTHEST - NEAREST) + NEAREST
    np.testing.assert_allclose(camera[:, 2], depth, atol=1e-6)


def test_world_of_the_identity_pose_is_the_camera_frame() -> None:
    points = depth_to_world(np.full((2, 4), 2.0), np.eye(4), focal_length=4.0)
    assert points[1, 3].tolist() == [(3 - 2) * 2 / 4, (1 - 1) * 2 / 4, 2.0]


def test_points_far_aside_or_far_away_are_dropped() -> None:
    points = np.zeros((2, 4, 3))
    points[..., 1] = -0.5
    points[0, 2] = (0, 0, 1)  # the ground runs along z
    points[1, 2] = (0, 0, 0)
    points[0, 0] = (1.01, -0.5, 0.5)
    points[0, 1] = (0.5, -0.5, 1.81)
    points[0, 3] = (0.5, -0.019, 0.5)
    assert foreground_mask(points).tolist() == [[False] * 4, [True, True, False, True]]


def test_missing_depth_is_a_missing_point(root: Path) -> None:
    data = root / "Lollipop" / "train" / "data"
    (data / "000_info_depth.yaml").write_text("normalization: {min: 0.0, max: 3.25}")
    depth = np.rint((make_depth(0) / 65535 * (FARTHEST - NEAREST) + NEAREST) / 3.25 * 65535)
    depth[10, 12] = 0
    Image.fromarray(depth.astype(np.uint16)).save(data / "000_depth.png")
    xyz = read_eyecandies_xyz(data / "000_depth.png")
    assert xyz[10, 12].tolist() == [0, 0, 0]
    assert xyz[10, 13].all()
    depth[0, WIDTH // 2] = 0
    Image.fromarray(depth.astype(np.uint16)).save(data / "000_depth.png")
    with pytest.raises(DataError, match=r"000_depth\.png: no depth at the middle of the top"):
        read_eyecandies_xyz(data / "000_depth.png")


def test_the_raw_layout_is_opened(root: Path) -> None:
    dataset = open_dataset(root)
    assert (dataset.layout, dataset.categories()) == ("eyecandies", ("CandyCane", "Lollipop"))
    assert dataset.splits("Lollipop") == ("train", "validation", "test")
    assert [s.name for s in dataset.scans("Lollipop", "train")] == [
        f"Lollipop/train/good/{index}" for index in ("000", "001", "010")
    ]
    test = dataset.scans("Lollipop", "test")
    assert [(s.name, s.defect) for s in test] == [
        ("Lollipop/test/good/01", "good"),
        ("Lollipop/test/bad/00", "bad"),
        ("Lollipop/test/bad/02", "bad"),
    ]
    scan = test[1].load(with_normals=True)
    assert scan.rgb[0, 0].tolist() == [4, 30, 0], "image_4, the left spotlight"
    assert scan.normals is not None
    assert scan.normals[0, 0].tolist() == [0, 30, 255]
    np.testing.assert_allclose(scan.xyz, published_points(make_depth(30)), atol=2e-8, rtol=2e-7)
    masks = [s.load_ground_truth() for s in test]
    assert [int(mask.sum()) for mask in masks if mask is not None] == [0, 1, 1]
    assert open_dataset(root / "Lollipop").categories() == ("Lollipop",)


def test_conversion_writes_what_reading_raw_gives(root: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    out = convert_eyecandies(
        root, tmp_path / "out", progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(done, 14) for done in range(1, 15)]
    raw, converted = open_dataset(root), open_dataset(out)
    assert converted.layout == "mvtec3d"
    for split in ("train", "validation", "test"):
        pairs = zip(raw.scans("CandyCane", split), converted.scans("CandyCane", split), strict=True)
        for one, other in pairs:
            assert (one.defect, len(other.rgb_path.stem)) == (other.defect, 3)
            np.testing.assert_array_equal(one.load().rgb, other.load().rgb)
            np.testing.assert_array_equal(one.load().xyz, other.load().xyz)
            assert one.normals_path is not None
            normals = [file.load(with_normals=True).normals for file in (one, other)]
            np.testing.assert_array_equal(*normals)
            np.testing.assert_array_equal(one.load_ground_truth(), other.load_ground_truth())


def test_conversion_leaves_nothing_behind_when_it_fails(root: Path, tmp_path: Path) -> None:
    (root / "Lollipop" / "val" / "data" / "00_pose.txt").write_text("1 2 3")
    with pytest.raises(DataError, match=r"00_pose\.txt has shape \(1, 3\); a pose is a 4x4"):
        convert_eyecandies(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_conversion_takes_another_light(root: Path, tmp_path: Path) -> None:
    out = convert_eyecandies(root / "Lollipop", tmp_path / "out", light=2)
    assert open_dataset(out).scans("Lollipop", "train")[0].load().rgb[0, 0, 0] == 2
    with pytest.raises(InvalidInputError, match="light is 6.*image_0 to image_5"):
        convert_eyecandies(root, tmp_path / "other", light=6)


def test_a_sample_without_mask_is_scored_and_named_by_who_reads_masks(root: Path) -> None:
    (root / "Lollipop" / "test_public" / "data" / "01_mask.png").unlink()
    scan = next(s for s in open_dataset(root).scans("Lollipop", "test") if "01_" in str(s.xyz_path))
    assert (scan.name, scan.defect) == ("Lollipop/test/01", "")
    assert scan.load().rgb.any()
    with pytest.raises(DataError, match=r"01_mask\.png is missing"):
        scan.load_ground_truth()


@pytest.mark.parametrize("name", ["image_4.png", "info_depth.yaml", "pose.txt"])
def test_a_missing_file_of_a_sample_is_named(root: Path, name: str) -> None:
    (root / "Lollipop" / "test_public" / "data" / f"01_{name}").unlink()
    with pytest.raises(DataError, match=f"01_{name} is missing; sample 01 needs"):
        open_dataset(root).scans("Lollipop", "test")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("info_depth.yaml", "normalization:\n  min: 1.0\n", "no numbers normalization.min and"),
        ("info_depth.yaml", "normalization: {min: 2, max: 1}", "min 2 and max 1"),
        ("pose.txt", "1 0 0 0\n0 1 0 0\n0 0 1 x\n0 0 0 1", "no 4x4 matrix of numbers"),
        ("pose.txt", "0 0 0 0\n" * 4, "cannot be inverted"),
    ],
)
def test_damaged_texts_are_named(root: Path, name: str, text: str, words: str) -> None:
    data = root / "Lollipop" / "train" / "data"
    (data / f"000_{name}").write_text(text)
    with pytest.raises(DataError, match=f"000_{name}.*{words}"):
        read_eyecandies_xyz(data / "000_depth.png")
