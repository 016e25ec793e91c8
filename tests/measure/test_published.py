from __future__ import annotations

from collections import defaultdict

import pytest

from mmad_fast.measure.published import (
    EYECANDIES,
    MVTEC_3D_AD,
    load_published,
    published_beside,
    published_for,
)
from mmad_fast.methods.family import get_method, method_names

METRICS = {
    *("i_auroc", "p_auroc", "i_aupr", "p_aupr", "aupro_30", "aupro_10", "aupro_5", "aupro_1"),
    *("fps", "memory_mb", "memory_bank_gb", "training_gpu_hours"),
}


def value(method, metric, source, *, dataset=MVTEC_3D_AD, category="mean"):
    (found,) = [
        row.value
        for row in load_published()
        if (row.method, row.metric, row.source) == (method, metric, source)
        and (row.dataset, row.category) == (dataset, category)
    ]
    return found


@pytest.mark.parametrize(
    ("method", "metric", "source", "expected"),
    [
        ("CFM", "fps", "CFM paper, Table 5", 21.755),
        ("CFM-S", "fps", "CFM paper, Table 5", 24.527),
        ("CFM-S", "memory_mb", "CFM paper, Table 5", 211.09),
        ("CFM-T", "i_auroc", "CFM paper, Table 5", 0.899),
        ("M3DM", "fps", "CFM paper, Table 5", 0.514),
        ("M3DM", "fps", "EasyNet paper, Table 5", 0.10),  # sources disagree: both are kept
        ("EasyNet", "fps", "EasyNet paper, Table 5", 94.55),
        ("MMRD (RGB + depth)", "i_auroc", "MMRD paper, Table 1", 0.950),
        ("MMRD (RGB + depth)", "p_aupr", "MMRD paper, Table 3", 0.421),
        ("MMRD (RGB + depth)", "training_gpu_hours", "MMRD paper, Table 3", 5.8),
        ("MMRD (RGB + depth)", "fps", "MMRD paper, Table 3", 10.2),
        ("TRD (RGB + normals)", "i_auroc", "TRD README", 0.984),
        ("CFM-M", "aupro_10", "CFM paper, Table 11", 0.924),
        ("CFM (sum)", "aupro_1", "CFM paper, Table 6", 0.430),
        ("CFM (sum)", "aupro_1", "CFM paper, Table 10", 0.432),
    ],
)
def test_single_values(method, metric, source, expected):
    assert value(method, metric, source) == expected


def test_values_of_categories_and_of_the_other_data_set():
    source = "CFM paper, Table 11"
    assert value("CFM-S", "i_auroc", source, category="cable_gland") == 0.878
    assert value("AST", "i_auroc", "CFM paper, Table 13", dataset=EYECANDIES) == 0.780
    assert value("AST", "i_auroc", "CFM paper, Table 3", dataset=EYECANDIES) == 0.758
    source = "MMRD paper, Table 1"
    assert value("MMRD (depth only)", "i_auroc", source, category="tire") == 0.849
    bear = {"dataset": EYECANDIES, "category": "GummyBear"}
    assert value("MMRD (RGB + normals)", "i_auroc", source, **bear) == 0.908
    assert value("TRD (RGB + depth)", "aupro_30", "TRD README", category="foam") == 0.902


def test_the_ablations_of_mmrd():
    """Each row of Table 2, and that more than one of its parts prints is there once."""
    source = "MMRD paper, Table 2"
    found = {
        row.method: row.value
        for row in load_published()
        if row.source == source and row.metric == "i_auroc"
    }
    assert found == {
        **{"RD": 0.84, "MMRD (teacher only)": 0.915, "MMRD (priors without interaction)": 0.926},
        **{"MMRD (statistics of ImageNet)": 0.932},
        **{"MMRD (own statistics of normals alone)": 0.934},
        **{"MMRD (own statistics of RGB alone)": 0.938},
        **{"FD": 0.708, "MMFD": 0.825},
        **{"MMRD (depth only)": 0.745, "MMRD (normals only)": 0.895, "MMRD (RGB only)": 0.865},
        **{"MMRD (RGB + depth)": 0.928, "MMRD (RGB + normals)": 0.94},
        **{"MMRD (RGB + depth + normals)": 0.944},
        **{"MMRD (channel self-attention)": 0.912, "MMRD (spatial self-attention)": 0.925},
        **{"MMRD (alpha = 1)": 0.93, "MMRD (alpha of the second modality)": 0.934},
        **{"MMRD (SE module)": 0.902},
        **{"MMRD (10, 10, 10 prototypes)": 0.934, "MMRD (10, 50, 100 prototypes)": 0.942},
        **{"MMRD (100, 50, 10 prototypes)": 0.94, "MMRD (100, 100, 100 prototypes)": 0.933},
    }


def test_every_row_is_plausible():
    rows = load_published()
    assert len(rows) > 1500
    for row in rows:
        assert row.metric in METRICS, row
        assert row.dataset in (MVTEC_3D_AD, EYECANDIES), row
        assert row.gpu in ("RTX 4090", "V100", "P100", "not named"), row
        assert row.value > 0, row
        if "au" in row.metric:
            assert row.value <= 1, row


def test_no_value_stands_twice():
    keys = [(r.method, r.source, r.dataset, r.metric, r.category) for r in load_published()]
    assert len(set(keys)) == len(keys)


def test_the_printed_means_are_those_of_the_printed_categories():
    """A slip in a table of ten categories would show in its mean."""
    tables: dict[tuple, dict[str, float]] = defaultdict(dict)
    for row in load_published():
        tables[row.method, row.source, row.dataset, row.metric][row.category] = row.value
    full = {key: values for key, values in tables.items() if len(values) == 11}
    assert len(full) > 100
    # Printed so: the CFM paper repeats M3DM's own mean, .882, over categories that average .8865.
    del full["M3DM", "CFM paper, Table 13", EYECANDIES, "aupro_30"]
    # And the MMRD paper .840 over categories of PatchCore with FPFH that average .8323.
    del full["BTF", "MMRD paper, Table 1 (PRO, limit not stated)", EYECANDIES, "aupro_30"]
    for key, values in full.items():
        mean = values.pop("mean")
        # Ten values and their mean, each rounded to 3 digits.
        assert sum(values.values()) / 10 == pytest.approx(mean, abs=0.00101), key


def test_every_variant_has_published_accuracy_and_the_main_ones_their_speed():
    ours = [name for name in method_names() if get_method(name)[1].published is None]
    assert ours == ["cfm-normals", "cfm-fpfh"]
    for family, variant in map(get_method, method_names()):
        if variant.published is None:
            continue
        datasets = (MVTEC_3D_AD, EYECANDIES)
        printed = [row for d in datasets for row in published_for(variant.published, dataset=d)]
        metrics = {row.metric for row in printed}
        assert {"i_auroc", "aupro_30"} <= metrics, variant.name
        # Of AST with one modality no paper prints the pixels' AUROC.
        assert "p_auroc" in metrics or variant.published.startswith("AST ("), variant.name
        if family.name == "cfm" or variant.name == "m3dm":
            assert {"fps", "memory_mb", "aupro_1"} <= metrics, variant.name


def test_a_paper_that_repeats_itself_is_quoted_once():
    rows = [row for row in published_for("CFM") if row.metric == "i_auroc"]
    assert [(row.paper, row.value) for row in rows] == [("CFM paper", 0.954)]


def test_sources_that_disagree_are_both_quoted():
    rows = published_for("AST", dataset=EYECANDIES)
    assert {row.value for row in rows if row.metric == "i_auroc"} == {0.758, 0.780}


def test_a_category_comes_with_the_speed_of_the_whole_data_set():
    rows = published_for("CFM-S", category="bagel")
    found = {(row.metric, row.category): row.value for row in rows}
    assert found["fps", "mean"] == 24.527
    assert found["i_auroc", "bagel"] == 0.983
    assert ("i_auroc", "mean") not in found


@pytest.mark.parametrize(
    ("method", "category", "expected"),
    [
        ("MMRD (RGB + depth)", "foam", (MVTEC_3D_AD, "foam", 0.912)),
        ("MMRD (RGB + depth)", "GummyBear", (EYECANDIES, "mean", 0.928)),
        ("MMRD (RGB + normals)", "GummyBear", (EYECANDIES, "GummyBear", 0.908)),
        ("MMRD (RGB + normals)", "widget", (EYECANDIES, "mean", 0.940)),
        ("MMRD (RGB only)", "widget", (MVTEC_3D_AD, "mean", 0.898)),
        ("MMRD (RGB only)", "mean", (MVTEC_3D_AD, "mean", 0.898)),
        ("RD", "foam", (EYECANDIES, "mean", 0.840)),
    ],
)
def test_what_stands_beside_a_measured_category(method, category, expected):
    rows = [row for row in published_beside(method, category) if row.metric == "i_auroc"]
    assert {(row.dataset, row.category, row.value) for row in rows} == {expected}


def test_speed_stands_beside_every_category():
    for category in ("bagel", "GummyBear", "widget"):
        assert "fps" in {row.metric for row in published_beside("MMRD (RGB + depth)", category)}


def test_an_unknown_method_has_no_rows():
    assert published_beside("PatchCore 2000", "bagel") == ()
    assert published_for("PatchCore 2000") == ()
