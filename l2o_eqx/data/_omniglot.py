"""Omniglot without TensorFlow: the official archives through TensorFlow Datasets (TFDS)."""

import dataclasses
import functools
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from . import _tfds

_FILES = ("images_background.zip", "images_evaluation.zip")
_INSTEAD = "or use the digits of MNIST, which need no download (`objectives.FewShotDigits`)."
# Drawings are 105 by 105; as few-shot learners have them.
_SIZE = 28


def _infos() -> Any:
    from tensorflow_datasets.image_classification.omniglot import Omniglot

    return Omniglot.url_infos or {}


_SOURCE = _tfds.Source("Omniglot", "omniglot", _FILES, _infos, _INSTEAD)


@dataclasses.dataclass(frozen=True, eq=False)
class Characters:
    """Handwritten characters of many alphabets, as read-only arrays.

    **Arguments:**

    - `images`: strokes 255 on 0, 28 by 28.
    - `labels`: the number of the character, in the order of the archives, alphabets and characters.
    """

    images: UInt8[np.ndarray, "examples 28 28"]
    labels: Integer[np.ndarray, " examples"]


def load_omniglot(data_dir: Path | str | None = None) -> Characters:
    """Loads Omniglot: 1,623 characters of 50 alphabets, 20 drawings of each, scaled to 28 by 28.

    The two official archives, background and evaluation set, are found in `data_dir` itself or in its
    `downloads/manual` folder, or are downloaded once into `downloads`. A pixel is the mean of what it covers.
    Repeated calls return the same object.

    **Arguments:**

    - `data_dir`: the TFDS folder, or a folder of the two files. The default is `TFDS_DATA_DIR`, then
        `~/tensorflow_datasets`.

    **Returns:**

    The `Characters`.

    **Raises:**

    - `DataError`: if the archives are missing, damaged or out of reach.

    Reference: Lake, Salakhutdinov and Tenenbaum 2015, "Human-level concept learning through probabilistic
    program induction"; tensorflow.org/datasets/catalog/omniglot.
    """
    return _load(_tfds.root_of(data_dir))


@functools.lru_cache(maxsize=1)
def _load(root: Path) -> Characters:
    return _tfds.load(_SOURCE, root, characters_of)


def characters_of(archives: list[bytes]) -> Characters:
    """The characters in zip archives of folders `set/alphabet/character/drawing.png`."""
    images, names = [], []
    for raw in archives:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            drawings = sorted(name for name in archive.namelist() if name.endswith(".png"))
            images += [_scaled(archive.read(name)) for name in drawings]
            names += [name.rpartition("/")[0] for name in drawings]
    order = list(dict.fromkeys(names))
    numbers = {name: i for i, name in enumerate(order)}
    found = Characters(np.stack(images), np.array([numbers[name] for name in names], np.int32))
    for array in (found.images, found.labels):
        array.setflags(write=False)  # the cache hands the same arrays to every caller
    return found


def _scaled(png: bytes) -> UInt8[np.ndarray, "28 28"]:
    from PIL import Image  # comes with matplotlib

    ink = Image.fromarray(255 - 255 * np.asarray(Image.open(io.BytesIO(png)).convert("1"), np.uint8))
    return np.asarray(ink.resize((_SIZE, _SIZE), Image.Resampling.BOX))
