"""MNIST without TensorFlow: an embedded subset, or all of it through TensorFlow Datasets (TFDS).

TFDS's own MNIST builder would need TensorFlow (tensorflow/datasets#11058).
"""

import dataclasses
import functools
import gzip
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8

from .._errors import check
from . import _tfds
from ._tfds import DataError

Source = Literal["auto", "embedded", "tfds"]

_EMBEDDED = Path(__file__).with_name("mnist5k.npz")
_EMBEDDED_SHA256 = "63dba6e74cc8bc6096a7d7bcadaa726ad449aa3f19f780ce0f2790974e044271"

# The official files, and the entries of the embedded archive, both in the order of `Digits`.
_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

_INSTEAD = "or use the embedded subset (data='embedded')."


def _infos() -> Any:
    from tensorflow_datasets.image_classification.mnist import MNIST

    return MNIST.url_infos or {}


_SOURCE = _tfds.Source("Full MNIST", "mnist", _FILES, _infos, _INSTEAD)


@dataclasses.dataclass(frozen=True, eq=False)
class Digits:
    """Handwritten digits as read-only `uint8` arrays, with where they came from.

    **Arguments:**

    - `train_images`, `train_labels`, `test_images`, `test_labels`: pixels 0 to 255, labels 0 to 9.
    - `source`: a name to print beside every result, such as `"MNIST-5k (embedded)"`.
    - `sha256`: the hash of the four arrays' bytes in the order above, to record with a run.
    """

    train_images: UInt8[np.ndarray, "train size size"]
    train_labels: UInt8[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test size size"]
    test_labels: UInt8[np.ndarray, " test"]
    source: str
    sha256: str

    def describe(self) -> str:
        """One line for people: the source and the two sizes."""
        train, test = len(self.train_labels), len(self.test_labels)
        return f"{self.source}: {train:,} training and {test:,} test digits"

    @property
    def image_size(self) -> int:
        """Rows of an image, as many as columns; 28 as they come."""
        return self.train_images.shape[1]

    def pooled(self, image_size: int) -> "Digits":
        """The same digits on fewer pixels, each the mean of the area that it covers, rounded to `uint8`.

        Where the sizes do not divide each other, pixels at the edge of an area count by the share of them
        that is in it. Repeated calls return the same object.

        **Arguments:**

        - `image_size`: rows of an image, as many as columns.

        **Raises:** `ValueError` for a size below 1 or above that of the images.
        """
        check(
            f"`Digits.pooled(image_size=...)` lies between 1 and the {self.image_size} pixels there are. Got "
            f"image_size={image_size}.",
            image_size=(image_size, 1 <= image_size <= self.image_size),
        )
        return self if image_size == self.image_size else _pooled(self, image_size)


def load_mnist(data: Source = "auto", data_dir: Path | str | None = None) -> Digits:
    """Loads MNIST, and says which MNIST it is.

    The embedded subset is the first 5,000 training and the first 1,000 test digits of the official
    files, and needs nothing else. The full set is read through TFDS from four official files: found
    in `data_dir` itself or in its `downloads/manual` folder, or downloaded once into `downloads`.
    Repeated calls return the same object.

    **Arguments:**

    - `data`: `"embedded"`, `"tfds"` (all 70,000), or `"auto"`: the full set if `data_dir` or the
        environment variable `TFDS_DATA_DIR` names a folder, or if its files already lie in TFDS's
        default folder (the network is not tried then); the embedded subset otherwise.
    - `data_dir`: the TFDS folder, or a folder of the four files. The default is `TFDS_DATA_DIR`,
        then `~/tensorflow_datasets`. Not read for `"embedded"`.

    **Returns:**

    The `Digits`.

    **Raises:**

    - `DataError`: if `data` is none of these names, or the set asked for is missing, damaged or out
        of reach. One set never stands in for the other.

    Reference: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document
    recognition"; TensorFlow Datasets, tensorflow.org/datasets/catalog/mnist.
    """
    root = _tfds_root(data, data_dir)
    return _load_embedded() if root is None else _load_tfds(root)


def _tfds_root(data: str, data_dir: Path | str | None) -> Path | None:
    # The folder to read the full set from, or `None` for the embedded subset.
    if data not in get_args(Source):
        known = ", ".join(map(repr, get_args(Source)))
        raise DataError(f"`load_mnist(data={data!r})`: no such data (possible: {known}).")
    given = data_dir or os.environ.get("TFDS_DATA_DIR")
    root = _tfds.root_of(data_dir)
    if data == "tfds" or (data == "auto" and given):
        return root
    default = data == "auto" and importlib.util.find_spec("tensorflow_datasets")
    return root if default and not _tfds.missing(_SOURCE, root) else None


@functools.lru_cache(maxsize=1)
def _load_embedded() -> Digits:
    try:
        _tfds.check(_EMBEDDED.read_bytes(), _EMBEDDED_SHA256, str(_EMBEDDED), "Reinstall l2o_eqx.")
    except OSError as error:
        raise DataError(f"{_EMBEDDED} cannot be read: {error}. Reinstall l2o_eqx.") from error
    with np.load(_EMBEDDED, allow_pickle=False) as archive:
        return _digits([archive[name] for name in ARRAYS], "MNIST-5k (embedded)")


@functools.lru_cache(maxsize=1)
def _load_tfds(root: Path) -> Digits:
    return _tfds.load(_SOURCE, root, lambda raws: _digits([*map(_read_idx, raws)], "MNIST (tfds)"))


def _read_idx(packed: bytes) -> np.ndarray:
    # The format: two zero bytes, the element type (8: bytes), the rank, the big-endian shape.
    raw = gzip.decompress(packed)
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


@functools.lru_cache(maxsize=4)
def _pooled(digits: Digits, image_size: int) -> Digits:
    size = digits.image_size
    # Where new pixels and old ones end, in units of old ones: how much of each old one is in each new one.
    ends = np.linspace(0, size, image_size + 1)
    old = np.arange(size)
    overlaps = np.minimum(ends[1:, None], old + 1) - np.maximum(ends[:-1, None], old)
    shares = (np.maximum(overlaps, 0) * image_size / size).astype(np.float32)

    def pool(images: np.ndarray) -> np.ndarray:
        # Piece by piece: all of them as floating-point numbers are four times as large.
        pieces = np.array_split(images, max(1, len(images) // 1000))
        return np.concatenate([np.rint(shares @ x @ shares.T).astype(np.uint8) for x in pieces])

    train, test = pool(digits.train_images), pool(digits.test_images)
    arrays = [train, digits.train_labels, test, digits.test_labels]
    return _digits(arrays, f"{digits.source} at {image_size}x{image_size}")


def _digits(arrays: list[np.ndarray], source: str) -> Digits:
    digest = hashlib.sha256()
    for array in arrays:
        array.setflags(write=False)  # the cache hands the same arrays to every caller
        digest.update(array.tobytes())
    return Digits(*arrays, source=source, sha256=digest.hexdigest())
