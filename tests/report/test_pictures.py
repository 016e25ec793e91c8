from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmad_fast.errors import InvalidInputError
from mmad_fast.report.pictures import (
    Tile,
    color_map,
    contact_sheet,
    overlay_image,
    picture_names,
    save_map_tiff,
    save_overlay,
)

SIDE = 500  # above the size that is enlarged: one picture pixel per map pixel
GREY = np.full((SIDE, SIDE, 3), 128, np.uint8)


@pytest.fixture
def spot():
    """A map that is 0 but for a square of 2 in rows 100-199, columns 300-399."""
    anomaly_map = np.zeros((SIDE, SIDE), np.float32)
    anomaly_map[100:200, 300:400] = 2
    return anomaly_map


def test_lightness_of_the_color_map_rises():
    colors = color_map().astype(float)
    assert colors.shape == (256, 3)
    lightness = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -0.5).all()  # rounding of 8-bit colours
    assert lightness[-1] - lightness[0] > 200


def test_the_top_of_the_range_is_covered_and_the_bottom_keeps_its_looks(spot):
    picture = overlay_image(GREY, spot).astype(int)
    assert abs(picture[300, 100] - 128).max() <= 10
    # 80 % of the top colour and 20 % of the grey.
    expected = 0.8 * color_map()[-1] + 0.2 * 128
    assert picture[150, 350] == pytest.approx(expected, abs=1)


def test_a_given_range_is_used(spot):
    half = overlay_image(GREY, spot, value_range=(0, 4))
    full = overlay_image(GREY, spot * 2, value_range=(0, 4))
    assert (half[150, 350] != full[150, 350]).any()
    assert (half[300, 100] == full[300, 100]).all()


def test_values_outside_the_range_are_clipped(spot):
    clipped = overlay_image(GREY, spot, value_range=(0.5, 1))
    assert (clipped[150, 350] == overlay_image(GREY, spot)[150, 350]).all()


def test_the_contour_runs_around_what_exceeds_the_threshold(spot):
    picture = overlay_image(GREY, spot, threshold=1.0)
    plain = overlay_image(GREY, spot)
    for row, column in ((100, 350), (199, 350), (150, 300), (150, 399)):
        assert (picture[row, column] == 255).all()
    for row, column in ((99, 350), (150, 299)):
        assert (picture[row, column] == 0).all()
    changed = (picture[:SIDE, :SIDE] != plain[:SIDE, :SIDE]).any(axis=-1)
    rim = np.zeros((SIDE, SIDE), bool)
    rim[98:202, 298:402] = True
    rim[102:198, 302:398] = False
    assert not changed[~rim].any()


def test_a_threshold_above_the_map_draws_no_contour(spot):
    unmarked = overlay_image(GREY, spot, value_range=(float(spot.min()), 5.0))
    changed = overlay_image(GREY, spot, threshold=5.0) != unmarked  # the scale reaches it, too
    assert not changed[:SIDE, :SIDE].any()


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (1, 1), (40, 1500), (3, 5000)])
def test_long_scans_are_not_made_gigantic(tmp_path, shape):
    anomaly_map = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    rgb = np.full((*shape, 3), 128, np.uint8)
    picture = overlay_image(rgb, anomaly_map, threshold=0.5, caption="flat")
    limit = max(2048, *shape)
    assert max(picture.shape[:2]) <= limit + 200  # the legend and the caption
    assert picture.shape[0] >= shape[0]
    assert picture.shape[1] >= shape[1]
    with Image.open(contact_sheet(tmp_path / "sheet.png", [Tile(rgb, "flat")])) as sheet:
        assert sheet.width <= 2048 + 100


def test_the_legend_stands_beside_the_picture_and_marks_the_threshold(spot):
    plain = overlay_image(GREY, spot)
    marked = overlay_image(GREY, spot, threshold=1.0)
    assert plain.shape[0] == SIDE
    assert plain.shape[1] > SIDE + 30
    middle = slice(SIDE // 2 - 10, SIDE // 2 + 10)
    assert (plain[middle, SIDE:] != marked[middle, SIDE:]).any()


def test_a_caption_adds_a_line_below(spot):
    with_caption = overlay_image(GREY, spot, caption="cookie/003: score 2.000")
    assert with_caption.shape[0] > SIDE
    assert (with_caption[SIDE:] < 100).any()  # ink


def test_a_caption_longer_than_the_picture_is_shortened(spot):
    long = overlay_image(GREY, spot, caption="x" * 5000)
    assert long.shape == overlay_image(GREY, spot, caption="x").shape


def test_small_scans_are_enlarged_without_blur():
    rgb = np.zeros((2, 3, 3), np.uint8)
    rgb[0, 0] = 255
    picture = overlay_image(rgb, np.zeros((2, 3), np.float32))
    assert picture.shape[0] == 448
    assert (picture[:224, :224] == picture[0, 0]).all()


def test_a_constant_map_is_a_defined_picture():
    picture = overlay_image(GREY, np.full((SIDE, SIDE), 3.0, np.float32), threshold=1.0)
    assert abs(picture[250, 250].astype(int) - 128).max() <= 10


def test_inputs_are_not_written_to(spot):
    rgb = GREY.copy()
    rgb.flags.writeable = False
    spot.flags.writeable = False
    overlay_image(rgb[::-1], spot[:, ::-1], threshold=1.0)  # strided and read-only


@pytest.mark.parametrize(
    ("rgb", "anomaly_map", "words"),
    [
        (GREY, np.zeros((10, 10), np.float32), "same size: use Result.native_anomaly_map"),
        (GREY.astype(np.float32), np.zeros((SIDE, SIDE)), r"must be \(H, W, 3\) uint8"),
        (GREY, np.zeros((SIDE, SIDE), int), "floating point"),
        (GREY, np.full((SIDE, SIDE), np.nan), "finite values only"),
    ],
)
def test_wrong_arrays_are_refused(rgb, anomaly_map, words):
    with pytest.raises(InvalidInputError, match=words):
        overlay_image(rgb, anomaly_map)


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("inf"))])
def test_wrong_ranges_are_refused(spot, value_range):
    with pytest.raises(InvalidInputError, match="lowest, highest"):
        overlay_image(GREY, spot, value_range=value_range)


def test_the_saved_picture_is_the_picture_and_nothing_else_is_left(tmp_path, spot):
    path = save_overlay(tmp_path / "new" / "a.png", GREY, spot, threshold=1.0, caption="a")
    with Image.open(path) as image:
        assert image.format == "PNG"
        saved = np.asarray(image)
    assert (saved == overlay_image(GREY, spot, threshold=1.0, caption="a")).all()
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, spot, monkeypatch):
    path = tmp_path / "a.tiff"
    save_map_tiff(path, spot)
    old = path.read_bytes()

    def write_half(file, *arguments, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tifffile, "imwrite", write_half)
    with pytest.raises(OSError, match="disk full"):
        save_map_tiff(path, spot + 1)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["a.tiff"]


def test_the_tiff_holds_the_map_unchanged(tmp_path):
    anomaly_map = np.random.default_rng(0).normal(size=(7, 63)).astype(np.float32)
    path = save_map_tiff(tmp_path / "map.tiff", anomaly_map)
    read = tifffile.imread(path)
    assert read.dtype == np.float32
    assert (read == anomaly_map).all()
    with Image.open(path) as image:  # other programs read it too
        assert image.mode == "F"
        assert (np.asarray(image) == anomaly_map).all()


def test_a_map_that_is_not_finite_is_not_saved(tmp_path):
    with pytest.raises(InvalidInputError, match="finite"):
        save_map_tiff(tmp_path / "map.tiff", np.array([[np.nan]], np.float32))
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_places_tiles_in_rows(tmp_path):
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    tiles = [Tile(np.full((100, 200, 3), color, np.uint8), f"tile {color}") for color in colors]
    with Image.open(contact_sheet(tmp_path / "sheet.png", tiles, num_columns=2)) as image:
        sheet = np.asarray(image)
    # Tiles are 256 high, so 512 wide; the second starts right of the first, the third below.
    assert tuple(sheet[100, 200]) == colors[0]
    assert tuple(sheet[100, 800]) == colors[1]
    assert tuple(sheet[400, 200]) == colors[2]
    assert tuple(sheet[400, 800]) == (255, 255, 255)


def test_an_empty_contact_sheet_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="at least one tile"):
        contact_sheet(tmp_path / "sheet.png", [])


def test_pictures_need_neither_matplotlib_nor_the_fit_half():
    code = (
        "import sys; import mmad_fast.report; "
        "print(sorted({'matplotlib', 'scipy', 'torch', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SIGNS = st.sampled_from('aA_-/.\\:*?<>|" \n\u00e4\u0434\udce9con01')
NAMES = st.text(SIGNS, min_size=1, max_size=12)


@given(st.sets(NAMES | NAMES.map(lambda name: name * 40), max_size=12))
def test_each_scan_has_picture_files_of_its_own_on_every_file_system(names) -> None:
    files = picture_names(sorted(names))
    assert len({file.casefold() for file in files.values()}) == len(names) == len(files)
    for file in files.values():
        assert not set(file) & set('<>:"/\\|?*\n\udce9')
        assert 0 < len(file.encode()) <= 120
        assert file[-1] not in ". "


def test_names_of_pictures_stay_readable() -> None:
    plain = picture_names(["bagel/test/crack/000", "part_1", "деталь"])
    assert list(plain.values()) == ["bagel_test_crack_000", "part_1", "деталь"]
    clash = picture_names(["a/b_000", "a_b/000", "A", "a", "c", "nul.1"])
    for name, start in (("a/b_000", "a_b_000-"), ("A", "A-"), ("nul.1", "nul.1-")):
        assert re.fullmatch(f"{start}[0-9a-f]{{12}}", clash[name])
    assert clash["c"] == "c"
    # One that looks as if it had a hash gets its own: it may be the name of another's picture.
    assert picture_names([clash["A"]]) != {clash["A"]: clash["A"]}


def test_a_picture_has_the_longest_name_that_the_system_takes(tmp_path, spot) -> None:
    name = "x" * 250 + ".tiff"
    save_map_tiff(tmp_path / name, spot)
    assert [path.name for path in tmp_path.iterdir()] == [name]
