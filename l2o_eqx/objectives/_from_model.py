from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._types import Params, Scalar, StepNumber
from ._base import AbstractObjective, AbstractObjectiveFamily
from ._minibatch import minibatch_indices, take_batch


class FromModel(AbstractObjectiveFamily):
    """Training any Equinox model on any data: each objective starts from its own initial weights.

    Minibatches are reshuffled every epoch; what does not fill a batch is left out of that epoch. The
    data are held once, in the dtype they come in (uint8 images stay uint8), and indexed inside the
    compiled step, however many objectives or restarts run in parallel.

    **Arguments:**

    - `make_model`: `key -> eqx.Module`; its floating-point arrays are the params.
    - `loss_fn`: `(model, batch) -> scalar`, the mean loss over a batch.
    - `data`: a tree of arrays whose leading axis counts the examples; a batch is the same tree with
        `batch_size` rows.
    - `batch_size`: examples per minibatch.

    **Raises:** `ValueError` if the arrays of `data` disagree about the number of examples, or hold fewer
    than `batch_size`.
    """

    make_model: Callable[[PRNGKeyArray], Any]
    loss_fn: Callable[[Any, PyTree], Scalar]
    data: PyTree[Array]
    batch_size: int = eqx.field(static=True)

    def __init__(
        self,
        make_model: Callable[[PRNGKeyArray], Any],
        loss_fn: Callable[[Any, PyTree], Scalar],
        data: PyTree,
        batch_size: int,
    ):
        self.make_model = make_model
        self.loss_fn = loss_fn
        self.data = jax.tree.map(jnp.asarray, data)
        self.batch_size = batch_size

    def __check_init__(self):
        sizes = sorted({x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(self.data)})
        if len(sizes) != 1:
            raise ArgumentError(
                "`FromModel(data=...)`: all arrays must have the same number of examples on their leading "
                f"axis. Got the sizes {sizes}.",
                argument="data",
            )
        if not 1 <= self.batch_size <= sizes[0]:
            raise ArgumentError(
                f"`FromModel(batch_size=...)` must lie between 1 and the {sizes[0]} examples of `data`. "
                f"Got batch_size={self.batch_size}.",
                argument="batch_size",
                given=self.batch_size,
            )

    @property
    def num_examples(self) -> int:
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    def sample(self, key: PRNGKeyArray) -> "ModelObjective":
        _, static = eqx.partition(self.make_model(key), eqx.is_inexact_array)
        return ModelObjective(self.make_model, static, self.loss_fn, self.data, self.batch_size)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        """The same data with what `make_model.variations()` offers, by name, if it has such a method."""
        offered = getattr(self.make_model, "variations", dict)()
        return {
            name: FromModel(make_model, self.loss_fn, self.data, self.batch_size)
            for name, make_model in offered.items()
        }


class ModelObjective(AbstractObjective):
    """The training loss of one Equinox model as a function of its weights. Drawn by `FromModel`."""

    make_model: Callable[[PRNGKeyArray], Any]
    static: PyTree
    loss_fn: Callable[[Any, PyTree], Scalar]
    data: PyTree[Array]
    batch_size: int = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> Params:
        return eqx.filter(self.make_model(key), eqx.is_inexact_array)

    def loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        num_examples = jax.tree.leaves(self.data)[0].shape[0]
        indices = minibatch_indices(step, key, num_examples=num_examples, batch_size=self.batch_size)
        return self.loss_fn(self.model(params), take_batch(self.data, indices))

    def model(self, params: Params) -> Any:
        """The whole model with the weights `params`."""
        return eqx.combine(params, self.static)
