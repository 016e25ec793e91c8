"""Built engines, kept in the user's cache by what they were built from."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmad_fast.cache_folder import cache_root
from mmad_fast.errors import ArtifactError
from mmad_fast.export.engine_layers import EngineLayer
from mmad_fast.scratch_folder import scratch_folder
from mmad_fast.whole_folder import fingerprint

SCHEMA = 1
"""Version of the entries and of how engines are built. It is part of the key, so that entries of
another version are not found."""
ENGINE_FILE = "engine.bin"
RECORD_FILE = "record.json"


@dataclass(frozen=True)
class CachedEngine:
    """What the cache knows of an engine.

    Attributes:
        build_s: How long building it took.
        layers: What the inspector said of it.
    """

    build_s: float
    layers: tuple[EngineLayer, ...]


def cache_key(graph: bytes, **settings: Any) -> str:
    """The name of an engine in the cache: a sha256 of all that it is made from.

    Args:
        graph: The serialised graph.
        settings: Whatever else decides what is built, as JSON takes it: library with version,
            precision, sms, batch.
    """
    facts = {"schema": SCHEMA, "graph": hashlib.sha256(graph).hexdigest(), **settings}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class EngineCache:
    """A folder with one folder per engine: the engine, and a record with its sha256 and layers.

    An entry appears whole or not at all, by renaming its folder; it is checked whenever it is read.
    So several processes can use one cache: who comes second finds the first one's entry.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        """Opens a cache; nothing is written before the first engine is stored.

        Args:
            folder: Where; None: "engines" in the user's cache ($MMAD_FAST_CACHE).
        """
        self.folder = cache_root() / "engines" if folder is None else Path(folder)

    def fetch(self, key: str, target: Path) -> CachedEngine | None:
        """What is known of the engine of that key, copied to `target`; None where there is none, or
        it is damaged. A damaged one is removed.

        Args:
            key: See `cache_key`.
            target: Where the copy is written. What is checked is the copy: another process may
                remove the entry meanwhile. Where there is no engine, it may be half a file.
        """
        entry = self.folder / key
        try:
            record = json.loads((entry / RECORD_FILE).read_text(encoding="utf-8"))
            shutil.copyfile(entry / ENGINE_FILE, target)
            if fingerprint(target) != record["file"]:
                raise ValueError("the engine has changed")
            layers = tuple(EngineLayer.from_dict(layer) for layer in record["layers"])
            return CachedEngine(float(record["build_s"]), layers)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            # Whatever is wrong with it: it can be built again.
            self._remove(entry)
            return None
        except OSError:  # no room for the copy, say, which is no reason to remove the entry
            return None

    def store(
        self, key: str, engine: Path, *, build_s: float, layers: Sequence[EngineLayer]
    ) -> None:
        """Keeps a copy of a built engine.

        Args:
            key: See `cache_key`.
            engine: Its file.
            build_s: How long building it took.
            layers: What the inspector said of it.

        Raises:
            ArtifactError: the cache cannot be written.
        """
        entry = self.folder / key
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with scratch_folder(self.folder, key) as partial:
                shutil.copyfile(engine, partial / ENGINE_FILE)
                record = {
                    "file": fingerprint(partial / ENGINE_FILE),
                    "build_s": build_s,
                    "layers": [asdict(layer) for layer in layers],
                }
                (partial / RECORD_FILE).write_text(json.dumps(record), encoding="utf-8")
                try:
                    os.rename(partial, entry)
                except OSError as error:
                    # Another process has stored the same engine, and may have removed it since.
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
        except OSError as error:
            if not entry.is_dir():  # else another process has stored the same engine
                raise ArtifactError(
                    f"{self.folder}: the engine cache cannot be written "
                    f"({error.strerror or error}); set MMAD_FAST_CACHE to a folder with room where "
                    "you may write, or do without a cache"
                ) from error

    def _remove(self, entry: Path) -> None:
        """Removes an entry at once: nobody sees half of it."""
        if entry.exists():
            # Another process may be quicker, and the cache may be read-only.
            with suppress(OSError), scratch_folder(self.folder, entry.name) as aside:
                os.rename(entry, aside / entry.name)
