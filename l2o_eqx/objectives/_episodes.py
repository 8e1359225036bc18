from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, Shaped

from .._errors import ArgumentError, check
from .._types import Scalar

# Images of any shape, and which way each is of, from 0.
Examples = tuple[Shaped[Array, "support ..."], Int[Array, " support"]]
Queries = tuple[Shaped[Array, "query ..."], Int[Array, " query"]]
_TURNS = 4


class Episodes(eqx.Module):
    """Draws N-way K-shot episodes from labeled images: a few classes, a few examples of each.

    The classes of an episode are drawn without replacement and get the numbers 0 to N − 1 in the order of the
    draw, so that a number means nothing beyond its episode. So are the examples; support and query set have
    none in common, and the same number of each class.

    With `rotations`, a class turned by 90, 180 or 270 degrees is a class of its own, as in the Omniglot
    experiments of Santoro et al. 2016 and Finn et al. 2017.

    **Arguments:**

    - `images`: examples on the leading axis; then, with rotations, height and width of a square.
    - `labels`: of every image.
    - `num_ways`, `num_support`, `num_query`: N, K, and the query examples of each class.
    - `rotations`: whether turned classes are others.
    - `classes`: which labels to draw from; all by default.

    **Raises:** `ValueError` for sizes below 1, fewer classes than ways, or fewer examples of a class than the
    sets need.

    Reference: Vinyals et al. 2016, "Matching networks for one shot learning" (arXiv:1606.04080).
    """

    images: Shaped[Array, "examples ..."]
    members: Int[Array, "classes examples"]
    num_ways: int = eqx.field(static=True)
    num_support: int = eqx.field(static=True)
    num_query: int = eqx.field(static=True)
    rotations: bool = eqx.field(static=True)

    def __init__(
        self,
        images: Shaped[Array | np.ndarray, "examples ..."],
        labels: Integer[Array | np.ndarray, " examples"],
        num_ways: int = 5,
        num_support: int = 1,
        num_query: int = 5,
        *,
        rotations: bool = False,
        classes: tuple[int, ...] | None = None,
    ):
        check(
            "`Episodes(...)` needs at least one way and example of each set. Got "
            f"num_ways={num_ways}, num_support={num_support}, num_query={num_query}.",
            num_ways=(num_ways, num_ways >= 1),
            num_support=(num_support, num_support >= 1),
            num_query=(num_query, num_query >= 1),
        )
        labels = np.asarray(labels)
        chosen = np.unique(labels).tolist() if classes is None else classes
        groups = [np.flatnonzero(labels == label) for label in chosen]
        _check(groups, chosen, num_ways, num_support + num_query, rotations)
        # As many of each class as there are of the smallest.
        smallest = min(len(group) for group in groups)
        self.images = jnp.asarray(images)
        self.members = jnp.asarray(np.stack([group[:smallest] for group in groups]), jnp.int32)
        self.num_ways, self.num_support, self.num_query = num_ways, num_support, num_query
        self.rotations = rotations

    @property
    def num_examples(self) -> int:
        """How many images episodes are drawn from."""
        return self.members.size

    def __call__(self, key: PRNGKeyArray) -> tuple[Examples, Queries]:
        ckey, ekey = jr.split(key)
        num_classes, count = self.members.shape
        turns = _TURNS if self.rotations else 1
        drawn = jr.choice(ckey, num_classes * turns, (self.num_ways,), replace=False)
        size = self.num_support + self.num_query

        def of_way(kind, key):
            rows = self.members[kind // turns, jr.choice(key, count, (size,), replace=False)]
            images = self.images[rows]
            return _turned(images, kind % turns) if self.rotations else images

        images = jax.vmap(of_way)(drawn, jr.split(ekey, self.num_ways))
        ways = jnp.arange(self.num_ways, dtype=jnp.int32)

        def part(images):
            return images.reshape(-1, *images.shape[2:]), jnp.repeat(ways, images.shape[1])

        return part(images[:, : self.num_support]), part(images[:, self.num_support :])


def _turned(images: Shaped[Array, "examples size size"], turn: Int[Array, ""]) -> Array:
    turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(_TURNS)])
    return turned[turn]


def _check(groups: Any, chosen: Any, num_ways: int, size: int, rotations: bool) -> None:
    available = len(groups) * (_TURNS if rotations else 1)
    if available < num_ways:
        raise ArgumentError(
            f"`Episodes(num_ways={num_ways})`: there are only {available} classes to draw from.",
            argument="num_ways",
            given=num_ways,
        )
    label, smallest = min(zip(chosen, map(len, groups), strict=True), key=lambda pair: pair[1])
    if smallest < size:
        raise ArgumentError(
            f"`Episodes(num_support=...)`: support and query set need {size} examples of a class, but there "
            f"are {smallest} of the class {label}.",
            argument="num_support",
        )


def episode_cross_entropy(model: Any, batch: Any) -> tuple[Scalar, Float[Array, ""]]:
    """Mean softmax cross-entropy of a model's logits, and the share of examples that it gets right.

    **Arguments:**

    - `model`: maps a flat image, in floats from 0 to 1, to a logit for each way.
    - `batch`: images as uint8, and their ways.
    """
    images, ways = batch
    inputs = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255.0
    logits = jax.vmap(model)(inputs)
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, ways))
    return loss, jnp.mean((jnp.argmax(logits, axis=1) == ways).astype(logits.dtype))


def query_accuracy(objective: Any, params: Any) -> Float[Array, ""]:
    """The share of the query set that is right: for `evaluate(measure=query_accuracy)`.

    **Arguments:**

    - `objective`: a task of a `FewShot` family whose loss has an accuracy as auxiliary output, such as
        `FewShotDigits` and `Omniglot`.
    - `params`: where the run ended.
    """
    return objective.outer_loss_and_aux(params, 0, jr.key(0))[1]


class HeldOutClasses(eqx.Module):
    """Draws episodes, and offers those of classes that these do not have, as `variations`."""

    episodes: Episodes
    others: Episodes | None

    @property
    def num_examples(self) -> int:
        """How many images episodes are drawn from."""
        return self.episodes.num_examples

    def __call__(self, key: PRNGKeyArray) -> tuple[Examples, Queries]:
        return self.episodes(key)

    def variations(self) -> Mapping[str, Episodes]:
        return {} if self.others is None else {"held-out classes": self.others}
