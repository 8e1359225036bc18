from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._errors import ArgumentError, check
from .._types import Params, Scalar, State
from ._base import AbstractOptimizer
from ._per_layer import by_layer, labels_of

Rates = Literal["fixed", "tree", "leaf", "entry"]
# Params (arrays, or their shapes and dtypes) -> a tree of truth values like them.
Moving = Callable[[PyTree], PyTree[bool]]


def moves_all(params: PyTree) -> PyTree[bool]:
    """Every leaf moves."""
    return jax.tree.map(lambda x: True, params)


def moves_head(params: PyTree) -> PyTree[bool]:
    """The last layer alone moves: the leaves whose path is that of the last one but for its last part.

    Reference: Raghu et al. 2020, "Rapid learning or feature reuse?" (arXiv:1909.09157), ANIL.
    """
    labels = labels_of(params, by_layer)
    last = jax.tree.leaves(labels)[-1]
    return jax.tree.map(lambda label: label == last, labels)


class GradientDescent(AbstractOptimizer):
    """Gradient descent, u = −α·∇f, whose learning rates may be learned.

    Learned rates are trained as they are, not by their logarithm, so that some may become negative, as in
    Meta-SGD. Of the leaves that do not move the updates are zero.

    **Arguments:**

    - `params`: like those that it is going to move; of learned rates per leaf or entry only their shapes
        matter.
    - `learning_rate`: α, where learned rates begin.
    - `rates`: `"fixed"` learns no rate; `"tree"` one for all params, `"leaf"` one for every array (MAML++),
        `"entry"` one for every entry (Meta-SGD).
    - `num_rates`: if given, so many learned rates, one for each of the first steps (MAML++); later steps have
        the last one.
    - `moving`: which leaves move at all: `moves_all`, `moves_head`, or a function of yours from params to a
        tree of truth values.

    **Raises:** `ValueError` for a rate that is negative, unknown `rates`, a `num_rates` below 1 or of fixed
    rates; on use, for params of other shapes.

    Reference: Li et al. 2017, "Meta-SGD" (arXiv:1707.09835); Antoniou et al. 2019, "How to train your MAML"
    (arXiv:1810.09502), sec. 4, for rates per layer and step.
    """

    learned: PyTree[Array]
    learning_rate: float = eqx.field(static=True)
    rates: Rates = eqx.field(static=True)
    num_rates: int | None = eqx.field(static=True)
    moving: Moving = eqx.field(static=True)

    def __init__(
        self,
        params: PyTree,
        learning_rate: float = 0.01,
        *,
        rates: Rates = "tree",
        num_rates: int | None = None,
        moving: Moving = moves_all,
    ):
        _check(learning_rate, rates, num_rates)
        leading = () if num_rates is None else (num_rates,)

        def begin(shape):
            return jnp.full((*leading, *shape), learning_rate)

        if rates in ("fixed", "tree"):
            self.learned = None if rates == "fixed" else begin(())
        else:
            chosen = jax.tree.map(lambda x, moves: x if moves else None, params, moving(params))
            self.learned = jax.tree.map(lambda x: begin(x.shape if rates == "entry" else ()), chosen)
        self.learning_rate = learning_rate
        self.rates = rates
        self.num_rates = num_rates
        self.moving = moving

    def init(self, params: Params) -> State:
        self._rates_of(params, 0)
        return None if self.num_rates is None else jnp.zeros((), jnp.int32)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        del params
        leaves, treedef = jax.tree.flatten(grads)
        updates = [
            jnp.zeros_like(g) if rate is None else (-rate * g).astype(g.dtype)
            for rate, g in zip(self._rates_of(grads, state), leaves, strict=True)
        ]
        return treedef.unflatten(updates), None if state is None else state + 1

    def _rates_of(self, params: PyTree, step: int | Int[Array, ""] | None) -> list[Array | float | None]:
        # One for every leaf, `None` for those that stand still.
        moves = jax.tree.leaves(self.moving(params))
        if self.rates == "fixed":
            return [self.learning_rate if moved else None for moved in moves]
        learned = jax.tree.leaves(self.learned)
        if self.num_rates is not None:
            now = jnp.minimum(0 if step is None else step, self.num_rates - 1)
            learned = [x[now] for x in learned]
        if self.rates == "tree":
            return [learned[0] if moved else None for moved in moves]
        shapes = [x.shape for x, moved in zip(jax.tree.leaves(params), moves, strict=True) if moved]
        own = [x.shape for x in learned]
        if len(own) != len(shapes) or (self.rates == "entry" and own != shapes):
            raise ArgumentError(
                f"`GradientDescent(rates={self.rates!r})` was made for other params: of those that move, it "
                f"has rates of the shapes {own}. Got params of the shapes {shapes}.",
                argument="params",
            )
        rates = iter(learned)
        return [next(rates) if moved else None for moved in moves]


def _check(learning_rate: float, rates: str, num_rates: int | None) -> None:
    if rates not in ("fixed", "tree", "leaf", "entry"):
        raise ArgumentError(
            f"`GradientDescent(rates={rates!r})`: rates are 'fixed', or learned per 'tree', 'leaf' or "
            "'entry'.",
            argument="rates",
            given=rates,
            possible=("fixed", "tree", "leaf", "entry"),
        )
    check(
        "`GradientDescent(...)` needs a `learning_rate` that is not negative, and a `num_rates` of at least "
        f"1 only where rates are learned. Got learning_rate={learning_rate}, rates={rates!r}, "
        f"num_rates={num_rates}.",
        learning_rate=(learning_rate, learning_rate >= 0),
        num_rates=(num_rates, num_rates is None or (num_rates >= 1 and rates != "fixed")),
    )
