from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._types import State, StepNumber
from ._base import AbstractObjectiveFamily
from ._minibatch import minibatch_indices, take_batch
from ._model_loss import ModelLoss
from ._model_objective import AbstractModelObjective, draw_model


class FromModel(AbstractObjectiveFamily):
    """Training any Equinox model on any data: each objective starts from its own initial weights.

    Minibatches are reshuffled every epoch; what does not fill a batch is left out of that epoch. The
    data are held once, in the dtype they come in (uint8 images stay uint8), and indexed inside the
    compiled step, however many objectives or restarts run in parallel.

    A loss is called by the names of its parameters. The first is the model; of the others

    - `key` is a key to draw with (dropout), the same for the same step and super epoch;
    - `state` is the model's state (the `eqx.nn.State` of BatchNorm). It returns `(loss, next state)` then.
        The state is carried along the inner run and is no coordinate; to meta-gradients it is a constant;
    - the one that is left is the batch.

    **Arguments:**

    - `make_model`: `key -> eqx.Module`, or any tree of arrays. If the loss takes a `state`, also a pair of
        model and state, as `eqx.nn.make_with_state(Model)` makes it; a model that holds its initial state is
        parted from it.
    - `loss_fn`: `(model, batch) -> scalar`, the mean loss over a batch.
    - `data`: a tree of arrays whose leading axis counts the examples; a batch is the same tree with
        `batch_size` rows.
    - `batch_size`: examples per minibatch.
    - `has_aux`: whether the loss returns `(loss, auxiliary output)`, with a state
        `(loss, (next state, auxiliary output))`. Only `ModelObjective.loss_and_aux` has a use for that.
    - `trainable`: which leaves are the params, as `eqx.partition` takes it: a function of a leaf, or a tree
        of truth values. Of these the floating-point arrays are params. By default all that the loss can be
        differentiated by: what is behind a `stop_gradient`, or not used, is no coordinate.

    What is not trained is drawn with the objective, and stays as it is.

    **Raises:** `ValueError` if the arrays of `data` disagree about the number of examples, or hold fewer
    than `batch_size`; for a loss with parameters that it cannot be called by; and, once an objective is
    asked, for one that does not return a single number, or nothing to train.
    """

    make_model: Callable[[PRNGKeyArray], Any]
    loss_fn: Callable[..., Any]
    data: PyTree[Array]
    batch_size: int = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    trainable: PyTree

    def __init__(
        self,
        make_model: Callable[[PRNGKeyArray], Any],
        loss_fn: Callable[..., Any],
        data: PyTree,
        batch_size: int,
        *,
        has_aux: bool = False,
        trainable: PyTree | None = None,
    ):
        self.make_model = make_model
        self.loss_fn = loss_fn
        self.data = jax.tree.map(jnp.asarray, data)
        self.batch_size = batch_size
        self.has_aux = has_aux
        self.trainable = trainable

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
        _ = self.loss

    @property
    def loss(self) -> ModelLoss:
        """How `loss_fn` is called."""
        return ModelLoss(self.loss_fn, self.has_aux)

    @property
    def num_examples(self) -> int:
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    def sample(self, key: PRNGKeyArray) -> "ModelObjective":
        def batch():
            return take_batch(self.data, jnp.arange(self.batch_size))

        static, spec, state = draw_model(self.loss, self.make_model, self.trainable, batch, key)
        return ModelObjective(self.make_model, static, self.loss, self.data, self.batch_size, spec, state)

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        """The same data with what `make_model.variations()` offers, by name, if it has such a method."""
        offered = getattr(self.make_model, "variations", dict)()
        return {
            name: FromModel(
                make_model,
                self.loss_fn,
                self.data,
                self.batch_size,
                has_aux=self.has_aux,
                trainable=self.trainable,
            )
            for name, make_model in offered.items()
        }


class ModelObjective(AbstractModelObjective):
    """The training loss of one Equinox model as a function of its weights. Drawn by `FromModel`."""

    make_model: Callable[[PRNGKeyArray], Any]
    static: PyTree
    loss_fn: ModelLoss
    data: PyTree[Array]
    batch_size: int = eqx.field(static=True)
    trainable: PyTree
    state: State = None

    def batch(self, step: StepNumber, key: PRNGKeyArray) -> PyTree:
        num_examples = jax.tree.leaves(self.data)[0].shape[0]
        indices = minibatch_indices(step, key, num_examples=num_examples, batch_size=self.batch_size)
        return take_batch(self.data, indices)
