"""Where backbone weights come from: a file, the owner's download, or a seed. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmad_fast.cache_folder import cache_root
from mmad_fast.errors import InvalidInputError, MissingDependencyError, WeightsError
from mmad_fast.whole_folder import fingerprint, whole_file

CONNECT_TIMEOUT_S = 20
DOWNLOAD_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class OfficialFile:
    """A weights file as its owner publishes it.

    Attributes:
        name: The backbone it belongs to.
        file_name: What the owner calls it; its name in the cache.
        url: Where the owner serves it.
        size_bytes: Its size, None where it is not known for certain.
        sha256: Its published sha256, or the first characters where only these are published, in the
            file's name; None where none is. Such a file is checked key by key and shape by shape
            when it is loaded, and against the sha256 that was recorded when it was downloaded.
        licence: Terms of the weights.
        option: The command line option that takes a local copy.
    """

    name: str
    file_name: str
    url: str
    size_bytes: int | None
    sha256: str | None
    licence: str
    option: str


# Source: the owners' download pages. The sha256 values are those that independent projects pin
# for the same addresses (anomalib for Point-MAE, refiners for DINOv2); none was found for DINO.
# torchvision and timm write the first 8 characters of the sha256 into their files' names.
# EfficientNet's name ends likewise, but its owner never says so nor checks it.
OFFICIAL_FILES: dict[str, OfficialFile] = {
    file.name: file
    for file in (
        OfficialFile(
            "dino-vitb8",
            "dino_vitbase8_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
            None,
            None,
            "Apache-2.0",
            "--rgb-weights",
        ),
        OfficialFile(
            "dinov2-vits14",
            "dinov2_vits14_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
            88_283_115,
            "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
            "Apache-2.0",
            "--rgb-weights",
        ),
        OfficialFile(
            "dinov2-vitb14",
            "dinov2_vitb14_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
            346_378_731,
            "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
            "Apache-2.0",
            "--rgb-weights",
        ),
        OfficialFile(
            "wide-resnet50-2-timm",
            "wide_resnet50_racm-8234f177.pth",
            "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
            "wide_resnet50_racm-8234f177.pth",
            None,
            "8234f177",
            "Apache-2.0",
            "--rgb-weights",
        ),
        OfficialFile(
            "wide-resnet50-2",
            "wide_resnet50_2-95faca4d.pth",
            "https://download.pytorch.org/models/wide_resnet50_2-95faca4d.pth",
            None,
            "95faca4d",
            "BSD-3-Clause",
            "--rgb-weights",
        ),
        OfficialFile(
            "efficientnet-b5",
            "efficientnet-b5-b6417697.pth",
            "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
            "efficientnet-b5-b6417697.pth",
            None,
            None,
            "Apache-2.0",
            "--rgb-weights",
        ),
        OfficialFile(
            "point-mae",
            "pretrain.pth",
            "https://github.com/Pang-Yatian/Point-MAE/releases/download/main/pretrain.pth",
            348_288_755,
            "27ded932bb0a2625d5a8eb006df199b2578598c774aee6d86b985300b6a5fd20",
            "MIT (pre-trained on ShapeNet, whose terms are for research)",
            "--point-weights",
        ),
    )
}


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights of a network came from; recorded in the manifest.

    Attributes:
        kind: "file" (a path the user gave), "download" (the owner's file in the user's cache) or
            "random" (seeded initial values: accuracy then means nothing).
        detail: The file's name, the address, or the seed.
        sha256: Of the file; None for random weights.
        path: The file; None for random weights. Not for the manifest: it names a machine.
    """

    kind: Literal["file", "download", "random"]
    detail: str
    sha256: str | None = None
    path: Path | None = None

    def record(self, name: str) -> dict[str, Any]:
        """What a manifest says of the weights of a network of that name."""
        return {"name": name, "kind": self.kind, "detail": self.detail, "sha256": self.sha256}


@dataclass(frozen=True)
class KnownWeights(OfficialFile):
    """An official file with its place on this machine: one row of `mmad-fast weights`.

    Attributes:
        cached_path: Where it lies in the user's cache, None if it is not there.
    """

    cached_path: Path | None


def cached_path(name: str) -> Path:
    """Where the official file of that backbone belongs in the cache, whether it is there or not.

    Point-MAE's file is called pretrain.pth, so each backbone has its own folder.

    Raises:
        InvalidInputError: no weights are known by that name.
    """
    return cache_root() / "weights" / name / official_file(name).file_name


def official_file(name: str) -> OfficialFile:
    """The official file of that backbone.

    Raises:
        InvalidInputError: no weights are known by that name; the message lists the known ones.
    """
    try:
        return OFFICIAL_FILES[name]
    except KeyError:
        known = ", ".join(OFFICIAL_FILES)
        raise InvalidInputError(f"no weights are known for {name!r}; known are {known}") from None


def known_weights() -> tuple[KnownWeights, ...]:
    """All official weights files, with the place of those that are in the user's cache."""
    places = {name: cached_path(name) for name in OFFICIAL_FILES}
    return tuple(
        KnownWeights(**vars(file), cached_path=places[name] if places[name].is_file() else None)
        for name, file in OFFICIAL_FILES.items()
    )


def resolve_weights(
    name: str, spec: str | Path, *, offline: bool = False, seed: int = 0
) -> WeightsSource:
    """Where the weights are, downloaded if that was asked for and the cache lacks them.

    Args:
        name: Backbone: a name in OFFICIAL_FILES.
        spec: "auto" (the cache, else the owner's download), "random", or the path of a file.
        offline: With "auto": look into the cache only.
        seed: Seed of random weights, for the record.

    Returns:
        The source; its `path` exists and is not empty unless `kind` is "random".

    Raises:
        InvalidInputError: no weights are known by that name.
        MissingDependencyError: a download is needed and pooch is not installed.
        WeightsError: the file is missing, empty or another backbone's official file, the download
            failed, or the cached file has another sha256 than it should.
    """
    official = official_file(name)
    if spec == "random":
        return WeightsSource("random", f"seed {seed}")
    if spec != "auto":
        path = Path(spec).expanduser()
        _check_local_file(path, official)
        sha256 = fingerprint(path)["sha256"]
        _check_not_of_another(path, sha256, official)
        return WeightsSource("file", path.name, sha256, path)
    path = cached_path(name)
    if not path.is_file():
        if offline:
            raise WeightsError(_unavailable_message(official, "downloads are switched off"))
        _download(official, path)
    _check_local_file(path, official)
    return WeightsSource("download", official.url, _checked_sha256(official, path), path)


def _check_local_file(path: Path, official: OfficialFile) -> None:
    advice = (
        f"give {official.option} the path of {official.file_name} ({official.url}), "
        "or 'auto' to download it, or 'random'"
    )
    if not path.is_file():
        found = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise WeightsError(f"{official.name} weights: {path} {found}; {advice}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{official.name} weights: {path} is empty (0 bytes); {advice}")


def _check_not_of_another(path: Path, sha256: str, official: OfficialFile) -> None:
    """Raises WeightsError for the official file of another backbone, whose keys and shapes may be
    the same."""
    for other in OFFICIAL_FILES.values():
        if other.sha256 and other.name != official.name and sha256.startswith(other.sha256):
            raise WeightsError(
                f"{official.name} weights: {path} is the official file of {other.name}; choose "
                f"that backbone, or give {official.option} the path of {official.file_name} "
                f"({official.url})"
            )


def _checked_sha256(official: OfficialFile, path: Path) -> str:
    """The file's sha256, which fits what is published and equals what was recorded at the
    download."""
    found = fingerprint(path)["sha256"]
    record = _record_path(path)
    recorded = (
        record.read_text(encoding="ascii", errors="replace").split() if record.is_file() else []
    )
    expected = {"published": official.sha256, "recorded at download": next(iter(recorded), None)}
    for origin, sha256 in expected.items():
        if sha256 is not None and not found.startswith(sha256):
            raise WeightsError(
                f"{official.name} weights: {path} has sha256 {found}, {origin} is {sha256}: the "
                "file is damaged or another one; delete it and run again to download it"
            )
    # An empty record was left by a machine that stopped while it was written.
    if not recorded and found != official.sha256:
        _write_record(path, found)
    return found


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_record(path: Path, sha256: str) -> None:
    """Writes the sha256 beside the file, in the format of `sha256sum -c`; whole or not at all."""
    with whole_file(_record_path(path)) as partial:
        partial.write_text(f"{sha256}  {path.name}\n", encoding="ascii")


def _unavailable_message(official: OfficialFile, reason: str) -> str:
    path = cached_path(official.name)
    return (
        f"{official.name} weights cannot be had: tried the cache ({path}: not there) and "
        f"{official.url} ({reason}). Get the file where there is a network: "
        f"curl -LO {official.url} - then put it there, or pass {official.option} "
        f"PATH/{official.file_name}. With {official.option} random the network gets seeded random "
        "weights: good for timing, its accuracy means nothing"
    )


def _download(official: OfficialFile, path: Path) -> None:
    """Fetches the official file into the cache; the file appears only when it is whole."""
    try:
        import pooch
        import requests
    except ImportError as error:
        raise MissingDependencyError(
            f"downloading {official.name} weights needs pooch, which is not installed; run "
            f"pip install 'mmad-fast[fit]', or pass {official.option} PATH"
        ) from error
    from mmad_fast.backbones.download_progress import DownloadProgress

    pooch.get_logger().setLevel("WARNING")
    try:
        with DownloadProgress(official.file_name) as progress, whole_file(path) as partial:
            pooch.retrieve(
                official.url,
                known_hash=None,
                fname=partial.name,
                path=partial.parent,
                downloader=pooch.HTTPDownloader(
                    progressbar=progress, chunk_size=DOWNLOAD_CHUNK_BYTES, timeout=CONNECT_TIMEOUT_S
                ),
            )
            if not fingerprint(partial)["sha256"].startswith(official.sha256 or ""):
                raise WeightsError(
                    f"{official.name} weights: what {official.url} served has another sha256 than "
                    f"the published {official.sha256}; nothing was kept. Get the file from "
                    f"elsewhere and pass {official.option} PATH"
                )
    except (requests.ConnectionError, requests.Timeout) as error:
        reason = f"no connection, this machine seems to be offline: {type(error).__name__}"
        raise WeightsError(_unavailable_message(official, reason)) from error
    except requests.RequestException as error:
        raise WeightsError(_unavailable_message(official, str(error))) from error
    except OSError as error:
        raise WeightsError(_unavailable_message(official, f"writing failed: {error}")) from error
