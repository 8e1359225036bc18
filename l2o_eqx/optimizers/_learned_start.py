from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._types import Params, Scalar, State
from ._base import AbstractOptimizer
from ._gradient_descent import GradientDescent, Moving, Rates, moves_all
from ._layouts import AbstractLayout, Seen, take_step
from ._wrapper import AbstractWrapper


def _arrays_of(params: Any) -> Any:
    return eqx.filter(params, eqx.is_inexact_array)


class LearnedStart(AbstractWrapper):
    """Another optimizer, with a starting point of its own that is trained with it: all runs begin there.

    Around `GradientDescent` it is MAML, for which there is the short form `MAML`; around a learned optimizer
    it learns where to begin and how to move. `initial_params` is the start; what a run drew is not looked at.

    Train it on the loss after the last step: `strategies.OncePerSuperEpoch` with `include_final_loss` and
    `weightings.FinalOnly`, by default on the outer loss, which is that of the query set.

    **Arguments:**

    - `inner`: whose updates are taken. It may have nothing to train itself, such as
        `FromOptax(optax.sgd(0.01))`, but functions of optax cannot be saved.
    - `start`: where runs begin, a tree like the params, e.g. `family.sample(key).init(key)`, or a model of
        which every floating-point array is trained.

    **Raises:** on use, `ValueError` for params of other shapes.

    Reference: Finn et al. 2017 (arXiv:1703.03400).
    """

    inner: AbstractOptimizer
    start: Params = eqx.field(converter=_arrays_of)

    @classmethod
    def make(cls, inner: AbstractOptimizer, params: PyTree) -> "LearnedStart":
        """As the constructor, with `params` for the start; how the command line makes one.

        **Arguments:**

        - `inner`: as above.
        - `params`: the start.
        """
        return cls(inner, params)

    def layout(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> AbstractLayout:
        return self.inner.layout(shapes)

    def for_group(self, name: str) -> AbstractOptimizer:
        return self.inner.for_group(name)

    def initial_params(self, params: Params) -> Params:
        leaves, treedef = jax.tree.flatten(params)
        own = jax.tree.leaves(self.start)
        shapes = [[x.shape for x in side] for side in (own, leaves)]
        if shapes[0] != shapes[1]:
            raise ArgumentError(
                f"`LearnedStart(start=...)` does not fit: it has arrays of the shapes {shapes[0]}, the "
                f"params of the objective have {shapes[1]}.",
                argument="start",
                given=shapes[0],
            )
        return treedef.unflatten([x.astype(like.dtype) for x, like in zip(own, leaves, strict=True)])

    def parts(self) -> dict[str, PyTree]:
        # Where its rates are fixed, the inner one has none to train.
        inner = self.inner.parts().items()
        return {"start": self.start, **{name: part for name, part in inner if jax.tree.leaves(part)}}

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        return take_step(self.inner, Seen(grads, value, key), state, params)


def MAML(
    params: PyTree,
    learning_rate: float = 0.01,
    *,
    rates: Rates = "fixed",
    num_rates: int | None = None,
    moving: Moving = moves_all,
) -> LearnedStart:
    """Model-agnostic meta-learning: a starting point from which a few steps of gradient descent go far.

    With the true gradient, `estimators.Backprop(())`, it is MAML; with one that takes gradients for
    constants, `estimators.Backprop()`, FOMAML; with `estimators.Reptile()` Reptile. Settings make Meta-SGD
    of it (`rates="entry"`), ANIL (`moving=moves_head`), and MAML++'s rates (`rates="leaf"`, with as many
    `num_rates` as there are steps).

    **Arguments:**

    - `params`: where the training of the start begins, e.g. `family.sample(key).init(key)`.
    - `learning_rate`, `rates`, `num_rates`, `moving`: as in `GradientDescent`; by default the rate is fixed.

    **Returns:** a `LearnedStart` of a `GradientDescent`.

    **Raises:** `ValueError` as `GradientDescent`.

    Reference: Finn et al. 2017 (arXiv:1703.03400), algorithm 1.
    """
    start = _arrays_of(params)
    inner = GradientDescent(start, learning_rate, rates=rates, num_rates=num_rates, moving=moving)
    return LearnedStart(inner, start)
