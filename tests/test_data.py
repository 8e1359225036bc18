"""MNIST: what the embedded digits are, where the full set is found, and what is refused."""

import functools
import hashlib
import http.server
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from l2o_eqx.data import DataError, Digits, _mnist, _tfds, load_mnist
from l2o_eqx.data.build_mnist5k import build

ROOT = Path(__file__).parents[1]
OFFICIAL = ROOT.parent / "shared" / "data" / "mnist"
FILES = {
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
}
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture
def official() -> Path:
    """The folder of the four official files, for the tests that need them and TFDS."""
    pytest.importorskip("tensorflow_datasets")
    if not OFFICIAL.is_dir():
        pytest.skip("the four official MNIST files are not on this machine")
    return OFFICIAL


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home folder, and no `TFDS_DATA_DIR`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "home"


@pytest.fixture
def offline(monkeypatch) -> list[object]:
    """No network; the list collects the addresses that were tried."""
    tried: list[object] = []

    def refuse(address, *args, **kwargs):
        tried.append(address)
        raise OSError("the network is off")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: refuse(address))
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    return tried


def copy_official(target: Path) -> Path:
    target.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(OFFICIAL / name, target / name)
    return target


def flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def assert_same(a: Digits, b: Digits) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_embedded_is_mnist():
    digits = load_mnist("embedded")
    assert digits.train_images.shape == (5000, 28, 28)
    assert digits.test_images.shape == (1000, 28, 28)
    assert all(getattr(digits, name).dtype == np.uint8 for name in ARRAYS)
    # The best-known labels in machine learning.
    assert digits.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert digits.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    train_counts = [479, 563, 488, 493, 535, 434, 501, 550, 462, 495]
    assert np.bincount(digits.train_labels).tolist() == train_counts
    test_counts = [85, 126, 116, 107, 110, 87, 87, 99, 89, 94]
    assert np.bincount(digits.test_labels).tolist() == test_counts
    # Pixels keep their full range.
    assert digits.train_images[0].min() == 0 and digits.train_images[0].max() == 255


def test_embedded_says_what_it_is():
    digits = load_mnist("embedded")
    assert digits.source == "MNIST-5k (embedded)"
    assert digits.describe() == "MNIST-5k (embedded): 5,000 training and 1,000 test digits"
    joined = b"".join(getattr(digits, name).tobytes() for name in ARRAYS)
    assert digits.sha256 == hashlib.sha256(joined).hexdigest()
    assert digits.sha256 == "03dc591647c4e8363958fc6c69d1022e753e01151e5423680b7f1fc198d2e693"


def test_digits_are_shared_and_read_only():
    digits = load_mnist("embedded")
    assert load_mnist("embedded") is digits
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(digits, name)[0] = 0


def test_pooled_digits_are_means_of_areas():
    """Of whole blocks where sizes divide each other; else what is cut counts by its share."""
    digits = load_mnist("embedded")
    blocks = digits.train_images.reshape(5000, 7, 4, 7, 4).mean((2, 4))
    sevenths = digits.pooled(7)
    np.testing.assert_allclose(sevenths.train_images, blocks, atol=0.5 + 1e-4)
    small = digits.pooled(8)
    assert small.image_size == 8 and small.test_images.shape == (1000, 8, 8)
    # 28/8 = 3.5: each pixel repeated twice makes whole blocks of 7.
    twice = np.repeat(np.repeat(digits.test_images.astype(float), 2, 1), 2, 2)
    blocks = twice.reshape(1000, 8, 7, 8, 7).mean((2, 4))
    np.testing.assert_allclose(small.test_images, blocks, atol=0.5 + 1e-4)
    np.testing.assert_array_equal(small.train_labels, digits.train_labels)
    assert digits.pooled(8) is small and digits.pooled(28) is digits
    assert small.source == "MNIST-5k (embedded) at 8x8" and small.sha256 != digits.sha256
    assert not small.train_images.flags.writeable
    for size in (0, 29):
        with pytest.raises(ValueError, match=f"image_size={size}"):
            digits.pooled(size)


def test_full_set_from_a_read_only_folder(official, home, offline):
    # The folder is the four files and nothing else; TFDS would put its own folders there.
    before = everything_in(official)
    full = load_mnist(data_dir=official)
    assert full.describe() == "MNIST (tfds): 60,000 training and 10,000 test digits"
    assert load_mnist("tfds", str(official)) is full
    assert everything_in(official) == before
    assert not home.exists()
    assert offline == []


def test_embedded_is_a_prefix_of_the_full_set(official):
    full, embedded = load_mnist("tfds", official), load_mnist("embedded")
    np.testing.assert_array_equal(full.train_images[:5000], embedded.train_images)
    np.testing.assert_array_equal(full.train_labels[:5000], embedded.train_labels)
    np.testing.assert_array_equal(full.test_images[:1000], embedded.test_images)
    np.testing.assert_array_equal(full.test_labels[:1000], embedded.test_labels)
    assert full.sha256 != embedded.sha256


def test_build_is_deterministic(official, tmp_path):
    first = build(official, tmp_path / "first.npz")
    assert build(official, tmp_path / "second.npz") == first
    # Not compared with the pinned bytes: another zlib may pack the same arrays differently.
    with np.load(tmp_path / "first.npz", allow_pickle=False) as archive:
        for name in ARRAYS:
            np.testing.assert_array_equal(archive[name], getattr(load_mnist("embedded"), name))


def test_manual_folder(official, tmp_path, offline):
    copy_official(tmp_path / "downloads" / "manual")
    before = everything_in(tmp_path)
    assert_same(load_mnist("tfds", tmp_path), load_mnist("tfds", official))
    assert everything_in(tmp_path) == before
    assert offline == []


def test_quiet_and_leaves_the_progress_bar_as_it_was(official, tmp_path, capfd):
    from tensorflow_datasets.core.utils import tqdm_utils

    shown = tqdm_utils._active
    load_mnist("tfds", copy_official(tmp_path / "four"))
    assert capfd.readouterr() == ("", "")
    assert tqdm_utils._active == shown


@pytest.mark.parametrize("name", sorted(FILES))
def test_damaged_official_file_is_refused(name, official, tmp_path):
    folder = copy_official(tmp_path / "four")
    flip_byte(folder / name)
    with pytest.raises(DataError, match=f"{name}.*checksum.*embedded") as caught:
        load_mnist("tfds", folder)
    assert "\n" not in str(caught.value)


def test_damaged_embedded_file_is_refused(tmp_path, monkeypatch):
    damaged = tmp_path / "mnist5k.npz"
    shutil.copyfile(_mnist._EMBEDDED, damaged)
    flip_byte(damaged)
    monkeypatch.setattr(_mnist, "_EMBEDDED", damaged)
    _mnist._load_embedded.cache_clear()
    with pytest.raises(DataError, match="mnist5k.npz is damaged.*Reinstall"):
        load_mnist("embedded")
    damaged.unlink()
    with pytest.raises(DataError, match="cannot be read.*Reinstall"):
        load_mnist("embedded")


@pytest.mark.parametrize("present", [set(), FILES - {"t10k-labels-idx1-ubyte.gz"}])
def test_offline_is_refused_at_once(present, tmp_path, offline):
    pytest.importorskip("tensorflow_datasets")
    for name in present:
        (tmp_path / name).touch()
    before = everything_in(tmp_path)
    start = time.perf_counter()
    with pytest.raises(DataError, match="t10k-labels.*downloads.manual.*data='embedded'"):
        load_mnist("tfds", tmp_path)
    assert time.perf_counter() - start < 5
    assert len(offline) == 1
    assert everything_in(tmp_path) == before


def test_silent_network_is_refused(monkeypatch):
    # A name server that never answers is not bounded by the socket's own time limit.
    over = threading.Event()

    def wait(*args, **kwargs):
        over.wait()
        raise OSError("the network is off")

    monkeypatch.setattr(_tfds, "_CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(socket, "create_connection", wait)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    start = time.perf_counter()
    assert not _tfds.reachable("https://example.org/x.gz")
    assert time.perf_counter() - start < 2
    over.set()


@pytest.mark.parametrize(
    "proxies, address",
    [
        ({}, ("example.org", 443)),
        ({"https": "http://proxy.example.org:3128"}, ("proxy.example.org", 3128)),
        ({"http": "http://proxy.example.org"}, ("example.org", 443)),
    ],
)
def test_reaches_through_the_proxy(proxies, address, monkeypatch, offline):
    monkeypatch.setattr(urllib.request, "getproxies", lambda: proxies)
    assert not _tfds.reachable("https://example.org/x.gz")
    assert offline == [address]


def test_downloads_once_and_rechecks(official, tmp_path, monkeypatch):
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.image_classification.mnist import MNIST

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            del format, args

    handler = functools.partial(Quiet, directory=str(official))
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setenv("NO_PROXY", "*")
    full = load_mnist("tfds", official)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/"
        infos = {
            address + info.filename: UrlInfo(info.size, info.checksum, info.filename)
            for info in (MNIST.url_infos or {}).values()
        }
        monkeypatch.setattr(MNIST, "url_infos", infos)
        assert_same(load_mnist("tfds", tmp_path), full)
        server.shutdown()
        thread.join()
    # From here on the server is gone: only the cache can answer.
    _mnist._load_tfds.cache_clear()
    assert_same(load_mnist("tfds", tmp_path), full)
    _mnist._load_tfds.cache_clear()
    (cached,) = (tmp_path / "downloads" / "mnist").glob("*train-labels*.gz")
    flip_byte(cached)
    with pytest.raises(DataError, match="train-labels.* is damaged.*Delete it"):
        load_mnist("tfds", tmp_path)


def test_auto_is_embedded_without_a_folder(home, offline):
    assert load_mnist() is load_mnist("embedded")
    assert offline == []


def test_auto_finds_the_default_folder(home, official, offline):
    copy_official(home / "tensorflow_datasets" / "downloads" / "manual")
    assert load_mnist().source == "MNIST (tfds)"
    (home / "tensorflow_datasets" / "downloads" / "manual" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert load_mnist().source == "MNIST-5k (embedded)"
    assert offline == []


def test_auto_with_a_folder_never_falls_back(home, tmp_path, monkeypatch, offline):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match="out of reach"):
        load_mnist(data_dir=tmp_path / "given")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "named"))
    with pytest.raises(DataError, match="named.*out of reach"):
        load_mnist()
    assert load_mnist("embedded").source == "MNIST-5k (embedded)"


def test_environment_names_the_folder(home, official, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(official))
    assert load_mnist() is load_mnist("tfds", official)
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    assert load_mnist().source == "MNIST-5k (embedded)"


def test_unknown_name_lists_the_known_ones():
    # The private function, as a type-checking import hook stops the public one even earlier.
    with pytest.raises(DataError, match="cifar.*'auto', 'embedded', 'tfds'"):
        _mnist._tfds_root("cifar", None)


def test_missing_tfds_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match="pip install tensorflow-datasets importlib_resources"):
        load_mnist("tfds", tmp_path)


def test_import_is_light():
    heavy = "{'jax', 'tensorflow_datasets', 'tensorflow'}"
    code = f"import sys, l2o_eqx.data; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
