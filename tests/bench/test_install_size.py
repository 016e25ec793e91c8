"""bench/install_size.py and its table: what is counted, what is refused, what README says."""

from __future__ import annotations

import os
import sys

import install_size as sizes
import pytest
from pages import load_pages
from rendering import readme

PAGE = {**load_pages()["install_size"], "targets_mb": {"run half": 250}}


def install(site_packages, name: str, files: dict[str, int]) -> None:
    """A package as pip leaves it: its files and what its metadata says of them."""
    metadata = site_packages / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for file, size in files.items():
        (site_packages / file).parent.mkdir(parents=True, exist_ok=True)
        (site_packages / file).write_bytes(os.urandom(size))
    names = [*files, f"{metadata.name}/METADATA", "gone.py"]
    (metadata / "RECORD").write_text("".join(f"{file},,\n" for file in names))


def test_packages_are_listed_with_the_largest_first(tmp_path):
    install(tmp_path, "small", {"small.py": 100})
    install(tmp_path, "Large_One", {"large/a.so": 900_000, "large.libs/b.so": 400_000})
    packages, versions = sizes.package_sizes(tmp_path)
    assert list(packages) == ["large-one", "small"]
    assert packages["large-one"] >= 1_300_000
    assert 100 <= packages["small"] < 100_000
    assert versions == {"large-one": "1.0", "small": "1.0"}


def test_a_file_with_two_names_counts_once(tmp_path):
    (tmp_path / "a").write_bytes(os.urandom(100_000))
    alone = sizes.disk_bytes([tmp_path / "a"])
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert sizes.disk_bytes([tmp_path / "a", tmp_path / "b"]) == alone >= 100_000


def test_torch_in_the_run_half_is_an_error():
    sizes.refuse_fit_half({"numpy": "2", "onnxruntime": "1"})
    with pytest.raises(sizes.UnwantedPackageError, match="onnx, torch came with the run half"):
        sizes.refuse_fit_half({"torch": "2", "onnx": "1", "numpy": "2"})


@pytest.mark.own_process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_statement_costs(monkeypatch):
    monkeypatch.setattr(sizes, "RUNS", 2)
    milliseconds, mib = sizes.import_cost(
        sys.executable, "import time; time.sleep(0.02); x = b'x' * 2**25"
    )
    assert milliseconds >= 20
    assert mib == pytest.approx(32, abs=2)


def row(variant="run half", disk=200.0, date="2026-01-01T10:00:00") -> dict:
    return {
        "variant": variant,
        "download_mb": 55.0,
        "disk_mb": disk,
        "packages_mb": {"f": 1, "a": 70, "b": 60, "c": 5, "d": 4, "e": 3, "g": 2},
        "import_ms": 1.4,
        "import_mib": 0.6,
        "engine_import_ms": 300.0,
        "engine_import_mib": 60.0,
        "environment": {
            "cpu": "A",
            "os": "Linux 6",
            "machine": "x86_64",
            "python": "3.11.7",
            "commit": "0123456789abcdef",
            "date": date,
        },
    }


@pytest.mark.parametrize(("disk", "verdict"), [(249.0, "< 250: met"), (250.0, "< 250: missed")])
def test_the_table_says_whether_the_target_is_met(disk, verdict):
    text = readme.render_sizes([row(disk=disk)], PAGE)
    assert verdict in text
    assert "a 70, b 60, c 5, d 4, e 3, others 3" in text
    assert "A, Linux x86_64, Python 3.11.7, commit 0123456789, 2026-01-01." in text


def test_a_variant_without_a_target_has_none():
    assert "| other | 55 | 200 | – |" in readme.render_sizes([row("other")], PAGE)
