"""Tests of the MVTec 3D-AD layout: pairing, order, and an own message for each fault."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmad_fast.data import open_dataset
from mmad_fast.data.mvtec3d import write_scan
from mmad_fast.errors import DataError, InvalidInputError
from mmad_fast.report import save_map_tiff

SIZE = (6, 5)


def make_scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return rgb, rng.uniform(0.1, 0.5, (*SIZE, 3)).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories; the first with 3 train, 1 validation, 2 good and 2 + 1 defective scans."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[2, 3] = True
    for category in ("peach", "bagel"):
        folder = tmp_path / "set" / category
        for index in (2, 0, 1):
            write_scan(folder / "train" / "good", f"{index:03d}", *make_scan(index))
        write_scan(folder / "validation" / "good", "000", *make_scan(10))
        for defect, count in (("good", 2), ("hole", 2), ("crack", 1)):
            for index in range(count):
                write_scan(
                    folder / "test" / defect, f"{index:03d}", *make_scan(index), ground_truth=mask
                )
    (tmp_path / "set" / "peach" / "calibration").mkdir()
    (tmp_path / "set" / "peach" / "calibration" / "camera.json").write_text("{}")
    (tmp_path / "set" / "README.md").write_text("words")
    return tmp_path / "set"


def test_categories_and_splits_are_sorted(root: Path) -> None:
    dataset = open_dataset(root)
    assert dataset.layout == "mvtec3d"
    assert dataset.categories() == ("bagel", "peach")
    assert dataset.splits("peach") == ("train", "validation", "test")


def test_scans_come_good_first_then_by_defect_and_name(root: Path) -> None:
    dataset = open_dataset(root)
    train = dataset.scans("peach", "train")
    assert [scan.rgb_path.name for scan in train] == ["000.png", "001.png", "002.png"]
    test = dataset.scans("peach", "test")
    assert [scan.name for scan in test] == [
        "peach/test/good/000",
        "peach/test/good/001",
        "peach/test/crack/000",
        "peach/test/hole/000",
        "peach/test/hole/001",
    ]
    assert all(scan.rgb_path.stem == scan.xyz_path.stem for scan in (*train, *test))


def test_load_gives_the_arrays_that_were_written(root: Path) -> None:
    scan = open_dataset(root).scans("bagel", "train")[1].load()
    rgb, xyz = make_scan(1)
    np.testing.assert_array_equal(scan.rgb, rgb)
    np.testing.assert_array_equal(scan.xyz, xyz)
    assert scan.name == "bagel/train/good/001"


def test_load_takes_the_unit(root: Path) -> None:
    scan_file = open_dataset(root).scans("bagel", "train")[0]
    metres = scan_file.load().xyz
    tifffile.imwrite(scan_file.xyz_path, metres * np.float32(1000), photometric="rgb")
    np.testing.assert_allclose(scan_file.load("mm").xyz, metres, rtol=1e-6)


def test_ground_truth_is_the_mask_and_false_for_good_scans(root: Path) -> None:
    scans = open_dataset(root).scans("peach", "test")
    expected = np.zeros(SIZE, dtype=bool)
    expected[2, 3] = True
    crack, good = scans[2].load_ground_truth(), scans[0].load_ground_truth()
    assert crack is not None
    assert good is not None
    np.testing.assert_array_equal(crack, expected)
    assert crack.dtype == np.bool_
    # The file beside the good scan says otherwise; good means good, as in the published loaders.
    assert good.shape == SIZE
    assert not good.any()


def test_a_single_category_is_a_data_set(root: Path) -> None:
    dataset = open_dataset(root / "peach")
    assert dataset.categories() == ("peach",)
    assert len(dataset.scans("peach", "test")) == 5


def test_a_category_without_validation_says_so(root: Path) -> None:
    shutil.rmtree(root / "peach" / "validation")
    dataset = open_dataset(root)
    assert dataset.splits("peach") == ("train", "test")
    with pytest.raises(DataError, match=r"peach.validation is missing"):
        dataset.scans("peach", "validation")


def test_unknown_names_are_answered_with_the_known(root: Path) -> None:
    dataset = open_dataset(root)
    with pytest.raises(DataError, match="no category 'plum'.*bagel, peach"):
        dataset.scans("plum", "train")
    with pytest.raises(InvalidInputError, match="'val'.*train, validation, test"):
        dataset.scans("peach", "val")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("removed", "alone", "where"),
    [
        ("train/good/xyz/001.tiff", "rgb.001.png", "xyz"),
        ("train/good/rgb/001.png", "xyz.001.tiff", "rgb"),
        ("test/hole/rgb/001.png", "hole.xyz.001.tiff", "rgb"),
    ],
)
def test_a_file_without_partner_is_named(root: Path, removed: str, alone: str, where: str) -> None:
    (root / "peach" / removed).unlink()
    split = "train" if removed.startswith("train") else "test"
    with pytest.raises(DataError, match=rf"{alone}: no file of the same name in .*{where} "):
        open_dataset(root).scans("peach", split)


def test_pairs_are_made_by_stem_and_not_by_rank(root: Path) -> None:
    good = root / "peach" / "train" / "good"
    (good / "xyz" / "001.tiff").rename(good / "xyz" / "007.tiff")
    with pytest.raises(DataError, match=r"001\.png"):
        open_dataset(root).scans("peach", "train")


@pytest.mark.parametrize("folder", ["train/good", "train/good/xyz", "train/good/rgb"])
def test_a_missing_folder_is_named(root: Path, folder: str) -> None:
    shutil.rmtree(root / "peach" / folder)
    with pytest.raises(DataError, match=rf"{folder.replace('/', '.')}.* is missing"):
        open_dataset(root).scans("peach", "train")


def test_scans_without_masks_are_scans(root: Path) -> None:
    (root / "peach/test/hole/gt/001.png").unlink()
    shutil.rmtree(root / "peach/test/crack/gt")
    scans = open_dataset(root).scans("peach", "test")
    known = {scan.name: scan.load_ground_truth() is not None for scan in scans}
    assert [name for name in known if not known[name]] == [
        "peach/test/crack/000",
        "peach/test/hole/001",
    ]


@pytest.mark.parametrize(
    ("place", "stem"),
    [
        ("test/hole/ground_truth", "{}"),
        ("test/hole/gt", "{}_mask"),
        ("ground_truth/hole", "{}_mask"),  # as in MVTec AD
        ("ground_truth/hole", "{}"),
    ],
)
def test_masks_are_found_where_other_data_sets_have_them(root: Path, place: str, stem: str) -> None:
    peach = root / "peach"
    (peach / "test/hole/gt").rename(peach / "aside")
    (peach / place).mkdir(parents=True)
    for name in ("000", "001"):
        (peach / "aside" / f"{name}.png").rename(peach / place / f"{stem.format(name)}.png")
    holes = open_dataset(root).scans("peach", "test")[-2:]
    assert [scan.ground_truth_path is not None for scan in holes] == [True, True]
    masks = [scan.load_ground_truth() for scan in holes]
    assert [int(mask.sum()) for mask in masks if mask is not None] == [1, 1]


@pytest.mark.parametrize("name", ["Good", "ok", "OK", "Nominal", "normal"])
def test_good_parts_never_count_as_a_defect(root: Path, name: str) -> None:
    for split in ("train", "validation", "test"):
        (root / "peach" / split / "good").rename(root / "peach" / split / name)
    dataset = open_dataset(root)
    assert len(dataset.scans("peach", "train")) == 3
    test = dataset.scans("peach", "test")
    assert [scan.defect for scan in test] == ["good", "good", "crack", "hole", "hole"]
    assert test[0].name == f"peach/test/{name}/000"
    mask = test[0].load_ground_truth()
    assert mask is not None
    assert not mask.any()


def test_training_scans_under_another_name_are_named(root: Path) -> None:
    (root / "peach/train/good").rename(root / "peach/train/Gutteile")
    with pytest.raises(
        DataError, match=r"train/good is missing.*also read: ok, nominal, normal.*Found: Gutteile"
    ):
        open_dataset(root).scans("peach", "train")


def test_a_test_folder_that_may_not_be_read_is_one_problem(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every folder may be read, so the refusal is made."""
    locked = root / "peach" / "test" / "crack"

    def refuse(method: str) -> None:
        real = getattr(Path, method)

        def answer(path: Path) -> object:
            if locked in path.parents or (method == "iterdir" and path == locked):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(Path, method, answer)

    for method in ("iterdir", "exists", "is_dir"):
        refuse(method)
    scans = open_dataset(root).scans_as_found("peach", "test")
    assert [scan.name for scan in scans if scan.problem] == ["peach/test/crack"]
    assert len(scans) == 5
    with pytest.raises(DataError, match=r"crack/rgb cannot be read \(Permission denied\); check"):
        scans[2].load()


def test_a_test_folder_that_cannot_be_listed_is_one_problem(root: Path) -> None:
    peach = root / "peach" / "test"
    shutil.rmtree(peach / "hole/xyz")
    (peach / "scratch").symlink_to(root / "not mounted")
    save_map_tiff(peach / "results" / "a_map.tiff", np.zeros(SIZE, np.float32))
    scans = open_dataset(root).scans_as_found("peach", "test")
    assert [scan.name for scan in scans if scan.problem] == [
        "peach/test/hole",
        "peach/test/scratch",
    ]
    assert len(scans) == 5, "2 good, 1 crack, the two folders; and none of the pictures"
    with pytest.raises(DataError, match=r"hole/xyz is missing"):
        scans[-2].load()


def test_empty_folders_are_named(root: Path) -> None:
    for name in ("rgb", "xyz"):
        shutil.rmtree(root / "peach" / "train" / "good" / name)
        (root / "peach" / "train" / "good" / name).mkdir()
    with pytest.raises(DataError, match=r"no scans: .*rgb.*xyz.* has a file"):
        open_dataset(root).scans("peach", "train")
    shutil.rmtree(root / "peach" / "test")
    (root / "peach" / "test").mkdir()
    with pytest.raises(DataError, match=r"peach.test is empty; it needs a folder per defect"):
        open_dataset(root).scans("peach", "test")


def test_two_files_of_one_stem_are_refused(root: Path) -> None:
    xyz = root / "peach" / "train" / "good" / "xyz"
    shutil.copy(xyz / "001.tiff", xyz / "001.tif")
    with pytest.raises(DataError, match="same stem"):
        open_dataset(root).scans("peach", "train")


def test_sizes_that_differ_name_both_files(root: Path) -> None:
    scan = open_dataset(root).scans("peach", "test")[2]
    Image.new("L", (4, 4)).save(root / "peach/test/crack/gt/000.png")
    with pytest.raises(DataError, match=r"gt.000\.png is 4x4 and .*rgb.000\.png is 6x5"):
        scan.load_ground_truth()
    Image.new("RGB", (4, 4)).save(root / "peach/test/crack/rgb/000.png")
    with pytest.raises(DataError, match=r"000\.png is 4x4 and .*000\.tiff is 6x5"):
        scan.load()


def test_pictures_of_normals_are_read_where_there_are_some(root: Path) -> None:
    rgb, xyz = make_scan(0)
    write_scan(root / "peach" / "test" / "hole", "001", rgb, xyz, normals=255 - rgb)
    files = open_dataset(root).scans("peach", "test")
    with_normals = {
        file.name: file.load(with_normals=True).normals for file in files if file.normals_path
    }
    assert list(with_normals) == ["peach/test/hole/001"]
    np.testing.assert_array_equal(with_normals["peach/test/hole/001"], 255 - rgb)
    without = [file for file in files if not file.normals_path]
    assert all(file.load(with_normals=True).normals is None for file in without)
    Image.new("RGB", (4, 4)).save(root / "peach/test/hole/normals/001.png")
    with pytest.raises(DataError, match=r"rgb.001\.png is 6x5 and .*normals.001\.png is 4x4"):
        next(file for file in files if file.normals_path).load(with_normals=True)
    assert next(file for file in files if file.normals_path).load().normals is None


def test_millimetres_taken_for_metres_name_the_scan(root: Path) -> None:
    rgb, xyz = make_scan(0)
    write_scan(root / "peach/train/good", "000", rgb, xyz * 1000)
    with pytest.raises(InvalidInputError, match="peach/train/good/000.*unit='mm'"):
        open_dataset(root).scans("peach", "train")[0].load()
