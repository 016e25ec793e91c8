"""Whose artifact it is: an ed25519 signature of the manifest's sha256; the manifest has that of
every other file.

    openssl genpkey -algorithm ed25519 -out key.pem            keep it where artifacts are made
    openssl pkey -in key.pem -pubout -out trusted.pem          goes to where they run
    mmad-fast sign ARTIFACT --key key.pem                      writes manifest.sig beside it
    mmad_fast.load(ARTIFACT, trust="trusted.pem")              loads no other artifact

Needs the extra `sign` (cryptography), on either side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmad_fast.errors import ArtifactError, InvalidInputError, MissingDependencyError
from mmad_fast.whole_folder import SIGNATURE_FILE, whole_file

PURPOSE = b"mmad-fast manifest sha256 "
"""Before what is signed: the key may sign other things, too."""


def write_signature(folder: Path, digest: str, key: str | Path) -> Path:
    """The file with the signature, written beside the manifest.

    Args:
        folder: Of the manifest, which has been verified.
        digest: The sha256 of manifest.json.
        key: A PEM file with an ed25519 private key, without a password.

    Raises:
        InvalidInputError: the key cannot be read or is another one.
        MissingDependencyError: cryptography is not installed.
        OSError: the signature cannot be written.
    """
    private = _load_key(key, is_private=True)
    with whole_file(folder / SIGNATURE_FILE) as partial:
        partial.write_text(private.sign(PURPOSE + digest.encode()).hex() + "\n", encoding="ascii")
    return folder / SIGNATURE_FILE


def check_signature(folder: Path, digest: str, trust: str | Path) -> None:
    """Raises unless the manifest of this digest is signed by the key.

    Args:
        folder: Of the manifest.
        digest: The sha256 of manifest.json, as it was read.
        trust: A PEM file with an ed25519 public key.

    Raises:
        ArtifactError: there is no signature, or another one.
        InvalidInputError: the key cannot be read or is another one.
        MissingDependencyError: cryptography is not installed.
    """
    public = _load_key(trust, is_private=False)
    from cryptography.exceptions import InvalidSignature

    file = folder / SIGNATURE_FILE
    sign = f"mmad-fast sign {folder} --key KEY"
    try:
        if file.is_symlink() or not file.is_file():
            raise ArtifactError(
                f"{folder}: is not signed, and only artifacts that {trust} signed are loaded; sign "
                f"it where its private key is: {sign}"
            )
        with file.open("rb") as stream:
            signature = bytes.fromhex(stream.read(200).decode("ascii"))
        public.verify(signature, PURPOSE + digest.encode())
    except (ValueError, InvalidSignature) as error:
        raise ArtifactError(
            f"{folder}: was not signed by {trust}, or has been changed since (an export changes "
            f"it, too); load another artifact, or sign it anew if you know what it is: {sign}"
        ) from error


def _load_key(file: str | Path, *, is_private: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingDependencyError(
            f"signatures need {error.name}, which is not installed; run "
            "pip install 'mmad-fast[sign]'"
        ) from error
    kind = ed25519.Ed25519PrivateKey if is_private else ed25519.Ed25519PublicKey
    wanted = f"a PEM file with an ed25519 {'private' if is_private else 'public'} key"
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"the key {file} cannot be read ({error.strerror}); check the path, {wanted} is needed"
        ) from error
    try:
        if is_private:
            key: Any = serialization.load_pem_private_key(content, password=None)
        else:
            key = serialization.load_pem_public_key(content)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"the key {file} is not {wanted}; SECURITY.md says how the two keys are made"
        ) from error
    if not isinstance(key, kind):
        raise InvalidInputError(f"the key {file} is a {type(key).__name__}; it must be {wanted}")
    return key
