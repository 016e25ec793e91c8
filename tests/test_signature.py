"""A signed artifact is loaded by its key, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from test_artifact import rewrite_manifest

from mmad_fast import load
from mmad_fast.artifact import check_target, sign_artifact
from mmad_fast.errors import ArtifactError, InvalidInputError, MissingDependencyError
from mmad_fast.scratch_folder import LOCK, NEW, scratch_folder
from mmad_fast.whole_folder import SIGNATURE_FILE

pytest.importorskip("cryptography", reason="the extra `sign` is not installed")


def write_keys(folder: Path, name: str, kind: str = "ed25519") -> tuple[Path, Path]:
    """(private, public) PEM files."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    key: Any = ed25519.Ed25519PrivateKey.generate()
    if kind != "ed25519":
        key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def copied(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


def test_a_signed_artifact_is_loaded_by_its_key_only(copied: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "own")
    _, other = write_keys(tmp_path, "other")
    with pytest.raises(ArtifactError, match=r"is not signed, and only .*mmad-fast sign"):
        load(copied, trust=public)
    assert sign_artifact(copied, private) == copied / SIGNATURE_FILE
    assert load(copied, trust=public).replay_golden().agrees
    assert load(copied).replay_golden().agrees
    with pytest.raises(ArtifactError, match=r"was not signed by .*other\.pub"):
        load(copied, trust=other)


@pytest.mark.parametrize("damage", ["manifest", "file", "signature", "text", "empty", "link"])
def test_what_is_changed_after_signing_is_refused(
    copied: Path, tmp_path: Path, damage: str
) -> None:
    private, public = write_keys(tmp_path, "own")
    signature = sign_artifact(copied, private)
    if damage == "manifest":
        rewrite_manifest(copied, lambda content: content["threshold"].update(value=1e9))
    elif damage == "file":
        file = copied / "tensors.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "link":
        signature.rename(tmp_path / "signature")
        signature.symlink_to(tmp_path / "signature")
    else:
        texts = {"signature": "00" * 64, "text": "no signature", "empty": ""}
        signature.write_text(texts[damage])
    with pytest.raises(ArtifactError, match="signed|has been changed"):
        load(copied, trust=public)


def test_an_export_ends_a_signature(copied: Path, tmp_path: Path) -> None:
    from mmad_fast.export.detector_export import export_detector

    private, public = write_keys(tmp_path, "own")
    sign_artifact(copied, private)
    export_detector(copied, to="onnx", measure=False)
    with pytest.raises(ArtifactError, match="is not signed"):
        load(copied, trust=public)
    sign_artifact(copied, private)
    assert len(load(copied, trust=public).artifact.manifest.engines) == 1


def test_keys_that_are_none(copied: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "own")
    _, elliptic = write_keys(tmp_path, "elliptic", kind="P-256")
    (tmp_path / "text").write_text("no key")
    for trust in (private, elliptic, tmp_path / "text", tmp_path / "absent"):
        with pytest.raises(InvalidInputError, match="ed25519 public key"):
            load(copied, trust=trust)
    with pytest.raises(InvalidInputError, match=r"absent cannot be read \(No such file"):
        load(copied, trust=tmp_path / "absent")
    with pytest.raises(InvalidInputError, match="ed25519 private key"):
        sign_artifact(copied, public)
    with pytest.raises(InvalidInputError, match="verify is False and trust is given"):
        load(copied, trust=public, verify=False)


def test_without_the_package_it_says_what_to_install(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    _, public = write_keys(tmp_path, "own")
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mmad-fast\[sign\]'"):
        load(copied, trust=public)


def test_the_command_line(copied: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mmad_fast.cli import app

    private, public = write_keys(tmp_path, "own")
    runner = CliRunner()
    done = runner.invoke(app, ["sign", str(copied), "--key", str(private)])
    assert (done.exit_code, done.output.split()[0]) == (0, "wrote")
    done = runner.invoke(app, ["doctor", str(copied), "--trust", str(public), "--json"])
    assert done.exit_code == 0
    (copied / SIGNATURE_FILE).unlink()
    for verb in (["doctor"], ["infer", str(tmp_path)], ["eval", "--data", str(tmp_path)]):
        done = runner.invoke(app, [verb[0], str(copied), *verb[1:], "--trust", str(public)])
        assert done.exit_code == 1
    done = runner.invoke(app, ["doctor", str(copied), "--trust", str(public)])
    assert isinstance(done.exception, ArtifactError)


def test_what_a_killed_signing_left_does_not_keep_a_fit_from_replacing_it(copied: Path) -> None:
    partial = copied / f".{SIGNATURE_FILE}.0.partial"
    with scratch_folder(copied, SIGNATURE_FILE) as scratch:
        lock = (scratch.parent / LOCK).read_text()
    (partial / NEW).mkdir(parents=True)
    (partial / LOCK).write_text(lock)
    assert load(copied).replay_golden().agrees
    check_target(copied)
    assert not partial.exists()
