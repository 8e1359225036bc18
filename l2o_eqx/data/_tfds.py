"""Files of data sets through TensorFlow Datasets (TFDS), without TensorFlow.

TFDS supplies the addresses, the registered sha256, the cache and the manual folder; we read the files.
"""

import contextlib
import dataclasses
import hashlib
import os
import socket
import tempfile
import threading
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_CONNECT_SECONDS = 5.0


class DataError(ValueError):
    """A data set that cannot be had: an unknown name, a missing or damaged file, no network."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of a data set that TFDS knows.

    **Arguments:**

    - `title`: for messages.
    - `dataset`: TFDS's name of it.
    - `files`: those that are needed.
    - `find_infos`: imports TFDS, and answers with size and checksum by address.
    - `instead`: what else one could do, the end of a message.
    """

    title: str
    dataset: str
    files: tuple[str, ...]
    find_infos: Callable[[], Mapping[str, Any]]
    instead: str


def root_of(data_dir: Path | str | None) -> Path:
    """The folder of TFDS: the one given, `TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(given)).absolute()


def load(source: Source, root: Path, read: Callable[[list[bytes]], T]) -> T:
    """What `read` makes of the contents of the files, in the order of `source.files`.

    **Raises:** `DataError` for everything that goes wrong.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of TFDS and its imports are not ours to mend
            files = fetch(source, root)
        return read([_checked(*files[name], source.instead) for name in source.files])
    except DataError:
        raise
    # TFDS lets through errors of its own and of its HTTP library, besides the usual `OSError`.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(":")
        raise DataError(
            f"{source.title} from {root}: {reason}. Replace what is damaged, try again, {source.instead}"
        ) from error


def _checked(path: Path, sha256: str, instead: str) -> bytes:
    raw = path.read_bytes()
    check(raw, sha256, str(path), f"Delete it and fetch it again, {instead}")
    return raw


def fetch(source: Source, root: Path) -> dict[str, tuple[Path, str]]:
    """Each file's path on this machine and its registered sha256; downloads what is not there.

    **Raises:** `DataError` without TFDS, or if a file is out of reach; what TFDS raises.
    """
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.download.resource import get_dl_fname
        from tensorflow_datasets.core.utils import tqdm_utils

        infos = dict(source.find_infos())
    except ImportError as error:
        raise DataError(
            f"{source.title} needs TensorFlow Datasets. "
            f"Run `pip install tensorflow-datasets importlib_resources`, {source.instead}"
        ) from error
    urls = {url.rpartition("/")[2]: url for url in infos}
    urls = {name: urls[name] for name in source.files}
    kept = root / "downloads" / source.dataset
    manual, lacking = manual_dir(source, root), missing(source, root)
    # By the exact names, which are known only here.
    lacking = [n for n in lacking if not (kept / get_dl_fname(urls[n], infos[urls[n]].checksum)).exists()]
    if lacking and not reachable(urls[lacking[0]]):
        raise DataError(
            f"{source.title}: {root} lacks {', '.join(lacking)}, and {urls[lacking[0]]} is out of "
            f"reach. Put the official files there or in {root / 'downloads/manual'}, {source.instead}"
        )
    # TFDS makes its folders even if it has nothing to put there, and the user's may be read-only:
    # nothing is written to `root` unless something is downloaded.
    by_hand = all((manual / name).exists() for name in source.files)
    shows_progress = getattr(tqdm_utils, "_active", True)
    tfds.display_progress_bar(False)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            paths: dict[str, Path] = tfds.download.DownloadManager(
                download_dir=scratch if by_hand else root / "downloads",
                extract_dir=scratch,
                manual_dir=manual,
                url_infos=infos,
                dataset_name=source.dataset,
                force_checksums_validation=True,
            ).download(urls)  # pyright: ignore[reportAssignmentType]
    finally:
        tfds.display_progress_bar(shows_progress)
    return {name: (Path(paths[name]), infos[urls[name]].checksum) for name in source.files}


def manual_dir(source: Source, root: Path) -> Path:
    """TFDS's place for files fetched by hand, or `root` itself: whichever holds more of them."""
    folders = (root / "downloads" / "manual", root)
    return max(folders, key=lambda folder: sum((folder / name).exists() for name in source.files))


def missing(source: Source, root: Path) -> list[str]:
    """What TFDS would have to download."""
    here = {name for name in source.files if (manual_dir(source, root) / name).exists()}
    # TFDS counts a download as whole once its `.INFO` is there. Its names are often abbreviated: `fetch`
    # looks again.
    for note in (root / "downloads" / source.dataset).glob("*.INFO"):
        if note.with_suffix("").exists():
            here |= {name for name in source.files if name.rpartition(".")[0] in note.name}
    return [name for name in source.files if name not in here]


def reachable(url: str) -> bool:
    """Whether an address can be connected to, directly or by the proxy, within seconds."""
    # TFDS itself retries for 200 s before it gives up. In a thread, as `timeout` does not bound
    # the look-up of the host's name.
    proxy = urllib.request.getproxies().get(urllib.parse.urlsplit(url).scheme)
    target = urllib.parse.urlsplit(proxy or url)
    port = target.port or {"http": 80}.get(target.scheme, 443)
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((target.hostname, port), timeout=_CONNECT_SECONDS).close()
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    return connected.is_set()


def check(raw: bytes, sha256: str, name: str, remedy: str) -> None:
    """Raises a `DataError` unless the content has this sha256."""
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise DataError(f"{name} is damaged: its sha256 is {found}, not {sha256}. {remedy}")
