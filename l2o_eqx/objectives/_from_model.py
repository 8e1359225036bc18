from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractObjectiveFamily
from ._minibatch import minibatch_indices, take_batch
from ._model_loss import ModelLoss
from ._model_objective import AbstractModelObjective, draw_model

# The examples of the outer loss, and what it draws with, come out of a key by numbers that nothing else has.
_OUTER, _OUTER_LOSS = 2**31 - 10, 2**31 - 12


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
    - `outer_data`: examples, as `data`, whose loss is the `outer_loss`: what a weighting weighs when an
        optimizer is trained, while it is shown gradients of minibatches. Held-out examples, or `data` itself.
        By default there is none but the loss of the minibatch.
    - `outer_batch_size`: how many of them, drawn anew at every step; by default all.

    What is not trained is drawn with the objective, and stays as it is.

    **Raises:** `ValueError` if the arrays of `data` or `outer_data` disagree about the number of examples, or
    hold fewer than `batch_size` or `outer_batch_size`; for a loss with parameters that it cannot be called
    by; and, once an objective is asked, for one that does not return a single number, or nothing to train.
    """

    make_model: Callable[[PRNGKeyArray], Any]
    loss_fn: Callable[..., Any]
    data: PyTree[Array]
    batch_size: int = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    trainable: PyTree
    outer_data: PyTree[Array] | None
    outer_batch_size: int | None = eqx.field(static=True)

    def __init__(
        self,
        make_model: Callable[[PRNGKeyArray], Any],
        loss_fn: Callable[..., Any],
        data: PyTree,
        batch_size: int,
        *,
        has_aux: bool = False,
        trainable: PyTree | None = None,
        outer_data: PyTree | None = None,
        outer_batch_size: int | None = None,
    ):
        self.make_model = make_model
        self.loss_fn = loss_fn
        self.data = jax.tree.map(jnp.asarray, data)
        self.batch_size = batch_size
        self.has_aux = has_aux
        self.trainable = trainable
        # Held once if it is the same.
        same = outer_data is data
        self.outer_data = self.data if same else jax.tree.map(jnp.asarray, outer_data)
        self.outer_batch_size = outer_batch_size

    def __check_init__(self):
        _check_examples("", self.data, self.batch_size)
        if self.outer_data is not None:
            _check_examples("outer_", self.outer_data, self.outer_batch_size)
        elif self.outer_batch_size is not None:
            raise ArgumentError(
                "`FromModel(outer_batch_size=...)` says how much of `outer_data` is looked at, but there is "
                f"none. Got outer_batch_size={self.outer_batch_size}.",
                argument="outer_batch_size",
                given=self.outer_batch_size,
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
        return ModelObjective(
            make_model=self.make_model,
            static=static,
            loss_fn=self.loss,
            data=self.data,
            batch_size=self.batch_size,
            trainable=spec,
            outer_data=self.outer_data,
            outer_batch_size=self.outer_batch_size,
            state=state,
        )

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
                outer_data=self.outer_data,
                outer_batch_size=self.outer_batch_size,
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
    outer_data: PyTree[Array] | None = None
    outer_batch_size: int | None = eqx.field(static=True, default=None)
    state: State = None

    def batch(self, step: StepNumber, key: PRNGKeyArray) -> PyTree:
        return _minibatch(self.data, step, key, self.batch_size)

    def outer_loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        if self.outer_data is None:
            return self.loss(params, step, key)
        batch = self.outer_data
        if self.outer_batch_size is not None:
            batch = _minibatch(batch, step, jr.fold_in(key, _OUTER), self.outer_batch_size)
        return self.call(self.model(params), batch, step, key, _OUTER_LOSS)[0]

    def has_outer_loss(self) -> bool:
        return self.outer_data is not None


def _minibatch(data, step, key, batch_size):
    num_examples = jax.tree.leaves(data)[0].shape[0]
    return take_batch(data, minibatch_indices(step, key, num_examples=num_examples, batch_size=batch_size))


def _check_examples(prefix, data, batch_size):
    sizes = sorted({x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(data)})
    if len(sizes) != 1:
        raise ArgumentError(
            f"`FromModel({prefix}data=...)`: all arrays must have the same number of examples on their "
            f"leading axis. Got the sizes {sizes}.",
            argument=f"{prefix}data",
        )
    if batch_size is not None and not 1 <= batch_size <= sizes[0]:
        raise ArgumentError(
            f"`FromModel({prefix}batch_size=...)` must lie between 1 and the {sizes[0]} examples of "
            f"`{prefix}data`. Got {prefix}batch_size={batch_size}.",
            argument=f"{prefix}batch_size",
            given=batch_size,
        )
