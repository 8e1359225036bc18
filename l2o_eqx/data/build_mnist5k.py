"""Remakes the embedded digits: `python -m l2o_eqx.data.build_mnist5k DIR`.

`DIR` holds the four official files. The same arrays give the same bytes (numpy dates every entry
1980-01-01) as long as zlib is the same.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from . import load_mnist
from ._mnist import ARRAYS

NUM_TRAIN = 5000
NUM_TEST = 1000


def build(directory: Path | str, output: Path | str) -> str:
    """Writes the first digits of the official files to one compressed archive.

    **Arguments:**

    - `directory`: a folder that holds the four official files. Their sha256 are checked.
    - `output`: the `.npz` file to write.

    **Returns:**

    The sha256 of the file written, which `_mnist.py` pins.
    """
    full = load_mnist("tfds", directory)
    sizes = {"train": NUM_TRAIN, "test": NUM_TEST}
    prefix = {name: getattr(full, name)[: sizes[name.partition("_")[0]]] for name in ARRAYS}
    np.savez_compressed(output, **prefix)
    return hashlib.sha256(Path(output).read_bytes()).hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m l2o_eqx.data.build_mnist5k DIR")
    print(build(sys.argv[1], Path(__file__).with_name("mnist5k.npz")))
