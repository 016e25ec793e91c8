"""Where weights come from: cache, download, a path, a seed; and what is said when they do not."""

import hashlib
import http.server
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from mmad_fast.backbones import known_weights, resolve_weights, weights
from mmad_fast.cache_folder import cache_root
from mmad_fast.errors import InvalidInputError, WeightsError

CONTENT = b"weights" * 100


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMAD_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(tmp_path):
    """The address of a local server that stands for the owner's."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "official.pth").write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def publish(monkeypatch, name, url, sha256):
    official = replace(weights.OFFICIAL_FILES[name], url=url, sha256=sha256)
    monkeypatch.setitem(weights.OFFICIAL_FILES, name, official)


def test_download_lands_in_the_cache_and_is_used_again(server, monkeypatch, capfd):
    digest = hashlib.sha256(CONTENT).hexdigest()
    publish(monkeypatch, "dinov2-vits14", f"{server}/official.pth", digest)
    first = resolve_weights("dinov2-vits14", "auto")
    assert first.kind == "download"
    assert first.sha256 == digest
    assert first.path.read_bytes() == CONTENT
    assert capfd.readouterr().out == ""
    assert resolve_weights("dinov2-vits14", "auto", offline=True) == first
    row = next(row for row in known_weights() if row.name == "dinov2-vits14")
    assert row.cached_path == first.path


def test_download_with_another_sha256_is_refused_and_not_kept(server, monkeypatch):
    publish(monkeypatch, "point-mae", f"{server}/official.pth", "0" * 64)
    with pytest.raises(WeightsError, match=r"another sha256 than the published 0{64}.*--point-w"):
        resolve_weights("point-mae", "auto")
    assert not weights.cached_path("point-mae").exists()


def test_unpublished_sha256_is_recorded_at_download_and_checked_later(server, monkeypatch):
    publish(monkeypatch, "dino-vitb8", f"{server}/official.pth", None)
    source = resolve_weights("dino-vitb8", "auto")
    record = source.path.with_name(source.path.name + ".sha256")
    assert record.read_text() == f"{source.sha256}  {source.path.name}\n"
    source.path.write_bytes(CONTENT + b"!")
    with pytest.raises(WeightsError, match=f"recorded at download is {source.sha256}.*delete it"):
        resolve_weights("dino-vitb8", "auto")


def test_a_published_beginning_of_the_sha256_is_checked(server, monkeypatch):
    digest = hashlib.sha256(CONTENT).hexdigest()
    publish(monkeypatch, "wide-resnet50-2", f"{server}/official.pth", "0" * 8)
    with pytest.raises(WeightsError, match=r"another sha256 than the published 0{8};"):
        resolve_weights("wide-resnet50-2", "auto")
    assert not weights.cached_path("wide-resnet50-2").exists()
    publish(monkeypatch, "wide-resnet50-2", f"{server}/official.pth", digest[:8])
    source = resolve_weights("wide-resnet50-2", "auto")
    record = source.path.with_name(source.path.name + ".sha256")
    assert record.read_text() == f"{digest}  {source.path.name}\n"
    source.path.write_bytes(CONTENT + b"!")
    with pytest.raises(WeightsError, match=f"published is {digest[:8]}: the file is damaged"):
        resolve_weights("wide-resnet50-2", "auto")


def test_the_official_file_of_another_backbone_is_refused(monkeypatch, tmp_path):
    """timm's and torchvision's WideResNet50-2 have the same keys and shapes."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    publish(monkeypatch, "wide-resnet50-2-timm", "https://timm", digest[:8])
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    assert resolve_weights("wide-resnet50-2-timm", tmp_path / "mine.pth").sha256 == digest
    words = r"mine\.pth is the official file of wide-resnet50-2-timm; choose .* --rgb-weights"
    with pytest.raises(WeightsError, match=words):
        resolve_weights("wide-resnet50-2", tmp_path / "mine.pth")


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_record_is_no_record(server, monkeypatch, content):
    publish(monkeypatch, "dino-vitb8", f"{server}/official.pth", None)
    source = resolve_weights("dino-vitb8", "auto")
    record = source.path.with_name(source.path.name + ".sha256")
    record.write_text(content)
    assert resolve_weights("dino-vitb8", "auto") == source
    assert record.read_text() == f"{source.sha256}  {source.path.name}\n"
    assert {path.name for path in record.parent.iterdir()} == {source.path.name, record.name}


def test_an_answer_of_the_server_is_told(server, monkeypatch):
    publish(monkeypatch, "dino-vitb8", f"{server}/gone.pth", None)
    with pytest.raises(WeightsError, match=r"404.*pass --rgb-weights PATH"):
        resolve_weights("dino-vitb8", "auto")
    assert not weights.cached_path("dino-vitb8").exists()


def test_no_connection_says_offline_what_was_tried_and_what_to_do(monkeypatch):
    url = "http://127.0.0.1:9/pretrain.pth"  # the discard port: nothing listens
    publish(monkeypatch, "point-mae", url, "0" * 64)
    with pytest.raises(WeightsError) as caught:
        resolve_weights("point-mae", "auto")
    message = str(caught.value)
    for words in (
        "seems to be offline",
        str(weights.cached_path("point-mae")),
        f"curl -LO {url}",
        "--point-weights PATH",
        "--point-weights random",
    ):
        assert words in message


def test_offline_switch_does_not_try_the_network(server, monkeypatch):
    publish(monkeypatch, "dino-vitb8", f"{server}/official.pth", None)
    with pytest.raises(WeightsError, match=r"downloads are switched off.*--rgb-weights PATH"):
        resolve_weights("dino-vitb8", "auto", offline=True)


def test_a_path_is_hashed_and_named_without_its_folder(tmp_path):
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    source = resolve_weights("dino-vitb8", tmp_path / "mine.pth")
    assert (source.kind, source.detail) == ("file", "mine.pth")
    assert source.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_bad_paths_are_refused_with_the_option_to_use(tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(WeightsError, match=r"no\.pth does not exist; give --rgb-weights"):
        resolve_weights("dino-vitb8", tmp_path / "no.pth")
    with pytest.raises(WeightsError, match=r"is a folder, not a file; give --point-weights"):
        resolve_weights("point-mae", tmp_path)
    with pytest.raises(WeightsError, match=r"empty\.pth is empty \(0 bytes\)"):
        resolve_weights("dino-vitb8", tmp_path / "empty.pth")
    with pytest.raises(InvalidInputError, match="no weights are known for 'resnet'; known are"):
        resolve_weights("resnet", "auto")


def test_random_weights_say_their_seed():
    source = resolve_weights("point-mae", "random", seed=5)
    assert (source.kind, source.detail, source.path) == ("random", "seed 5", None)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MMAD_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "mmad-fast"


def test_known_weights_are_listed_without_torch():
    code = (
        "import sys; from mmad_fast.backbones import known_weights; "
        "assert [w.name for w in known_weights()] == "
        "['dino-vitb8', 'dinov2-vits14', 'dinov2-vitb14', 'wide-resnet50-2-timm', "
        "'wide-resnet50-2', 'efficientnet-b5', 'point-mae']; "
        "assert not {'torch', 'pooch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
