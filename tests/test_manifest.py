"""The rules of a manifest, and how its text is read."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest

from mmad_fast.artifact import OLDEST_SCHEMA, SCHEMA_VERSION, Manifest
from mmad_fast.engine_record import EngineRecord
from mmad_fast.manifest import (
    ENGINE,
    FIELDS,
    FILE_NAME,
    GRAPH_SHAPE,
    MAX_DEPTH,
    NAME,
    NUMBER,
    SINCE,
    TOP,
    ByName,
    Fields,
    Many,
    Maybe,
    UnfitError,
    artifact_rule,
    integers,
    read_json,
)


def test_the_table_has_the_fields_of_the_records() -> None:
    assert FIELDS.keys() == {field.name for field in fields(Manifest)}
    assert ENGINE.rules.keys() == {field.name for field in fields(EngineRecord)}


def test_a_field_is_asked_for_from_its_schema_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(OLDEST_SCHEMA < schema <= SCHEMA_VERSION for schema in SINCE.values())
    monkeypatch.setitem(SINCE, "method", 4)
    assert artifact_rule(4).rules.keys() - artifact_rule(3).rules.keys() == {"method"}


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (integers(1, 5), [1, 5], [0, 6, 1.0, True, "1", None, 10**400]),
        (NUMBER, [0, -1.5], [math.nan, math.inf, True, "1", None]),
        (NAME, ["cfm-s", "a.b:c+1"], ["", "a/b", ".a", "-a", "é", "x" * 201, 3, None, "a\n"]),
        (FILE_NAME, ["rgb.fp16.onnx"], ["../x", "a/b", ".nfs1", "", "a b", "x\0", "..", "a\n"]),
        (GRAPH_SHAPE, [[1], [1, 3, 56, 56]], [[], [0], [-1], [1.0], [1] * 9, 3, {}, [2**40]]),
        (Maybe(NUMBER), [None, 1], ["x", []]),
        (Many(NUMBER, 1, 2), [[1], [1, 2]], [[], [1, 2, 3], "12", {"0": 1}]),
        (ByName(NUMBER, NAME, 1), [{"a": 1}], [{}, [], {"a": "x"}, {"../a": 1}]),
        (Fields({"a": NUMBER}), [{"a": 1}], [{}, {"a": 1, "b": 2}, {"a": None}, [], None]),
        (Fields({"a": NUMBER}, is_open=True), [{"a": 1, "b": []}], [{}, {"b": 1}]),
    ],
)  # fmt: skip
def test_rules(rule: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        rule.check(value, "here")
    for value in bad:
        with pytest.raises(UnfitError, match="here"):
            rule.check(value, "here")


def test_a_refusal_says_where_what_and_what_is_needed() -> None:
    content = {"graphs": {"rgb": {"inputs": [1, -1]}}}
    rule = Fields({"graphs": ByName(Fields({"inputs": Many(integers(1, 9))}), NAME)})
    words = r"^graphs\.rgb\.inputs\[1\] is -1; it must be an integer in 1\.\.9$"
    with pytest.raises(UnfitError, match=words):
        rule.check(content, TOP)
    with pytest.raises(UnfitError, match=r"^it has the wrong fields \(missing: \['graphs'\]"):
        rule.check({"x": 1}, TOP)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": 1}'.encode("utf-16"), "not in UTF-8"),
        (b'{"a": "\xff"}', "not in UTF-8"),
        (b'{"a": 1, "a": 2}', "has a key twice, among 'a'"),
        (b'{"a": {"b": 1, "b": 1}}', "has a key twice, among 'b'"),
        (b"[NaN]", "a number is 'NaN'; it must be finite"),
        (b"[-Infinity]", "it must be finite"),
        (b"[1e999]", "a number is inf; it must be finite"),
        (b"[" + b"9" * 5000 + b"]", "it must be at most"),
        (b"[9223372036854775809]", "it must be at most 9223372036854775808"),
        (nested(MAX_DEPTH + 1), "nested more than 16 deep"),
        (nested(200_000), "nested more than 16 deep"),
        (b'{"a":' * 200_000, "nested more than 16 deep"),
        (json.dumps("x" * 4097).encode(), "of at most 4096 whole characters"),
        (b'["\\ud800"]', "whole characters"),
        (b'{"\\udfff": 1}', "whole characters"),
        (b"[1" + b" " * 2**24 + b"]", "must have at most 16777216"),
        (b"", "Expecting value"),
        (b"[] []", "Extra data"),
    ],
)
def test_text_that_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_json(text)


def test_text_that_is_read() -> None:
    content = {"a": [1, -2.5, 1e-300, True, None, "é"], "b": {"c": -(2**63)}, "d": "😀"}
    assert read_json(json.dumps(content).encode()) == content
    assert read_json(nested(MAX_DEPTH)) is not None
