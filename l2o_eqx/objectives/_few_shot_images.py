from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from .._errors import check
from ..data import Digits, load_mnist, load_omniglot
from ._episodes import Episodes, HeldOutClasses, episode_cross_entropy
from ._few_shot import FewShot
from ._mnist import MakeConvNet, MakeMLP

_SIDE = 28
# Characters of Omniglot that are trained on; the rest is held out, as by Finn et al.
_TRAINED = 1_200


def FewShotDigits(
    num_ways: int = 5,
    num_support: int = 1,
    num_query: int = 5,
    *,
    classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6),
    rotations: bool = True,
    conv_channels: tuple[int, ...] = (16, 16, 16),
    hidden_sizes: tuple[int, ...] = (),
    digits: Digits | None = None,
    data: Literal["auto", "embedded", "tfds"] = "auto",
    data_dir: str | Path | None = None,
) -> FewShot:
    """N-way K-shot episodes of handwritten digits: which of N classes, after K examples of each.

    As on Omniglot, a class turned by 90, 180 or 270 degrees is another class, so that 7 digits make 28 and
    the 3 that are held out make 12. (0 and 8 turned by 180 degrees are much like themselves; so nothing gets
    all right.) The held-out classes are the family's variation `"held-out classes"`.

    **Arguments:**

    - `num_ways`, `num_support`, `num_query`, `rotations`: as in `Episodes`.
    - `classes`: the digits that episodes are of; `(7, 8, 9)` to test what was trained on the others.
    - `conv_channels`: channels of 3 × 3 convolutions that halve the image, with ReLU and without BatchNorm.
    - `hidden_sizes`: widths of dense layers between these and the logits.
    - `digits`, `data`, `data_dir`: as in `MNIST`.

    **Returns:** a `FewShot` family, whose loss has the accuracy as auxiliary output (`query_accuracy`).

    **Raises:** `ValueError` as `Episodes`, and for sizes below 1; `l2o_eqx.data.DataError` if the digits
    cannot be had.
    """
    digits = load_mnist(data, data_dir) if digits is None else digits
    others = tuple(label for label in range(10) if label not in classes)
    make = _make_model("FewShotDigits", conv_channels, hidden_sizes, num_ways)
    images, labels = digits.train_images, digits.train_labels
    return _family(images, labels, classes, others, (num_ways, num_support, num_query), rotations, make)


def Omniglot(
    num_ways: int = 5,
    num_support: int = 1,
    num_query: int = 5,
    *,
    held_out: bool = False,
    rotations: bool = True,
    conv_channels: tuple[int, ...] = (64, 64, 64, 64),
    hidden_sizes: tuple[int, ...] = (),
    data_dir: str | Path | None = None,
) -> FewShot:
    """N-way K-shot episodes of Omniglot's characters, through TensorFlow Datasets.

    1,200 of the 1,623 characters are trained on, drawn once for all, the others are held out; a turned
    character is another one. There are 20 drawings of each, so that K + `num_query` can be 20 at most.

    **Arguments:**

    - `num_ways`, `num_support`, `num_query`, `rotations`: as in `Episodes`.
    - `held_out`: whether episodes are of the characters that are not trained on.
    - `conv_channels`, `hidden_sizes`: as in `FewShotDigits`.
    - `data_dir`: see `l2o_eqx.data.load_omniglot`.

    **Returns:** a `FewShot` family, as `FewShotDigits`.

    **Raises:** `ValueError` as `Episodes`, and for sizes below 1; `l2o_eqx.data.DataError` if the archives
    cannot be had.

    Reference: Finn et al. 2017 (arXiv:1703.03400), sec. 5.2.
    """
    found = load_omniglot(data_dir)
    order = np.random.default_rng(0).permutation(int(found.labels.max()) + 1).tolist()
    trained, others = tuple(order[:_TRAINED]), tuple(order[_TRAINED:])
    if held_out:
        trained, others = others, trained
    make = _make_model("Omniglot", conv_channels, hidden_sizes, num_ways)
    sizes = (num_ways, num_support, num_query)
    return _family(found.images, found.labels, trained, others, sizes, rotations, make)


def _make_model(
    owner: str, conv_channels: tuple[int, ...], hidden_sizes: tuple[int, ...], num_ways: int
) -> Callable[..., Any]:
    check(
        f"`{owner}(...)` needs layers of at least one unit. Got conv_channels={conv_channels}, "
        f"hidden_sizes={hidden_sizes}.",
        conv_channels=(conv_channels, min(conv_channels, default=1) >= 1),
        hidden_sizes=(hidden_sizes, min(hidden_sizes, default=1) >= 1),
    )
    sizes = (*hidden_sizes, num_ways)
    if conv_channels:
        return MakeConvNet(conv_channels, sizes, "relu", _SIDE)
    return MakeMLP((_SIDE**2, *sizes), "relu")


def _family(
    images: Any,
    labels: Any,
    classes: tuple[int, ...],
    others: tuple[int, ...],
    sizes: tuple[int, int, int],
    rotations: bool,
    make_model: Callable[..., Any],
) -> FewShot:
    # Held once for both.
    images = jnp.asarray(images)

    def episodes(classes: tuple[int, ...]) -> Episodes:
        return Episodes(images, labels, *sizes, rotations=rotations, classes=classes)

    enough = len(others) * (4 if rotations else 1) >= sizes[0]
    task = HeldOutClasses(episodes(classes), episodes(others) if enough else None)
    return FewShot(make_model, episode_cross_entropy, task, has_aux=True)
