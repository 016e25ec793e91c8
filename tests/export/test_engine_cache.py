"""The cache of built engines: found, verified, whole, shared by processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmad_fast.errors import ArtifactError
from mmad_fast.export.engine_cache import (
    ENGINE_FILE,
    RECORD_FILE,
    CachedEngine,
    EngineCache,
    cache_key,
)
from mmad_fast.export.engine_layers import EngineLayer, EngineTensor

TENSOR = EngineTensor("x", (1, -1, 8), "Half", "(Linear) Row major linear format")
LAYERS = (EngineLayer("_gemm_mha_v2_myl0_5", "kgen", (TENSOR,), (TENSOR, TENSOR), ("a",), "t"),)
KEY = cache_key(b"graph", library="tensorrt-rtx 1.7.1", sms=[89])


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "rgb.engine"
    path.write_bytes(bytes(range(256)) * 16)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def test_an_engine_is_found_with_its_layers(cache: EngineCache, engine: Path) -> None:
    copy = engine.with_name("copy")
    assert cache.fetch(KEY, copy) is None
    cache.store(KEY, engine, build_s=1.5, layers=LAYERS)
    assert cache.fetch(KEY, copy) == CachedEngine(1.5, LAYERS)
    assert copy.read_bytes() == engine.read_bytes()
    assert [path.name for path in cache.folder.iterdir()] == [KEY]


SETTINGS: dict[str, Any] = {"library": "tensorrt-rtx 1.7.1", "precision": "fp16", "sms": [86, 89]}


@pytest.mark.parametrize(
    "change",
    [
        {"library": "tensorrt-rtx 1.7.2"},
        {"library": "tensorrt 1.7.1"},
        {"precision": "bf16"},
        {"sms": [86]},
        {"batch": [1, 1, 4]},
        {"gpu": "NVIDIA GeForce RTX 4090"},
    ],
)
def test_every_setting_is_in_the_key(change: dict[str, Any]) -> None:
    assert cache_key(b"graph", **SETTINGS) != cache_key(b"graph", **{**SETTINGS, **change})


def test_the_graph_is_in_the_key() -> None:
    assert cache_key(b"graph", **SETTINGS) != cache_key(b"grapg", **SETTINGS)


def test_the_key_is_the_same_in_every_process() -> None:
    assert KEY == "b32d7764f8807916a12c1cf75fde38fe5cefe231d022d3bfcaf0262ae91da873"


def test_the_default_folder_is_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMAD_FAST_CACHE", str(tmp_path / "mine"))
    assert EngineCache().folder == tmp_path / "mine" / "engines"
    assert not (tmp_path / "mine").exists()


def damage_engine(entry: Path) -> None:
    data = bytearray((entry / ENGINE_FILE).read_bytes())
    data[100] ^= 1
    (entry / ENGINE_FILE).write_bytes(data)


def truncate_engine(entry: Path) -> None:
    (entry / ENGINE_FILE).write_bytes((entry / ENGINE_FILE).read_bytes()[:-1])


def remove_engine(entry: Path) -> None:
    (entry / ENGINE_FILE).unlink()


def truncate_record(entry: Path) -> None:
    (entry / RECORD_FILE).write_text((entry / RECORD_FILE).read_text()[:-20])


def empty_record(entry: Path) -> None:
    (entry / RECORD_FILE).write_text("{}")


def other_layers(entry: Path) -> None:
    record = json.loads((entry / RECORD_FILE).read_text())
    record["layers"] = [{"name": "x"}]
    (entry / RECORD_FILE).write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage",
    [damage_engine, truncate_engine, remove_engine, truncate_record, empty_record, other_layers],
)
def test_a_damaged_entry_is_removed_and_stored_again(
    damage: Any, cache: EngineCache, engine: Path
) -> None:
    cache.store(KEY, engine, build_s=1.5, layers=LAYERS)
    damage(cache.folder / KEY)
    assert cache.fetch(KEY, engine.with_name("copy")) is None
    assert list(cache.folder.iterdir()) == []
    cache.store(KEY, engine, build_s=1.5, layers=LAYERS)
    assert cache.fetch(KEY, engine.with_name("copy")) is not None


def test_what_is_there_already_stays(cache: EngineCache, engine: Path) -> None:
    cache.store(KEY, engine, build_s=1.5, layers=LAYERS)
    cache.store(KEY, engine, build_s=2.5, layers=())
    found = cache.fetch(KEY, engine.with_name("copy"))
    assert found is not None
    assert found.build_s == 1.5
    assert [path.name for path in cache.folder.iterdir()] == [KEY]


def test_an_interrupted_store_leaves_nothing_to_be_found(
    cache: EngineCache, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.store(KEY, engine, build_s=1.5, layers=LAYERS)
    assert list(cache.folder.iterdir()) == []
    assert cache.fetch(KEY, engine.with_name("copy")) is None


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, engine: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = EngineCache(tmp_path / "file")
    assert cache.fetch(KEY, engine.with_name("copy")) is None
    with pytest.raises(ArtifactError, match="cannot be written.*MMAD_FAST_CACHE"):
        cache.store(KEY, engine, build_s=1.5, layers=LAYERS)


def test_a_copy_that_has_no_room_leaves_the_entry(
    cache: EngineCache, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(KEY, engine, build_s=1.5, layers=LAYERS)

    def fill(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", fill)
        assert cache.fetch(KEY, engine.with_name("copy")) is None
    assert cache.fetch(KEY, engine.with_name("copy")) is not None


WORKER = """
import sys
from contextlib import suppress
from pathlib import Path
from mmad_fast.export.engine_cache import EngineCache
cache, engine, number = EngineCache(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
copy = engine.with_name(f"copy{number}")
for round in range(200):
    key = f"{round % 4:064d}"
    if cache.fetch(key, copy) is not None:
        assert copy.read_bytes() == engine.read_bytes()
    cache.store(key, engine, build_s=1.0, layers=())
    if round % 3 == number:
        with suppress(FileNotFoundError):  # the other process has removed it
            (cache.folder / key / "record.json").write_text("{")
"""


@pytest.mark.own_process
def test_two_processes_use_one_cache(cache: EngineCache, engine: Path) -> None:
    """Each also damages entries, so that both remove and write what the other reads."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, cache.folder, engine, str(number)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    errors = [worker.communicate(timeout=60)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert not [path for path in cache.folder.iterdir() if path.name.startswith(".")]
