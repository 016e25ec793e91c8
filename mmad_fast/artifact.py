"""The detector artifact: a folder that holds everything a detector needs to run.

    manifest.json        what it is, its constants, and the sha256 of every other file
    <name>.onnx          frozen networks, static shapes
    <name>.<...>         the same networks exported for an engine, see engine_record.py
    tensors.safetensors  arrays used outside the networks (mapping weights, memory banks)
    golden.safetensors   one scan with its expected anomaly map and score
    manifest.sig         whose it is, where somebody signed it, see signature.py

It is written whole or not at all, holds no pickle, and is verified when it is loaded.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from mmad_fast.engine_record import EngineKey, EngineRecord, export_command, own_precision
from mmad_fast.engines.selection import EngineFiles
from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.folder_files import FolderFiles, read_whole
from mmad_fast.manifest import artifact_rule, read_json
from mmad_fast.missing_values import MissingRecord
from mmad_fast.scan import Scan
from mmad_fast.scratch_folder import replace_folder
from mmad_fast.threshold import Threshold
from mmad_fast.whole_folder import (
    MANIFEST_FILE,
    FolderKind,
    as_path,
    check_nothing_else,
    fingerprint,
    make_readable,
    new_folder_beside,
    reading,
    write_manifest,
)

SCHEMA_VERSION = 5
"""5: `missing_values`. 4: a mapping network's last layer is stored rotated, too. 3: `engines` and
`measured`. 2: the point embedder is no longer part of the graph "points"; its weights are
tensors."""
OLDEST_SCHEMA = 3
"""Still read: what schema 4 adds is computed when such a detector is loaded, and what schema 5 adds
is empty."""
TENSORS_FILE = "tensors.safetensors"
GOLDEN_FILE = "golden.safetensors"
KIND = FolderKind(
    name="artifact",
    contents="a detector artifact",
    schema=SCHEMA_VERSION,
    mark="graphs",
    command="mmad-fast fit",
    again="copy the artifact again or refit",
    renew="fit the detector again",
    rule=artifact_rule,
    oldest_schema=OLDEST_SCHEMA,
)
_SAFETENSORS_TYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
}
_GOLDEN_ARRAYS = {
    "rgb": ("uint8", 3),
    "xyz": ("float32", 3),
    "map": ("float32", 2),
    "score": ("float64", 1),
}
"""Type and number of axes."""
_GOLDEN_NORMALS = {"normals": ("uint8", 3)}
"""Beside them where the detector reads the picture of the normals."""
Entry = TypeVar("Entry")
_RECORDED_PACKAGES = ("mmad-fast", "numpy", "onnx", "onnxruntime", "torch")


@dataclass(frozen=True)
class Golden:
    """A scan with the answer that the detector gave when it was fitted.

    Attributes:
        rgb: (H, W, 3) uint8.
        xyz: (H, W, 3) float32 metres.
        expected_map: (S, S) float32 anomaly map.
        expected_score: The image score.
        normals: (H, W, 3) uint8 picture of the normals, of a detector that reads one.
    """

    rgb: NDArray[np.uint8]
    xyz: NDArray[np.float32]
    expected_map: NDArray[np.float32]
    expected_score: float
    normals: NDArray[np.uint8] | None = None

    @property
    def scan(self) -> Scan:
        """The scan alone, as it was prepared when it was recorded: it is not searched for values
        that stand for no measurement again."""
        return Scan(self.rgb, self.xyz, "golden", normals=self.normals)


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    Attributes:
        schema: Version of this layout; a reader takes OLDEST_SCHEMA to SCHEMA_VERSION.
        method: The variant's name, e.g. "cfm-s".
        family: The folder of methods/ that runs it, e.g. "cfm".
        created: ISO date and time, UTC.
        tool_versions: Version of each package that made it.
        preprocess: The preprocessing recipe's constants.
        parameters: Constants of the method.
        threshold: The decision threshold, or None.
        weights: Where each backbone's weights came from.
        graphs: Per graph its file and the shapes of its inputs and outputs.
        tensors: Per tensor its shape and dtype.
        files: Per file its sha256 and size in bytes.
        engines: The graphs as exported for engines.
        measured: Speed of `graphs`, timed in turns with that of the engines; see EngineRecord.
        missing_values: What stood for no measurement in the scans of the fit; see MissingRecord.
    """

    schema: int
    method: str
    family: str
    created: str
    tool_versions: dict[str, str]
    preprocess: dict[str, Any]
    parameters: dict[str, Any]
    threshold: Threshold | None
    weights: dict[str, Any]
    graphs: dict[str, Any]
    tensors: dict[str, Any]
    files: dict[str, Any]
    engines: tuple[EngineRecord, ...] = ()
    measured: dict[str, Any] | None = None
    missing_values: dict[str, Any] = field(default_factory=lambda: MissingRecord().to_dict())


class ArtifactEntries(dict[str, Entry]):
    """Entries of an artifact by name. To look up one that it has not is an ArtifactError, where a
    dict has KeyError: fitting again mends it, which a slip in the code must not suggest."""

    def __init__(self, entries: Mapping[str, Entry], *, path: Path, kind: str) -> None:
        """Takes the artifact's path and what an entry is, e.g. "tensor", for the message."""
        super().__init__(entries)
        self._path = path
        self._kind = kind

    def __missing__(self, name: str) -> NoReturn:
        known = ", ".join(self) or "none"
        raise ArtifactError(
            f"{self._path}: the artifact has no {self._kind} {name!r} (it has: {known}); it is "
            "incomplete or of another version, fit it again"
        )


@dataclass(frozen=True)
class Artifact:
    """A verified artifact on disk. What is read from it is what its manifest says, also where
    another artifact has taken its place at the path: then it is that one's no more, and what has
    not been read yet is an ArtifactError.

    Attributes:
        path: The folder.
        manifest: What it says.
        files: Its files. Until they are released, and as long as this artifact is there, they are
            open and can be read whatever becomes of the folder.
    """

    path: Path
    manifest: Manifest
    files: FolderFiles = field(compare=False, repr=False)

    def output_shape(self, graph: str, output: str) -> tuple[int, ...]:
        """The shape of an output of a graph.

        Raises:
            ArtifactError: the artifact has no such graph, or the graph no such output.
        """
        outputs = self.graph_record(graph)["outputs"]
        return tuple(self._entries(outputs, f"output of graph {graph!r} named")[output])

    def graph_path(self, name: str) -> Path:
        """The file of the graph of that name.

        Raises:
            ArtifactError: the artifact has no such graph.
        """
        return self.path / self.graph_record(name)["file"]

    def graph_record(self, name: str) -> dict[str, Any]:
        """What the manifest says of a graph: "file", and "inputs" and "outputs" by name.

        Raises:
            ArtifactError: the artifact has no such graph.
        """
        record: dict[str, Any] = self._entries(self.manifest.graphs, "graph")[name]
        return record

    def opened_graph(self, name: str) -> AbstractContextManager[Path]:
        """A path where the verified graph of that name can be read.

        Raises:
            ArtifactError: the artifact has no such graph, or has been replaced.
        """
        return self.files.opened(self.graph_path(name).name)

    def engine_files(self) -> tuple[EngineFiles, ...]:
        """What engines can open: the artifact's own graphs, then those exported, in the order of
        their export."""
        own = EngineFiles(
            target="onnx",
            precision=own_precision(self.manifest.parameters),
            batch_min=1,
            batch_max=1,
            sms=(),
            library="",
            files=self._entries(
                {name: self.graph_path(name) for name in self.manifest.graphs}, "graph"
            ),
            measured=self.manifest.measured,
            folder=self.files,
        )
        return (own, *(self.files_of(record) for record in self.manifest.engines))

    def files_of(self, record: EngineRecord) -> EngineFiles:
        """An engine's files, of which an engine opens the first."""
        return EngineFiles(
            target=record.target,
            precision=record.precision,
            batch_min=record.batch["min"],
            batch_max=record.batch["max"],
            sms=tuple(record.sms),
            library=record.library,
            files=self._entries(
                {name: self.path / names[0] for name, names in record.graphs.items()}, "graph"
            ),
            measured=record.measured,
            folder=self.files,
        )

    def tensors(self) -> ArtifactEntries[NDArray]:
        """All tensors by name, checked against the manifest's shapes and dtypes; to look up another
        name is an ArtifactError.

        They are read-only and stay on disk: pages are read when they are used, and the memory they
        take is the system's file cache. A memory bank of hundreds of megabytes costs nothing twice.

        Raises:
            ArtifactError: the file is unreadable, or its tensors are not those of the manifest; or
                the artifact has been replaced.
        """
        with self.files.opened(TENSORS_FILE) as file:
            tensors = _map_safetensors(file, named=self.path / TENSORS_FILE)
        for name in {*tensors} ^ {*self.manifest.tensors}:
            where = "the manifest" if name in tensors else TENSORS_FILE
            raise ArtifactError(
                f"{self.path}: tensor {name!r} is missing from {where}; fit it again"
            )
        for name, wanted in self.manifest.tensors.items():
            found = _describe(tensors[name])
            if found != wanted:
                raise ArtifactError(
                    f"{self.path}: tensor {name!r} is {found['dtype']} {found['shape']}, the "
                    f"manifest says {wanted['dtype']} {wanted['shape']}; fit it again"
                )
        return self._entries(tensors, "tensor")

    def golden(self) -> Golden:
        """The golden scan and its expected result.

        Raises:
            ArtifactError: the file is unreadable or incomplete, or the artifact has been replaced.
        """
        file = self.path / GOLDEN_FILE
        with self.files.opened(GOLDEN_FILE) as source:
            mapped = _map_safetensors(source, named=file)
            arrays = {name: np.array(array) for name, array in mapped.items()}
        found = {name: (str(array.dtype), array.ndim) for name, array in arrays.items()}
        normals = arrays.get("normals")
        needed = _GOLDEN_ARRAYS if normals is None else {**_GOLDEN_ARRAYS, **_GOLDEN_NORMALS}
        if found != needed or not (
            arrays["rgb"].shape == arrays["xyz"].shape
            and (normals is None or normals.shape == arrays["rgb"].shape)
            and arrays["rgb"].shape[2] == 3
            and arrays["score"].shape == (1,)
            and all(np.isfinite(arrays[name]).all() for name in ("xyz", "map", "score"))
        ):
            raise ArtifactError(
                f"{file}: the golden scan is incomplete or damaged (it has {found}, needed are "
                f"{needed}, finite); fit it again"
            )
        score = float(arrays["score"][0])
        return Golden(arrays["rgb"], arrays["xyz"], arrays["map"], score, normals)

    def _entries(self, entries: Mapping[str, Entry], kind: str) -> ArtifactEntries[Entry]:
        return ArtifactEntries(entries, path=self.path, kind=kind)


def write_artifact(
    path: Path | str,
    *,
    method: str,
    family: str,
    preprocess: Mapping[str, Any],
    parameters: Mapping[str, Any],
    threshold: Threshold | None,
    weights: Mapping[str, Any],
    graphs: Mapping[str, Path],
    tensors: Mapping[str, NDArray],
    golden: Golden,
    missing_values: MissingRecord | None = None,
) -> Path:
    """The absolute path of a new artifact, complete on disk.

    Everything is written to a sibling folder first and moved into place at the end: an interrupted
    write leaves the target as it was. An artifact that stands at `path` is replaced.

    Args:
        path: The artifact's folder.
        method: Variant name.
        family: Folder of methods/ whose detector runs it.
        preprocess: Recipe constants, JSON types.
        parameters: Method constants, JSON types.
        threshold: The decision threshold, or None.
        weights: Where the backbones' weights came from, JSON types.
        graphs: ONNX file by graph name; the files are copied.
        tensors: Arrays by name.
        golden: The golden scan with its expected result.
        missing_values: What stood for no measurement in the scans of the fit; None: nothing.

    Raises:
        InvalidInputError: `path` is no path.
        ArtifactError: `path` is a file, or a folder that holds something else than an artifact, or
            cannot be written.
    """
    with new_folder_beside(path, KIND) as (scratch, target):
        for name, file in graphs.items():
            shutil.copyfile(file, scratch / f"{name}.onnx")
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_safetensors(contiguous, scratch / TENSORS_FILE)
        _save_golden(golden, scratch / GOLDEN_FILE)
        manifest = Manifest(
            schema=SCHEMA_VERSION,
            method=method,
            family=family,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            tool_versions=_tool_versions(),
            preprocess=dict(preprocess),
            parameters=dict(parameters),
            threshold=threshold,
            weights=dict(weights),
            graphs={name: _describe_graph(scratch / f"{name}.onnx") for name in graphs},
            tensors={name: _describe(tensor) for name, tensor in contiguous.items()},
            files={file.name: fingerprint(file) for file in sorted(scratch.iterdir())},
            missing_values=(missing_values or MissingRecord()).to_dict(),
        )
        write_manifest(asdict(manifest), scratch)
        make_readable(scratch)
        replace_folder(scratch, target)
    return target


def check_target(path: Path | str) -> None:
    """Raises if an artifact cannot be written at `path`; call it before hours of fitting.

    Raises:
        InvalidInputError: `path` is no path.
        ArtifactError: `path` is a file, or a folder that holds something else than an artifact, or
            cannot be written.
    """
    with new_folder_beside(path, KIND):
        pass


def read_artifact(
    path: Path | str,
    *,
    verify: bool = True,
    renewed: EngineKey | None = None,
    trust: Path | str | None = None,
) -> Artifact:
    """The artifact in a folder, verified.

    Args:
        path: The artifact's folder.
        verify: Check the sha256 of every file (about 1 GB/s); sizes are checked always.
        renewed: An engine that will be exported again: its files may be damaged or missing.
        trust: A PEM file with the ed25519 public key that must have signed it; see signature.py.

    Raises:
        InvalidInputError: `path` is no path, or `trust` no such key.
        ArtifactError: the folder or a file is missing or may not be read, a byte has changed, the
            manifest is not readable, holds what it may not, or its schema is not one that this
            version reads; a file is a symbolic link, or is not listed; it is not signed by `trust`.
        MissingDependencyError: `trust` is given and cryptography is not installed.
    """
    if trust is not None and not verify:
        raise InvalidInputError(
            "verify is False and trust is given: a signature says nothing of files that are not "
            "verified; leave one of them out"
        )
    return read_whole(
        as_path(path, KIND), KIND, lambda files: _read_artifact(files, verify, renewed, trust)
    )


def _read_artifact(
    files: FolderFiles, verify: bool, renewed: EngineKey | None, trust: Path | str | None
) -> Artifact:
    if trust is not None:
        from mmad_fast.signature import check_signature

        check_signature(files.folder, files.digest, trust)
    manifest = _read_manifest(files)
    check_nothing_else(files.folder, manifest.files, KIND)
    kinds = {
        name: _kind(files.folder, record.key)
        for record in manifest.engines
        for name in record.files
    }
    files.describe(manifest.files, kinds)
    left_out = {
        name for record in manifest.engines if record.key == renewed for name in record.files
    }
    files.hold(*(name for name in manifest.files if name not in left_out), hashed=verify)
    return Artifact(files.folder, manifest, files)


def _kind(folder: Path, key: EngineKey) -> FolderKind:
    """What errors say of an engine's file: it can be made anew."""
    return replace(
        KIND, again=f"copy the artifact again, or export it again: {export_command(folder, key)}"
    )


def sign_artifact(path: Path | str, key: Path | str) -> Path:
    """The file with an artifact's signature, written into its folder.

    Args:
        path: The artifact's folder; all of it is verified.
        key: A PEM file with an ed25519 private key, without a password.

    Raises:
        InvalidInputError: `path` is no path, or the key cannot be read or is another one.
        ArtifactError: it is no sound artifact, or the signature cannot be written.
        MissingDependencyError: cryptography is not installed.
    """
    from mmad_fast.signature import write_signature

    artifact = read_artifact(path)
    with reading(artifact.path, KIND):
        return write_signature(artifact.path, artifact.files.digest, key)


def _read_manifest(files: FolderFiles) -> Manifest:
    content = files.manifest()
    file = files.folder / MANIFEST_FILE
    graphs = list(content["graphs"])
    records = [
        EngineRecord.from_dict(record, manifest=file, graphs=graphs)
        for record in content.pop("engines")
    ]
    threshold = Threshold.from_dict(content.pop("threshold"), manifest=file)
    manifest = Manifest(**content, threshold=threshold, engines=tuple(records))
    named = {
        TENSORS_FILE,
        GOLDEN_FILE,
        *(graph["file"] for graph in manifest.graphs.values()),
        *(name for record in records for name in record.files),
    }
    if named != set(manifest.files):
        raise ArtifactError(
            f"{file}: lists the files {sorted(manifest.files)}, its parts are "
            f"{sorted(named)}; {KIND.again}"
        )
    return manifest


def _map_safetensors(file: Path, *, named: Path | None = None) -> dict[str, NDArray]:
    """The arrays by name, read-only, memory-mapped; messages call the file by `named`."""
    try:
        with safetensors.safe_open(file, framework="np"):
            pass  # the header is checked: types, offsets and the file's size agree
        with file.open("rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            header = read_json(stream.read(header_size))
        header.pop("__metadata__", None)
        if not header:
            return {}
        content = np.memmap(file, np.uint8, mode="r").view(np.ndarray)[8 + header_size :]
        return {name: _mapped(content, entry) for name, entry in header.items()}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{named or file}: is not a readable safetensors file ({error}); copy the artifact "
            "again"
        ) from error


def _mapped(content: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray:
    """The array of one entry of a safetensors header, in the file's content after the header."""
    begin, end = entry["data_offsets"]
    array = content[begin:end].view(_SAFETENSORS_TYPES[entry["dtype"]]).reshape(entry["shape"])
    if array.flags.aligned:
        return array
    copied = array.copy()  # kernels read whole numbers; our own files are aligned
    copied.flags.writeable = False
    return copied


def save_safetensors(arrays: dict[str, NDArray], file: Path) -> None:
    """Writes the arrays.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        safetensors.numpy.save_file(arrays, file)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(str(error)) from error


def _save_golden(golden: Golden, file: Path) -> None:
    arrays: dict[str, NDArray] = {
        "rgb": np.ascontiguousarray(golden.rgb),
        "xyz": np.ascontiguousarray(golden.xyz),
        "map": np.ascontiguousarray(golden.expected_map),
        "score": np.array([golden.expected_score], np.float64),
    }
    if golden.normals is not None:
        arrays["normals"] = np.ascontiguousarray(golden.normals)
    save_safetensors(arrays, file)


def _describe(array: NDArray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _describe_graph(file: Path) -> dict[str, Any]:
    from mmad_fast.engines.onnx_runtime import OnnxRuntimeEngine

    engine = OnnxRuntimeEngine(file, num_threads=1)
    return {
        "file": file.name,
        "inputs": {name: list(shape) for name, shape in engine.input_shapes.items()},
        "outputs": {name: list(shape) for name, shape in engine.output_shapes.items()},
    }


def _tool_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
