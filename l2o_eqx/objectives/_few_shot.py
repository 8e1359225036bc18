from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractObjectiveFamily
from ._model_loss import ModelLoss
from ._model_objective import AbstractModelObjective, draw_model

# `key -> (support, query)`: two batches of the same structure.
SampleTask = Callable[[PRNGKeyArray], tuple[PyTree, PyTree]]
QueryMode = Literal["training", "inference"]
# What the loss of a query set draws with, as `_LOSS` for that of the support set.
_QUERY = 2**31 - 8


class FewShot(AbstractObjectiveFamily):
    """Tasks of few examples for any Equinox model: it adapts to a support set and is judged by a query set.

    Each objective is a task. Its loss, which the inner steps see, is that of the whole support set; its outer
    loss, which the weighting weighs and evaluations show, that of the query set. A learned start
    (`optimizers.MAML`) is trained across them.

    The loss is called as by `FromModel`, by the names of its parameters `key` and `state`. A model's state
    (BatchNorm) begins anew with every task and moves with the steps on the support set. The query set leaves
    it as it is, and to meta-gradients it is a constant. In `"training"` mode BatchNorm scales the query set
    by that set's own statistics, as MAML's code does: what is answered for one example then depends on the
    others. In `"inference"` mode it scales by the running statistics, which have seen the support set alone,
    and dropout is off.

    **Arguments:**

    - `make_model`, `loss_fn`, `has_aux`, `trainable`: as in `FromModel`.
    - `sample_task`: `key -> (support, query)`, two batches as the loss takes them; the same shapes for every
        key. A module or a function of a module, not a new closure each time, lets families built alike share
        compiled programs.
    - `query_mode`: in which mode the model is asked about the query set, `"training"` or `"inference"`.

    **Raises:** `ValueError` for a loss with parameters that it cannot be called by, an unknown mode, and,
    once a task is drawn, a `sample_task` that does not return a pair.

    Reference: Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks"
    (arXiv:1703.03400), sec. 2.1 and 3.
    """

    make_model: Callable[[PRNGKeyArray], Any]
    loss_fn: Callable[..., Any]
    sample_task: SampleTask
    has_aux: bool = eqx.field(static=True, default=False, kw_only=True)
    trainable: PyTree = eqx.field(default=None, kw_only=True)
    query_mode: QueryMode = eqx.field(static=True, default="training", kw_only=True)

    def __check_init__(self):
        if self.query_mode not in ("training", "inference"):
            raise ArgumentError(
                f"`FewShot(query_mode={self.query_mode!r})`: the modes are 'training' and 'inference'.",
                argument="query_mode",
                given=self.query_mode,
                possible=("training", "inference"),
            )
        _ = self.loss

    @property
    def loss(self) -> ModelLoss:
        """How `loss_fn` is called."""
        return ModelLoss(self.loss_fn, self.has_aux, "FewShot")

    def sample(self, key: PRNGKeyArray) -> "FewShotObjective":
        tkey, mkey = jr.split(key)
        task = self.sample_task(tkey)
        if not (isinstance(task, tuple | list) and len(task) == 2):
            raise ArgumentError(
                "`FewShot(sample_task=...)` must return a pair of batches, `(support, query)`. "
                f"Got {type(task).__name__}.",
                argument="sample_task",
            )
        return task_of(
            self.loss, self.make_model, self.trainable, *task, query_mode=self.query_mode, key=mkey
        )

    def variations(self) -> Mapping[str, AbstractObjectiveFamily]:
        """The same model on what `sample_task.variations()` offers, by name, if it has such a method.

        Other models have params of other shapes, which no learned start fits.
        """
        offered = getattr(self.sample_task, "variations", dict)()
        settings = {"has_aux": self.has_aux, "trainable": self.trainable, "query_mode": self.query_mode}
        return {
            name: FewShot(self.make_model, self.loss_fn, task, **settings) for name, task in offered.items()
        }


class FewShotObjective(AbstractModelObjective):
    """The loss of one Equinox model on a support set, judged by a query set. Drawn by `FewShot`."""

    make_model: Callable[[PRNGKeyArray], Any]
    static: PyTree
    loss_fn: ModelLoss
    support: PyTree
    query: PyTree
    trainable: PyTree
    state: State = None
    query_mode: QueryMode = eqx.field(static=True, default="training", kw_only=True)

    def batch(self, step: StepNumber, key: PRNGKeyArray) -> PyTree:
        return self.support

    def outer_loss(self, params: Params, step: StepNumber, key: PRNGKeyArray) -> Scalar:
        return self.outer_loss_and_aux(params, step, key)[0]

    def outer_loss_and_aux(
        self, params: Params, step: StepNumber, key: PRNGKeyArray
    ) -> tuple[Scalar, PyTree]:
        """`outer_loss`, and the auxiliary output of the loss, e.g. an accuracy; `None` without `has_aux`."""
        model = self.model(params)
        if self.query_mode == "inference":
            model = eqx.nn.inference_mode(model)
        loss, _, aux = self.call(model, self.query, step, key, _QUERY)
        return loss, aux

    def is_judged_by_outer_loss(self) -> bool:
        return True


def task_of(
    loss: ModelLoss,
    make_model: Callable[[PRNGKeyArray], Any],
    trainable: PyTree | None,
    support: PyTree,
    query: PyTree,
    *,
    query_mode: QueryMode = "training",
    key: PRNGKeyArray,
) -> FewShotObjective:
    """The task with these two sets, for a family's model and loss; `key` draws what is not trained."""
    static, spec, state = draw_model(loss, make_model, trainable, lambda: support, key)
    return FewShotObjective(make_model, static, loss, support, query, spec, state, query_mode=query_mode)
