"""The artifact: written whole or not at all, and every kind of damage has its own clear error."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from robustness.replacing import writer_arguments

from mmad_fast import artifact as artifact_module
from mmad_fast import folder_files
from mmad_fast import scratch_folder as scratch_folder_module
from mmad_fast.artifact import Golden, check_target, read_artifact, write_artifact
from mmad_fast.detector import load
from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.scratch_folder import scratch_folder
from mmad_fast.whole_folder import fingerprint


@pytest.fixture
def copied(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


def rewrite_manifest(folder: Path, change) -> None:
    """Changes the manifest and signs it again, as a faulty writer would."""
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    content.pop("manifest_sha256")
    change(content)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["manifest_sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    file.write_text(json.dumps(content))


def test_round_trip(tiny_artifact: Path) -> None:
    artifact = read_artifact(tiny_artifact)
    assert artifact.manifest.method == "cfm-t"
    assert artifact.manifest.graphs["rgb"]["inputs"] == {"image": [1, 3, 56, 56]}
    assert artifact.tensors()["rgb_to_point.input.weight"].shape == (7, 8)
    assert artifact.golden().expected_score > 0
    assert (artifact.manifest.engines, artifact.manifest.measured) == ((), None)
    (own,) = artifact.engine_files()
    assert (own.target, own.precision, own.batch_min, own.batch_max) == ("onnx", "fp32", 1, 1)
    assert own.files == {name: tiny_artifact / f"{name}.onnx" for name in ("rgb", "points")}


@pytest.mark.parametrize(
    ("look_up", "words"),
    [
        (lambda artifact: artifact.tensors()["bank.rgb"], "tensor 'bank.rgb' .*embedder.*fit"),
        (lambda artifact: artifact.graph_path("uff_rgb"), "graph 'uff_rgb' .*has: rgb, points"),
        (lambda artifact: artifact.engine_files()[0].files["uff_rgb"], "graph 'uff_rgb' .*fit"),
        (lambda artifact: artifact.output_shape("uff_rgb", "fused"), "graph 'uff_rgb' .*fit"),
        (
            lambda artifact: artifact.output_shape("rgb", "fused"),
            "output of .* named 'fused' .*tokens.*fit",
        ),
    ],
)
def test_an_entry_that_is_not_there_is_named(tiny_artifact: Path, look_up, words: str) -> None:
    with pytest.raises(ArtifactError, match=f"{tiny_artifact}: the artifact has no .*{words}"):
        look_up(read_artifact(tiny_artifact))


def test_tensors_stay_on_disk_and_cannot_be_changed(tmp_path: Path) -> None:
    given = {
        "half": np.arange(7, dtype=np.float16),
        "double": np.arange(6, dtype=np.float64).reshape(2, 3),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3, np.int64),
        "flags": np.array([True, False, True]),
        "bytes": np.arange(5, dtype=np.uint8),
        "bank": np.arange(12, dtype=np.float32).reshape(3, 4),
    }
    safetensors.numpy.save_file(given, tmp_path / "tensors.safetensors")
    read = artifact_module._map_safetensors(tmp_path / "tensors.safetensors")
    assert set(read) == set(given)
    for name, array in read.items():
        np.testing.assert_array_equal(array, given[name], err_msg=name)
        assert (array.dtype, array.flags.aligned) == (given[name].dtype, True)
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    owner = read["bank"]
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner.base, mmap.mmap)


def test_tensors_that_are_not_aligned_are_copied(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
        }
    ).encode()
    values = np.array([1.5, -2], np.float32)
    content = len(header).to_bytes(8, "little") + header + b"\1\2\3" + values.tobytes()
    (tmp_path / "tensors.safetensors").write_bytes(content)
    read = artifact_module._map_safetensors(tmp_path / "tensors.safetensors")
    np.testing.assert_array_equal(read["a"], [1, 2, 3])
    np.testing.assert_array_equal(read["b"], values)
    assert (read["b"].flags.aligned, read["b"].flags.writeable) == (True, False)


@pytest.mark.parametrize("length", [0, 4, 8, 40, -1])
def test_tensors_cut_short_are_an_artifact_error(tmp_path: Path, length: int) -> None:
    file = tmp_path / "tensors.safetensors"
    safetensors.numpy.save_file({"bank": np.zeros((3, 4), np.float32)}, file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="not a readable safetensors file.*copy"):
        artifact_module._map_safetensors(file)


def test_holds_exactly_the_files_of_the_manifest(tiny_artifact: Path) -> None:
    listed = set(read_artifact(tiny_artifact).manifest.files) | {"manifest.json"}
    assert {file.name for file in tiny_artifact.iterdir()} == listed


@pytest.mark.parametrize("name", ["rgb.onnx", "tensors.safetensors", "golden.safetensors"])
def test_a_changed_byte_is_named(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} has been changed.*sha256"):
        read_artifact(copied)


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "points.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"points\.onnx is missing"):
        read_artifact(copied)


def test_a_truncated_file_is_found_without_hashing(copied: Path) -> None:
    file = copied / "points.onnx"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match=r"points\.onnx has \d+ bytes, the manifest says"):
        read_artifact(copied, verify=False)


def test_a_newer_schema_asks_for_an_upgrade(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content.update(schema=6))
    with pytest.raises(ArtifactError, match=r"schema 6, this version reads 3 to 5; upgrade"):
        read_artifact(copied)


def test_an_older_schema_asks_for_a_new_fit(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content.update(schema=2))
    with pytest.raises(ArtifactError, match=r"schema 2, this version reads 3 to 5; fit .* again"):
        read_artifact(copied)


def test_a_changed_manifest_is_found(copied: Path) -> None:
    file = copied / "manifest.json"
    file.write_text(file.read_text().replace("cfm-t", "cfm-s"))
    with pytest.raises(ArtifactError, match="has been changed since it was written"):
        read_artifact(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "x"}', "null"])
def test_an_unreadable_manifest(copied: Path, text: str) -> None:
    (copied / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="not a readable manifest"):
        read_artifact(copied)


def test_a_manifest_with_wrong_fields(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content.pop("threshold"))
    with pytest.raises(ArtifactError, match=r"wrong fields \(missing: \['threshold'\]"):
        read_artifact(copied)


def test_a_file_name_that_leaves_the_folder(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content["files"].update({"../x": {}}))
    with pytest.raises(
        ArtifactError, match=r"a name in files is '\.\./x'; it must be a file's name"
    ):
        read_artifact(copied)


def test_a_tensor_of_the_wrong_shape(copied: Path) -> None:
    def widen(content: dict) -> None:
        content["tensors"]["rgb_to_point.input.bias"]["shape"] = [99]

    rewrite_manifest(copied, widen)
    with pytest.raises(ArtifactError, match=r"input\.bias' is float32 \[7\], the manifest says"):
        load(copied)


def test_a_graph_of_the_wrong_shape(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content["parameters"].update(num_groups=25))
    with pytest.raises(ArtifactError, match=r"tokens.*\(1, 24, 384\).*\(1, 25, 384\)"):
        load(copied)


def test_a_missing_parameter(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content["parameters"].pop("rgb_size"))
    with pytest.raises(ArtifactError, match=r"lack.* rgb_size"):
        load(copied)


def test_an_unknown_family(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content.update(family="future"))
    words = (
        f"{copied}: this version has no family .*'future'; it has cfm, m3dm, .*; upgrade with: pip"
    )
    with pytest.raises(ArtifactError, match=words):
        load(copied)


@pytest.mark.parametrize(
    ("written", "today", "is_exact"), [("float32", "fp32", True), ("int8", "int8", False)]
)
def test_a_precision_as_earlier_versions_called_it(
    copied: Path, written: str, today: str, is_exact: bool
) -> None:
    expected = load(copied).replay_golden()
    rewrite_manifest(copied, lambda content: content["parameters"].update(precision=written))
    detector = load(copied)
    assert detector.options.precision == detector.engine_choice.precision == today
    assert detector.artifact.engine_files()[0].precision == today
    assert detector.is_exact is is_exact
    assert detector.replay_golden() == expected


def test_the_record_of_a_graph(tiny_artifact: Path) -> None:
    artifact = read_artifact(tiny_artifact)
    assert artifact.output_shape("points", "features") == (1, 24, 6)
    with pytest.raises(ArtifactError, match="no graph 'uff_rgb'"):
        artifact.output_shape("uff_rgb", "fused")


def test_no_such_folder_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder; make a detector artifact with"):
        read_artifact(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        read_artifact(tmp_path)


def write_like(source: Path, target: Path, tensors: dict, expected_score: float = 1.0) -> Path:
    arguments = writer_arguments(source)
    golden = replace(arguments["golden"], expected_score=expected_score)
    return write_artifact(target, **{**arguments, "tensors": tensors, "golden": golden})


def test_an_artifact_is_replaced_whole(copied: Path) -> None:
    write_like(copied, copied, {"only": np.zeros(3, np.float32)})
    assert list(read_artifact(copied).tensors()) == ["only"]
    assert [path.name for path in copied.parent.iterdir()] == ["artifact"]


def test_a_golden_scan_may_have_a_picture_of_its_normals(copied: Path) -> None:
    arguments = writer_arguments(copied)
    assert arguments["golden"].scan.normals is None
    normals = np.arange(arguments["golden"].rgb.size, dtype=np.uint8)
    normals = normals.reshape(arguments["golden"].rgb.shape)
    golden = replace(arguments["golden"], normals=normals)
    scan = read_artifact(write_artifact(copied, **{**arguments, "golden": golden})).golden().scan
    assert scan.normals is not None
    np.testing.assert_array_equal(scan.normals, normals)
    assert load(copied).replay_golden().agrees  # of a detector that does not read it


def test_others_may_read_it(tiny_artifact: Path) -> None:
    modes = {path.stat().st_mode & 0o044 for path in (tiny_artifact, *tiny_artifact.iterdir())}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o044 & ~umask}


def test_other_files_are_never_overwritten(tiny_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="holds other files"):
        write_like(tiny_artifact, tmp_path, {"a": np.zeros(1, np.float32)})
    with pytest.raises(ArtifactError, match="is a file"):
        write_like(tiny_artifact, tmp_path / "notes.txt", {"a": np.zeros(1, np.float32)})
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "manifest",
    [
        "{}",
        "[]",
        "not JSON",
        '{"schema": 1, "files": {}}',
        '{"name": "my add-on"}',
        '{"a":' * 100_000,
    ],
)
def test_a_manifest_of_something_else_is_no_artifact(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ArtifactError, match=r"holds other files .*\(manifest\.json\)"):
        check_target(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == manifest


@pytest.mark.parametrize("files", [[1, 2], None, "rgb.onnx", {"rgb.onnx": 3}])
def test_a_damaged_list_of_files_is_no_list(copied: Path, files: object) -> None:
    rewrite_manifest(copied, lambda content: content.update(files=files))
    with pytest.raises(ArtifactError, match="holds other files"):
        check_target(copied)


def test_an_artifact_with_other_files_beside_it_is_not_replaced(copied: Path) -> None:
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds other files .*\(notes\.txt\)"):
        check_target(copied)
    (copied / "notes.txt").unlink()
    (copied / "rgb.onnx").unlink()
    check_target(copied)  # a damaged artifact is still one of ours


@pytest.mark.parametrize("place", ["file/artifact", "file/new/artifact", "/proc/artifact"])
def test_a_target_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match=r"cannot be written \(.*choose a folder"):
        check_target(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_target_with_dots_is_resolved(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"/a: the folder holds other files .*\(b\)"):
        check_target(inside / "..")
    monkeypatch.chdir(inside)
    check_target(".")
    written = write_like(tiny_artifact, Path("../c/../new"), {"only": np.zeros(1, np.float32)})
    assert read_artifact(written).path.samefile(tmp_path / "a" / "new")


def test_checking_a_target_leaves_no_folders_behind(tmp_path: Path) -> None:
    check_target(tmp_path / "new" / "deep" / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_no_path_is_no_target() -> None:
    for function in (check_target, read_artifact):
        with pytest.raises(InvalidInputError, match="path is None; it must be a folder's path"):
            function(None)


def fail_at(monkeypatch: pytest.MonkeyPatch, error: BaseException, *calls: int) -> None:
    """Lets these calls of os.rename fail, counted from 1."""
    rename, done = os.rename, []

    def rename_or_fail(source: Path, target: Path) -> None:
        done.append(source)
        if len(done) in calls:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_or_fail)


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_while_replacing_keeps_the_old_artifact(
    copied: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    before = read_artifact(copied).manifest
    monkeypatch.setattr(scratch_folder_module, "_exchange", lambda one, other: False)
    fail_at(monkeypatch, KeyboardInterrupt(), call)
    with pytest.raises(KeyboardInterrupt):
        write_like(copied, copied, {"only": np.zeros(3, np.float32)})
    assert read_artifact(copied).manifest == before
    assert [path.name for path in copied.parent.iterdir()] == ["artifact"]


def test_an_old_artifact_that_cannot_be_put_back_is_kept_and_named(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_artifact(copied).manifest
    monkeypatch.setattr(scratch_folder_module, "_exchange", lambda one, other: False)
    fail_at(monkeypatch, OSError(5, "Input/output error"), 2, 3)
    with pytest.raises(ArtifactError, match="the old one is whole at") as caught:
        write_like(copied, copied, {"only": np.zeros(3, np.float32)})
    (kept,) = copied.parent.glob(".artifact.*/old")
    assert str(kept) in str(caught.value)
    assert read_artifact(kept).manifest == before
    assert read_artifact(copied).manifest == before  # moved back by the next who needs it
    assert [path.name for path in copied.parent.iterdir()] == ["artifact"]


def test_files_that_may_not_be_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    (copied / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not a readable manifest"):
        read_artifact(copied)
    monkeypatch.setattr(folder_files, "_open", refuse)
    monkeypatch.setattr(folder_files, "PAUSE_S", 0.0)
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read \(Permission denied"):
        read_artifact(copied)


def test_an_interrupted_write_leaves_the_old_artifact(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_artifact(copied).manifest

    def interrupt(golden: Golden, file: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact_module, "_save_golden", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_like(copied, copied, {"only": np.zeros(3, np.float32)})
    assert read_artifact(copied).manifest == before
    assert [path.name for path in copied.parent.iterdir()] == ["artifact"]


def test_a_damaged_golden_scan(copied: Path) -> None:
    file = copied / "golden.safetensors"
    safetensors.numpy.save_file({"rgb": np.zeros(1)}, file)
    rewrite_manifest(
        copied, lambda content: content["files"].update({file.name: fingerprint(file)})
    )
    with pytest.raises(ArtifactError, match="golden scan is incomplete"):
        read_artifact(copied).golden()


def write_tensors(folder: Path, change, file: str = "tensors.safetensors") -> None:
    """Changes the tensors of a file, their records and the digests."""
    tensors = {
        name: array.copy() for name, array in safetensors.numpy.load_file(folder / file).items()
    }
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / file)

    def record(content: dict) -> None:
        content["files"][file] = fingerprint(folder / file)
        if file == "tensors.safetensors":
            content["tensors"] = {
                name: {"shape": list(array.shape), "dtype": str(array.dtype)}
                for name, array in tensors.items()
            }

    rewrite_manifest(folder, record)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("embedder.wide_weight"), "the embedder lacks embedder.wide_weight"),
        (lambda t: t.pop("rgb_to_point.output.bias"), "the mapping network lacks rgb_to_point"),
        (
            lambda t: t.update({"embedder.first_bias": np.zeros(5, np.float32)}),
            r"first_bias has shape \(5,\)",
        ),
        (
            lambda t: t["rgb_to_point.input.weight"].fill(np.nan),
            "weight 0 has a NaN",
        ),
        (
            lambda t: t.update({"rotated.rgb_to_point.bias": np.zeros(5, np.float32)}),
            "rotated layer's bias",
        ),
        (
            lambda t: t.update({"rgb_to_point.input.weight": np.zeros((7, 9), np.float32)}),
            r"'rgb_to_point' maps 9 to 6 channels, the features have \(8, 6\)",
        ),
    ],
)
def test_tensors_that_are_missing_or_do_not_fit(copied: Path, change, words: str) -> None:
    write_tensors(copied, change)
    with pytest.raises(ArtifactError, match=f"^{copied}: .*{words}.*fit the detector again"):
        load(copied)


def test_what_to_do_is_said_once(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content["missing_values"].update(largest_share=2))
    with pytest.raises(ArtifactError, match="missing_values are damaged") as raised:
        load(copied)
    assert str(raised.value).count("copy the artifact again") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.pop("xyz"), "incomplete or damaged"),
        (lambda g: g.update(more=np.zeros(1, np.float32)), "incomplete or damaged"),
        (lambda g: g.update(rgb=g["rgb"].astype(np.float32)), "incomplete or damaged"),
        (lambda g: g.update(xyz=g["xyz"][:-1]), "incomplete or damaged"),
        (lambda g: g.update(normals=g["rgb"][:-1]), "incomplete or damaged"),
        (lambda g: g.update(normals=g["rgb"].astype(np.float32)), "incomplete or damaged"),
        (lambda g: g["map"].fill(np.nan), "incomplete or damaged"),
        (lambda g: g["xyz"].fill(0), "the golden scan cannot be scored"),
        (lambda g: g["xyz"].fill(1e30), "the golden scan cannot be scored"),
        (lambda g: g.update(map=g["map"][:9, :9].copy()), r"the golden map is \(9, 9\)"),
    ],
)
def test_a_golden_scan_that_is_none(copied: Path, change, words: str) -> None:
    write_tensors(copied, change, "golden.safetensors")
    detector = load(copied)
    with pytest.raises(ArtifactError, match=f"^{copied}.*{words}.*fit"):
        detector.replay_golden()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid_size": 10**12}, "grid_size is 1000000000000; it must be at most 2048"),
        ({"rgb_size": 4096}, "rgb_size is 4096; it must be at most 2048"),
        ({"group_size": 10**6}, "group_size is 1000000; it must be at most 1024"),
        ({"token_grid": 6}, r"'tokens': \(1, 49, 8\)}, .* need .*\(1, 36, -1\)"),
        ({"point_layers": 3}, "point_layers is 3; it must be of type"),
    ],
)
def test_parameters_that_cannot_be(copied: Path, change: dict, words: str) -> None:
    rewrite_manifest(copied, lambda content: content["parameters"].update(change))
    with pytest.raises(ArtifactError, match=f"^{copied}: .*{words}"):
        load(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rim_width_px": 2**63}, "rim_width_px is 9223372036854775808; it must be >= 1"),
        ({"cluster_min_points": 0}, "cluster_min_points is 0; it must be >= 1"),
        ({"plane_inlier_m": 1e300}, "plane_inlier_m is 1e[+]300; .* <= 1000"),
        ({"cluster_radius_m": 1e300}, "cluster_radius_m is 1e[+]300; .* <= 1000"),
        ({"std": [0.2, 0.2, 0]}, "std is .* three positive"),
        ({"more": 1}, "unknown keys .'more'"),
    ],
)
def test_a_recipe_that_cannot_be(copied: Path, change: dict, words: str) -> None:
    rewrite_manifest(copied, lambda content: content["preprocess"].update(change))
    with pytest.raises(ArtifactError, match=f"^{copied}: .*{words}"):
        load(copied)


def test_a_graph_that_is_not_the_one_of_the_manifest(copied: Path) -> None:
    def widen(content: dict) -> None:
        content["graphs"]["points"]["outputs"]["features"] = [1, 24, 7]

    rewrite_manifest(copied, widen)
    words = r"'points' has outputs .*\(1, 24, 6\)}, the manifest says .*\(1, 24, 7\)"
    with pytest.raises(ArtifactError, match=words):
        load(copied)


@pytest.mark.parametrize(
    "name", ["manifest.json", "rgb.onnx", "tensors.safetensors", "golden.safetensors"]
)
def test_a_symbolic_link_is_refused_and_so_is_no_folder(
    copied: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "link").symlink_to(copied)
    assert load(tmp_path / "link").replay_golden().agrees
    (copied / name).rename(tmp_path / name)
    (copied / name).symlink_to(tmp_path / name)
    with pytest.raises(ArtifactError, match=rf"{name}: is a symbolic link.*cp -rL"):
        load(copied)


def test_files_that_nobody_listed(copied: Path) -> None:
    for name in (".DS_Store", ".nfs0001"):
        (copied / name).write_text("of the system")
    assert load(copied).replay_golden().agrees
    (copied / "rgb.bin").write_bytes(b"weights?")
    with pytest.raises(ArtifactError, match=r"holds rgb\.bin, which its manifest does not list"):
        load(copied)
    (copied / "rgb.bin").unlink()
    (copied / "folder").mkdir()
    with pytest.raises(ArtifactError, match="holds folder, which its manifest does not list"):
        load(copied)


@pytest.mark.parametrize("name", ["tensors.safetensors", "golden.safetensors", "rgb.onnx"])
def test_an_artifact_that_leaves_a_part_out(copied: Path, name: str) -> None:
    (copied / name).unlink()
    rewrite_manifest(copied, lambda content: content["files"].pop(name))
    with pytest.raises(ArtifactError, match=rf"lists the files .* its parts are .*{name}"):
        load(copied)


def test_a_pipe_is_no_file_and_nobody_waits_for_it(copied: Path) -> None:
    (copied / "rgb.onnx").unlink()
    os.mkfifo(copied / "rgb.onnx")
    with pytest.raises(ArtifactError, match=r"rgb\.onnx is missing"):
        load(copied)


def test_a_file_that_nobody_could_hash(copied: Path) -> None:
    change = {"sha256": "0" * 64, "bytes": 2**44}
    rewrite_manifest(copied, lambda content: content["files"]["golden.safetensors"].update(change))
    with pytest.raises(ArtifactError, match=r"files\.golden\.safetensors\.bytes is 17592186044416"):
        load(copied)


def test_a_tensor_that_the_manifest_does_not_have(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content["tensors"].pop("embedder.final_bias"))
    with pytest.raises(ArtifactError, match=r"'embedder\.final_bias' is missing from the manifest"):
        load(copied)


def test_a_wrong_argument_is_no_fault_of_the_artifact(copied: Path) -> None:
    with pytest.raises(InvalidInputError, match="num_threads is 0"):
        load(copied, num_threads=0)


def replace_by_another(folder: Path) -> None:
    """The same graphs with other tensors and another golden scan."""
    tensors = {
        name: tensor[::-1].copy() if name.endswith("input.weight") else tensor
        for name, tensor in read_artifact(folder).tensors().items()
    }
    write_like(folder, folder, tensors)


def test_an_artifact_that_is_read_stays_readable_when_it_is_replaced(copied: Path) -> None:
    artifact = read_artifact(copied)
    before = {name: tensor.copy() for name, tensor in artifact.tensors().items()}
    score = artifact.golden().expected_score
    replace_by_another(copied)
    for name, tensor in artifact.tensors().items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)
    assert artifact.golden().expected_score == score
    after = read_artifact(copied).tensors()
    assert not np.array_equal(
        after["rgb_to_point.input.weight"], before["rgb_to_point.input.weight"]
    )


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_what_is_read_late_of_a_replaced_artifact_is_an_error(copied: Path, how: str) -> None:
    detector = load(copied)
    assert detector.replay_golden().agrees
    if how == "replaced":
        replace_by_another(copied)
    else:
        shutil.rmtree(copied)
    words = f"{copied}: the artifact was replaced since it was loaded; load it again"
    for read in (detector.replay_golden, detector.artifact.tensors):
        with pytest.raises(ArtifactError, match=words):
            read()
    if how == "removed":
        with pytest.raises(ArtifactError, match=words):
            detector.engine_choice.open("rgb")
    else:  # the same file
        assert detector.engine_choice.open("rgb").input_shapes


def test_what_is_read_late_is_verified(copied: Path) -> None:
    detector = load(copied, verify=False)
    file = copied / "golden.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"golden\.safetensors has been changed.*copy"):
        detector.replay_golden()


def test_a_detector_keeps_its_mapped_tensors_open_alone(tiny_artifact: Path) -> None:
    detector = load(tiny_artifact)
    detector.replay_golden()
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    found = [Path(os.readlink(link)) for link in links if os.path.islink(link)]
    names = {path.name for path in found if path.parent == tiny_artifact}
    assert names <= {"tensors.safetensors"}


def test_an_artifact_is_found_where_it_is_set_aside(copied: Path, monkeypatch) -> None:
    """As a process leaves it that dies between the two steps of replacing."""
    expected = read_artifact(copied).manifest
    with scratch_folder(copied.parent, copied.name) as scratch:
        old = scratch.with_name("old")
        copied.rename(old)
        monkeypatch.setattr(folder_files, "PAUSE_S", 0.0)
        words = f"no such folder, since .*interrupted.*move it back: mv {old} {copied}"
        with pytest.raises(ArtifactError, match=words):
            read_artifact(copied)  # its writer lives
        shutil.copytree(scratch.parent, scratch.parent.with_name(f".{copied.name}.1.partial"))
        shutil.rmtree(old)  # now nobody has the lock of the other one
    assert read_artifact(copied).manifest == expected
    assert [path.name for path in copied.parent.iterdir()] == ["artifact"]


def test_a_link_that_comes_after_the_look_is_not_followed(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "tensors.safetensors").rename(tmp_path / "away")
    (copied / "tensors.safetensors").symlink_to(tmp_path / "away")
    monkeypatch.setattr(folder_files, "refuse_link", lambda file: None)
    with pytest.raises(ArtifactError, match=r"tensors\.safetensors: cannot be read"):
        read_artifact(copied)
