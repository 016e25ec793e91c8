from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from mmad_fast.errors import InvalidInputError
from mmad_fast.measure.evaluation import Decisions, WrongDecisions
from mmad_fast.measure.published import EYECANDIES, published_beside, published_for
from mmad_fast.measure.tables import (
    BenchRow,
    append_jsonl,
    check_results_file,
    mean_row,
    render_rows,
    rows_to_json,
)
from mmad_fast.threshold import VALIDATION, Threshold

# The keys that scripts reading --json rely on.
KEYS = [
    "method",
    "category",
    "protocol",
    "device",
    "engine",
    "threads",
    "weights",
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_ms_p99",
    "fps",
    "weights_mib",
    "peak_working_mib",
    "process_peak_mib",
    "stage_ms",
    "i_auroc",
    "p_auroc",
    "aupro_30",
    "aupro_10",
    "aupro_5",
    "aupro_1",
    "aupro_mode",
    "published",
]


def bench_row(**changes) -> BenchRow:
    content = {
        "method": "cfm-s",
        "category": "cookie",
        "protocol": "end-to-end",
        "device": "cpu",
        "engine": "onnxruntime",
        "threads": 2,
        "weights": "rgb: file, point: file",
    }
    return BenchRow(**(content | changes))


TIMED = {"latency_ms_p50": 812.34, "latency_ms_p95": 900.0, "latency_ms_p99": 950.0, "fps": 1.21}


OWN = {
    "rgb_backbone": "dino-vitb8",
    "rgb_layers": 4,
    "point_layers": [1, 2, 3],
    "num_groups": 1024,
    "group_size": 128,
    "batch_norm": "cloud",
    "aggregation": "product",
    "mapping": "crossmodal",
}


def text_of(rows) -> str:
    console = Console(file=io.StringIO(), width=220)
    for table in render_rows(rows):
        console.print(table)
    return console.file.getvalue()


def test_a_row_has_every_key_and_null_for_what_was_not_measured():
    content = json.loads(json.dumps(bench_row().to_dict()))
    assert set(KEYS) <= set(content)
    assert content["method"] == "cfm-s"
    assert all(content[key] is None for key in KEYS[7:])


def test_rows_to_json():
    rows = [bench_row(i_auroc=0.5), bench_row(category="potato", stage_ms={"score": 1.0})]
    content = json.loads(json.dumps(rows_to_json(rows, {"cpu": "x"}), allow_nan=False))
    assert set(content) == {"rows", "environment"}
    assert [row["category"] for row in content["rows"]] == ["cookie", "potato"]
    assert content["rows"][1]["stage_ms"] == {"score": 1.0}


def test_published_values_are_kept_apart_with_their_source():
    row = bench_row(published=published_for("CFM-S")).to_dict()
    (fps,) = [entry for entry in row["published"] if entry["metric"] == "fps"]
    assert (fps["value"], fps["gpu"], fps["source"]) == (24.527, "RTX 4090", "CFM paper, Table 5")
    assert row["fps"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fps": float("nan")}, "fps is nan; leave a value that was not measured as None"),
        ({"stage_ms": {"score": float("inf")}}, "stage_ms.score is inf"),
        ({"defects": {"dent": {"i_auroc": float("nan")}}}, "defects.dent.i_auroc is nan"),
        ({"protocol": "both"}, "'both'; it must be one of paper, end-to-end"),
    ],
)
def test_rows_that_would_not_be_json_or_mix_protocols_are_refused(changes, words):
    with pytest.raises(InvalidInputError, match=words):
        bench_row(**changes)


def test_append_jsonl_adds_lines(tmp_path):
    file = tmp_path / "results" / "cpu.jsonl"
    append_jsonl(file, bench_row(fps=1.5), {"date": "2026-01-01"})
    first = file.read_text()
    append_jsonl(file, bench_row(fps=2.5), {"date": "2026-01-02"})
    assert file.read_text().startswith(first)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["fps"] for line in lines] == [1.5, 2.5]
    assert lines[1]["environment"] == {"date": "2026-01-02"}


def test_the_mean_is_plain_and_undefined_where_a_category_is():
    rows = [
        bench_row(i_auroc=0.8, aupro_30=0.5, fps=3.0),
        bench_row(category="gear", i_auroc=0.9, aupro_30=None, fps=4.0),
    ]
    mean = mean_row(rows)
    assert mean.category == "mean"
    assert mean.i_auroc == pytest.approx(0.85)
    assert mean.aupro_30 is None
    assert mean.fps is None


def test_the_mean_stands_beside_the_published_mean():
    rows = [
        bench_row(i_auroc=0.8, published=published_for("CFM-S", category="cookie")),
        bench_row(category="potato", published=published_for("CFM-S", category="potato")),
    ]
    assert mean_row(rows).published == published_for("CFM-S", category="mean")
    assert mean_row([bench_row(), bench_row(category="potato")]).published is None


def test_the_published_mean_is_that_of_the_categories_data_set():
    """Speed, which the CFM paper prints for MVTec 3D-AD, stands before it in the file."""
    row = bench_row(i_auroc=0.8, published=published_beside("CFM", "GummyBear"))
    assert "fps" in {one.metric for one in row.published}
    assert mean_row([row]).published == published_for("CFM", dataset=EYECANDIES)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [bench_row(), bench_row(engine="reference")],
        [bench_row(data="a"), bench_row(data="b")],
        [bench_row(configuration=OWN), bench_row(configuration=OWN | {"rgb_layers": 8})],
    ],
)
def test_no_mean_over_nothing_or_over_different_things(rows):
    with pytest.raises(InvalidInputError, match="all must have the same method"):
        mean_row(rows)


def test_tables_show_measured_values_and_dashes():
    lines = text_of([bench_row(**TIMED, weights_mib=80.55)]).splitlines()
    (line,) = [line for line in lines if "cfm-s" in line]
    for text in ("cookie", "cpu, onnxruntime, 2 threads", "812.3", "1.21", "80.5", "–"):
        assert text in line


def test_protocols_have_tables_of_their_own():
    rows = [bench_row(**TIMED), bench_row(**TIMED, protocol="paper")]
    titles = [str(table.title) for table in render_rows(rows)]
    assert len(titles) == 2
    assert "protocol paper" in titles[0]
    assert "protocol end-to-end" in titles[1]
    assert all(table.row_count == 1 for table in render_rows(rows))


def test_published_rows_are_labelled_and_never_in_a_measured_line():
    rows = [
        bench_row(**TIMED, i_auroc=0.75, published=published_for("CFM-S")),
        bench_row(**TIMED, category="gear", i_auroc=0.7, published=published_for("CFM-S")),
    ]
    lines = text_of(rows).splitlines()
    published = [line for line in lines if "published (GPU: RTX 4090)" in line]
    measured = [line for line in lines if "onnxruntime" in line]
    assert len(published) == 2  # once in the speed table, once in the accuracy table
    assert all("CFM-S, CFM paper" in line for line in published)
    assert all("MVTec 3D-AD, mean" in line for line in published)
    assert "24.527" in published[0]
    assert "211.09 MB" in published[0]
    assert "0.948" in published[1]
    assert len(measured) == 4
    assert not any("24.527" in line or "0.948" in line for line in measured)


def test_papers_that_disagree_have_lines_of_their_own():
    lines = text_of([bench_row(**TIMED, published=published_for("M3DM"))]).splitlines()
    (cfm,) = [line for line in lines if "M3DM, CFM paper" in line]
    (easynet,) = [line for line in lines if "M3DM, EasyNet paper" in line]
    assert "0.514" in cfm
    assert "GPU: RTX 4090" in cfm
    assert "0.1" in easynet
    assert "GPU: V100" in easynet


def test_random_weights_are_said_to_mean_nothing():
    assert "accuracy means nothing" in text_of([bench_row(i_auroc=0.5, weights="rgb: random")])
    assert "accuracy means nothing" not in text_of([bench_row(i_auroc=0.5)])


def test_stages_and_defects_have_tables():
    row = bench_row(
        stage_ms={"preprocess": 20.126, "score": 3.0},
        defects={"dent": {"i_auroc": 0.625}, "stain": {"i_auroc": 1.0}},
    )
    text = text_of([row])
    assert "20.13" in text
    (dent,) = [line for line in text.splitlines() if "dent" in line]
    assert "0.625" in dent


def test_decisions_stand_beside_what_was_promised():
    threshold = Threshold.of_scores([1.0, 2.0, 3.0, 4.0], 0.99, VALIDATION)
    decisions = Decisions(threshold, WrongDecisions(3, 40), WrongDecisions(6, 60))
    row = bench_row(decisions=decisions.to_dict())
    assert json.loads(json.dumps(row.to_dict()))["decisions"]["false_rejects"]["count"] == 3
    text = " ".join(text_of([row]).split())
    assert "4 scans, validation" in text
    assert "20 % (0.63 % to 60 %)" in text
    assert "3 of 40, 7.5 % (1.6 % to 20 %)" in text
    assert "6 of 60, 10 % (3.8 % to 21 %)" in text
    unknown = Decisions(Threshold(1.5, 0.99, 4), None, None)
    assert "4 scans, unknown" in text_of([bench_row(decisions=unknown.to_dict())])
    another = Decisions(None, WrongDecisions(3, 40), None)
    assert "3 of 40" in text_of([bench_row(decisions=another.to_dict())])


def test_more_stages_than_rows_are_lines_of_their_table():
    stages = {f"stage_{index}": index + 0.25 for index in range(18)}
    (table,) = render_rows([bench_row(stage_ms=stages), bench_row(stage_ms={"stage_0": 7.5})])
    assert len(table.columns) == 3
    lines = [
        line for line in text_of([bench_row(stage_ms=stages)]).splitlines() if "stage_" in line
    ]
    assert len(lines) == 18
    assert "17.25" in lines[17]


def test_rows_without_measurements_make_no_table():
    assert render_rows([bench_row()]) == ()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "cfm-s"),
        (
            {"rgb_backbone": "dinov2-vits14", "rgb_layers": 8, "point_layers": [0]},
            "cfm-s (dinov2-vits14 8 layers, blocks 0)",
        ),
        ({"point_layers": [0, 1]}, "cfm-s (dino-vitb8 4 layers, blocks 0, 1)"),
        ({"group_size": 32, "aggregation": "sum"}, "cfm-s (group_size 32; aggregation sum)"),
    ],
)
def test_a_method_says_what_is_not_its_own(changes, text):
    row = bench_row(**TIMED, configuration=OWN | changes, data="rendered3d")
    cells = [cell.strip() for cell in text_of([row]).replace("│", "┃").split("┃")]
    assert text in cells
    assert "cookie, rendered3d" in cells
    assert json.loads(json.dumps(row.to_dict()))["configuration"] == OWN | changes


def test_results_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="results file .*cannot be written"):
        check_results_file(tmp_path / "file" / "rows.jsonl")
    check_results_file(tmp_path / "new" / "rows.jsonl")
    append_jsonl(tmp_path / "new" / "rows.jsonl", bench_row(), {})
    check_results_file(tmp_path / "new" / "rows.jsonl")
    assert len((tmp_path / "new" / "rows.jsonl").read_text().splitlines()) == 1
