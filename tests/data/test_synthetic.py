"""Tests of the procedural set: determinism, geometry, defects and masks, and the round trip."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from mmad_fast.data import open_dataset
from mmad_fast.data.synthetic import CATEGORIES, DEFECTS, render_scan, write_synthetic
from mmad_fast.data.synthetic.catalogue import CATALOGUE
from mmad_fast.data.synthetic.noise import box_blur, fractal_noise, value_noise
from mmad_fast.errors import DataError, InvalidInputError

COUNTS = {"num_train": 2, "num_validation": 1, "num_good": 1, "num_per_defect": 1}


def digest(root: Path) -> dict[str, str]:
    """Scan name -> sha256 of its arrays."""
    dataset, digests = open_dataset(root), {}
    for category in dataset.categories():
        for split in dataset.splits(category):
            for scan_file in dataset.scans(category, split):
                scan, mask = scan_file.load(), scan_file.load_ground_truth()
                assert mask is not None
                digests[scan_file.name] = hashlib.sha256(
                    scan.rgb.tobytes() + scan.xyz.tobytes() + mask.tobytes()
                ).hexdigest()
    return digests


def test_round_trip_and_larger_sets_begin_with_smaller(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    root = write_synthetic(
        tmp_path / "set",
        **COUNTS,
        size=96,
        progress=lambda done, total: calls.append((done, total)),
    )
    total = len(CATEGORIES) * (4 + len(DEFECTS))
    assert calls == [(done, total) for done in range(1, total + 1)]
    dataset = open_dataset(root)
    assert dataset.layout == "mvtec3d"
    assert set(dataset.categories()) == set(CATEGORIES)
    for category in CATEGORIES:
        assert len(dataset.scans(category, "train")) == 2
        test = dataset.scans(category, "test")
        assert {scan.defect for scan in test} == {"good", *DEFECTS}
        for scan_file in test:
            rendered = render_scan(category, "test", scan_file.defect, 0, size=96)
            scan, mask = scan_file.load(), scan_file.load_ground_truth()
            np.testing.assert_array_equal(scan.rgb, rendered.rgb)
            np.testing.assert_array_equal(scan.xyz, rendered.xyz)
            np.testing.assert_array_equal(mask, rendered.ground_truth)
    first = digest(root)
    assert len(set(first.values())) == total, "no two scans are alike"
    larger = {name: count + 1 for name, count in COUNTS.items()}
    again = digest(write_synthetic(tmp_path / "larger", **larger, size=96))
    assert len(again) > len(first)
    assert {name: again[name] for name in first} == first


def test_another_seed_gives_other_scans() -> None:
    one = render_scan("biscuit", "train", "good", 0, size=64, seed=0)
    other = render_scan("biscuit", "train", "good", 0, size=64, seed=1)
    assert (one.xyz != other.xyz).mean() > 0.5
    assert (one.rgb != other.rgb).mean() > 0.5


@pytest.mark.parametrize("category", CATEGORIES)
def test_geometry_is_metric_and_registered(category: str) -> None:
    scan = render_scan(category, "train", "good", 1)
    assert scan.xyz.dtype == np.float32
    assert scan.rgb.dtype == np.uint8
    valid = scan.xyz.any(axis=-1)
    assert 0.96 < valid.mean() < 1.0, "some holes, not many"
    points = scan.xyz[valid]
    assert 0.38 < points[:, 2].min() < points[:, 2].max() < 0.60
    rows, columns = np.nonzero(valid)
    for axis, pixels in ((0, columns), (1, rows)):
        projected = points[:, axis] / points[:, 2] * scan.focal_px + 128 - 0.5
        np.testing.assert_allclose(projected, pixels, atol=1e-3)
    assert 0.25 < scan.coverage.mean() < 0.36
    part = scan.xyz[valid & scan.coverage]
    extent_mm = (part.max(axis=0) - part.min(axis=0)) * 1000
    assert 75 < extent_mm[:2].min() <= extent_mm[:2].max() < 125


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_rim_is_a_tilted_plane_with_sensor_noise(category: str) -> None:
    scan = render_scan(category, "train", "good", 2)
    rim = np.ones((256, 256), dtype=bool)
    rim[10:-10, 10:-10] = False
    assert not (scan.coverage & rim).any()
    rim &= scan.xyz.any(axis=-1)
    assert rim.sum() > 0.98 * (256**2 - 236**2)
    points = scan.xyz[rim].astype(np.float64)
    offset = points - points.mean(axis=0)
    normal = np.linalg.svd(offset, full_matrices=False)[2][2]
    assert 2 <= np.degrees(np.arccos(abs(normal[2]))) <= 4.1
    assert 0.08e-3 < (offset @ normal).std() < 0.13e-3
    distances = np.abs((scan.xyz - points.mean(axis=0)) @ normal)
    part = scan.coverage & scan.xyz.any(axis=-1)
    assert (distances[part] > 0.005).mean() > 0.9, "the 5 mm rule keeps the part"
    assert (distances[~scan.coverage & scan.xyz.any(axis=-1)] < 0.005).mean() > 0.99


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_masks_mark_a_small_place_on_the_part(category: str, defect: str) -> None:
    for index in range(3):
        scan = render_scan(category, "test", defect, index, size=160)
        assert not (scan.ground_truth & ~scan.coverage).any()
        share = scan.ground_truth.sum() / scan.coverage.sum()
        assert 0.002 < share < (0.35 if defect == "mismatch" else 0.09)


@pytest.mark.parametrize("category", CATEGORIES)
def test_good_scans_have_empty_masks(category: str) -> None:
    assert not render_scan(category, "test", "good", 0, size=96).ground_truth.any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_defects_change_the_modality_they_should(
    category: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same scene without the defect: stains leave XYZ alone, dents go down, ..."""
    from mmad_fast.data.synthetic import render

    for defect in ("stain", "dent", "bump", "crack"):
        spoiled = render_scan(category, "test", defect, 0)
        with monkeypatch.context() as patch:
            patch.setitem(render.SURFACE_DEFECTS, defect, lambda surface, *_: surface)
            clean = render_scan(category, "test", defect, 0)
        assert not clean.ground_truth.any()
        both = spoiled.ground_truth & spoiled.xyz.any(axis=-1) & clean.xyz.any(axis=-1)
        deeper_mm = (spoiled.xyz[..., 2] - clean.xyz[..., 2])[both] * 1000
        brightness = spoiled.rgb.astype(np.float64).mean(-1) - clean.rgb.astype(np.float64).mean(-1)
        colour = np.abs(brightness)
        expected = {
            "stain": np.abs(deeper_mm).max() == 0,
            "dent": deeper_mm.max() > 0.7 and deeper_mm.min() > -0.05,
            "bump": deeper_mm.min() < -0.7 and deeper_mm.max() < 0.05,
            "crack": deeper_mm.max() > 0.5 and deeper_mm.min() > -0.05,
        }
        assert expected[defect], (defect, deeper_mm.min(), deeper_mm.max())
        if defect in ("stain", "crack"):
            assert colour[spoiled.ground_truth].mean() > 4
        away = box_blur(spoiled.ground_truth.astype(np.float32), 24) < 1e-6
        assert away.mean() > 0.5
        # Running sums may flip the rounding of a pixel somewhere, no more.
        assert colour[away].max() <= 1
        assert (colour[away] > 0).mean() < 1e-3, "nothing changes away from the defect"


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_mismatch_changes_one_side_of_the_coupling(category: str) -> None:
    kind = CATALOGUE[category]
    for seed in range(8):
        rng = np.random.default_rng(seed)
        part = kind.sample(rng)
        changed = kind.mismatch(part, rng, seed / 8)
        fields = [name for name in vars(part) if getattr(part, name) != getattr(changed, name)]
        assert len(fields) == 1, "colour or relief, never both"


def test_noise_is_bounded_and_looks_the_same_at_any_size() -> None:
    small = fractal_noise(np.random.default_rng(3), 64, cells=4, octaves=3)
    large = fractal_noise(np.random.default_rng(3), 256, cells=4, octaves=3)
    assert small.dtype == np.float32
    assert np.abs(large).max() <= 1
    assert large.std() > 0.1
    np.testing.assert_allclose(large.reshape(64, 4, 64, 4).mean(axis=(1, 3)), small, atol=0.05)
    assert np.abs(value_noise(np.random.default_rng(0), 64, 90)).max() <= 1


def test_box_blur_is_the_mean_of_the_window() -> None:
    field = np.random.default_rng(0).uniform(size=(11, 11)).astype(np.float32)
    padded = np.pad(field, 2, mode="edge")
    expected = [[padded[r : r + 5, c : c + 5].mean() for c in range(11)] for r in range(11)]
    np.testing.assert_allclose(box_blur(field, 2), expected, rtol=1e-5)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"set exists and is not empty; nothing is overwritten"):
        write_synthetic(tmp_path / "set", **COUNTS, size=64)
    with pytest.raises(DataError, match=r"thesis\.txt is a file"):
        write_synthetic(tmp_path / "set" / "thesis.txt", **COUNTS, size=64)
    assert [p.name for p in tmp_path.rglob("*")] == ["set", "thesis.txt"]


def test_an_interrupted_set_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "set", **COUNTS, size=64, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set").mkdir()  # an empty folder is taken
    write_synthetic(tmp_path / "set", categories=["foam_pad"], **COUNTS, size=64)
    assert open_dataset(tmp_path / "set").categories() == ("foam_pad",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"categories": ["bagel"]}, "no synthetic category 'bagel'; choose one of bolt_plate"),
        ({"categories": []}, r"categories is \[\]; give a list"),
        ({"categories": "biscuit"}, "categories is 'biscuit'; give a list"),
        ({"num_train": -1}, "negative: train -1"),
        ({"size": 32}, "size is 32; it must be at least 64"),
        ({"seed": -1}, "seed is -1"),
        (dict.fromkeys(COUNTS, 0), "at least one scan"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        write_synthetic(tmp_path / "set", **{**COUNTS, **options})
    assert list(tmp_path.iterdir()) == []
