import abc
from typing import ClassVar

import equinox as eqx
from jaxtyping import PyTree

from .._types import Params, State, StepNumber


class AbstractOptimizer(eqx.Module):
    """Something that proposes updates from gradients. Its floating-point arrays are its meta-parameters.

    To write your own, implement `init` and `update`. If every coordinate is treated alike and apart (the
    update of an entry depends on that entry's gradients alone), also set

        coordinatewise: ClassVar[bool] = True

    and let every array of the state carry the coordinates, raveled, on its last axis. Any part of the
    coordinates, handed over as one flat array with its part of the state, must then give that part of the
    updates; in return the meta-gradient runs block by block over coordinates, in little memory, and a
    batch of objectives is simply more coordinates.
    """

    coordinatewise: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, params: Params) -> State:
        """The state before the first step."""

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        """The state before the first of `num_steps` steps; how the verbs begin an inner run.

        By default `init(params)`. An optimizer whose steps depend on how many there are going to be
        overrides it, and takes `num_steps` in its own `init`, too.
        """
        del num_steps
        return self.init(params)

    @abc.abstractmethod
    def update(self, grads: Params, state: State, params: Params | None) -> tuple[Params, State]:
        """One inner step.

        **Arguments:**

        - `grads`: ∇f at `params`.
        - `state`: from `init` or the previous call.
        - `params`: the point itself, which most optimizers ignore. The verbs always hand it over; an optax
            loop may leave it out.

        **Returns:** the updates, which are added to the params, and the next state, of the same
        structure, shapes and dtypes as before.
        """

    def blocks(self) -> dict[str, PyTree]:
        """Its parts that have meta-parameters of their own, by name; here a single one, the whole.

        Meta-training reports the norm of the meta-gradient for each, and
        `l2o_eqx.meta_optimizers.unit_norm("block")` scales each to norm one.
        """
        return {"optimizer": self}
