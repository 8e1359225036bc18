"""What a meta-training keeps beside the optimizer at work: its best snapshot, and a mean of the last ones."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ._checks import check_sizes
from ._errors import ArgumentError
from ._evaluate import evaluate
from .objectives import AbstractObjectiveFamily, Mixture
from .objectives._mixture import families_of
from .optimizers import AbstractOptimizer

if TYPE_CHECKING:
    from ._meta_step import MetaState

# Far from the numbers of super epochs, with which the training's own draws are made.
_DRAWS = 2**31 - 1


class Validation(eqx.Module):
    """Fixed objectives that a meta-training tries its optimizer on, to keep the best one of its course.

    The score is the geometric mean over the objectives of their last losses: of losses that span decades
    every decade counts alike. An objective whose loss is not finite makes it infinite. Losses must be
    positive; what is not counts as the smallest normal number.

    **Arguments:**

    - `family`: what the objectives are drawn from; not necessarily what the optimizer is trained on. Of a
        `Mixture`, the score is the geometric mean of its families' scores, each with its weight.
    - `num_steps`: inner steps on each.
    - `num_objectives`: how many are drawn, of each family.
    - `every`: super epochs between two validations. There is one before the first and after the last super
        epoch, too.
    - `last`: how many of the last losses are averaged, per objective; more than one for minibatches.
    - `eps`: if given, ε ≥ 0: losses count relative to the objective's first one, as f/f_1 + ε, so that what
        falls by more than ε is no better for it. By default they count as they are.
    - `key`: picks objectives, starting points and minibatches, the same each time.

    **Raises:** `ValueError` for sizes below 1, a negative `eps`, or a `last` above `num_steps`.

    Reference: Prechelt 1998, "Early stopping, but when?"; `eps`: Wichrowska et al. 2017 (arXiv:1703.04813),
    sec. 3.3.
    """

    family: AbstractObjectiveFamily
    num_steps: int = eqx.field(static=True)
    num_objectives: int = eqx.field(static=True, default=16)
    every: int = eqx.field(static=True, default=10)
    last: int = eqx.field(static=True, default=1)
    eps: float | None = eqx.field(static=True, default=None)
    key: PRNGKeyArray = eqx.field(kw_only=True)

    def __check_init__(self):
        sizes = ("num_steps", "num_objectives", "every", "last")
        check_sizes("Validation", **{name: getattr(self, name) for name in sizes})
        if self.last > self.num_steps:
            raise ArgumentError(
                "`Validation(last=...)` cannot be more than the steps there are. "
                f"Got last={self.last}, num_steps={self.num_steps}.",
                argument="last",
                given=self.last,
            )
        if self.eps is not None and not self.eps >= 0:
            raise ArgumentError(
                f"`Validation(eps=...)` cannot be negative. Got eps={self.eps}.",
                argument="eps",
                given=self.eps,
            )

    def score(
        self, optimizer: AbstractOptimizer, *, restarts: int | None = None
    ) -> Float[np.ndarray, "*restarts"]:
        """The geometric mean of the last losses, on the host; the smaller the better.

        **Arguments:**

        - `optimizer`: one, or a batch of `restarts`.
        """
        run = functools.partial(
            evaluate,
            optimizer,
            num_steps=self.num_steps,
            num_objectives=self.num_objectives,
            restarts=restarts,
            key=self.key,
        )
        shares = self.family.shares if isinstance(self.family, Mixture) else (1.0,)
        logs = [self._log_score(np.asarray(run(one).losses)) for one in families_of(self.family).values()]
        score = np.exp(sum(share * log for share, log in zip(shares, logs, strict=True)))
        return np.asarray(score, np.result_type(jnp.result_type(float)))

    def _log_score(self, losses):
        least = np.finfo(losses.dtype).tiny
        losses = losses.astype(np.float64)
        last = losses[..., -self.last :].mean(-1)
        if self.eps is not None:
            last = np.maximum(last, least) / np.maximum(losses[..., 0], least) + self.eps
        last = np.where(np.isfinite(last), np.maximum(last, least), np.inf)
        return np.log(last).mean(-1)


class Snapshot(eqx.Module):
    """The optimizer of a meta-training that scored best. With restarts, each has its own.

    **Fields:**

    - `optimizer`: as it was.
    - `super_epoch`: after how many super epochs; 0 is the untrained one.
    - `score`: of `Validation.score`.
    - `averaged`: whether it is the mean of the last ones, see `meta_train(average=...)`.
    """

    optimizer: AbstractOptimizer
    super_epoch: Int[Array, "*restarts"]
    score: Float[Array, "*restarts"]
    averaged: Bool[Array, "*restarts"]

    def facts(self) -> dict[str, Any]:
        """`super_epoch`, `averaged` and the score as `validation_loss`, as JSON has them.

        With restarts they are lists; null stands for what is not finite.
        """
        scores = np.asarray(self.score)
        plain = [x if math.isfinite(x) else None for x in scores.ravel().tolist()]
        return {
            "super_epoch": np.asarray(self.super_epoch).tolist(),
            "averaged": np.asarray(self.averaged).tolist(),
            "validation_loss": plain if scores.ndim else plain[0],
        }


class Average(eqx.Module):
    """The mean of an optimizer's meta-parameters over `count` super epochs."""

    optimizer: AbstractOptimizer
    count: Int[Array, ""]


class Keeper(eqx.Module):
    """What `meta_train` keeps and when; states go in, states come out.

    **Arguments:**

    - `score`: that of a `Validation`, if there is to be a best snapshot; `every` so many super epochs.
    - `average`: share of the super epochs whose optimizers are averaged, or `None`.
    - `super_epochs`: how many there are going to be.
    """

    score: Callable[[AbstractOptimizer], Float[np.ndarray, "*restarts"]] | None
    every: int
    average: float | None
    super_epochs: int

    def is_due(self, super_epoch: int) -> bool:
        """Whether it must see the state after this super epoch."""
        validates = self.score is not None and super_epoch % self.every == 0
        averages = self.average is not None and super_epoch >= self._first_averaged
        return super_epoch == self.super_epochs or validates or averages

    def start(self, state: "MetaState") -> "MetaState":
        """The untrained optimizer is the first candidate; nothing changes if there is a snapshot already."""
        if self.score is None or state.best is not None:
            return state
        return self._validated(state, state.optimizer)[0]

    def after(self, state: "MetaState") -> tuple["MetaState", dict[str, Float[np.ndarray, "*restarts"]]]:
        """Called after each super epoch; with the metrics to add to its own."""
        if self.average is not None:
            state = self._averaged(state)
        if self.score is None:
            return state, {}
        if int(state.super_epoch) % self.every:
            assert state.best is not None
            return state, {"validation_loss": np.full(state.best.score.shape, np.nan)}
        return self._validated(state, state.optimizer)

    def finish(self, state: "MetaState") -> tuple["MetaState", dict[str, Float[np.ndarray, "*restarts"]]]:
        """Called once after the last super epoch there is; with the metrics to put over its own."""
        metrics = {}
        if self.score is None:
            return state, metrics
        if int(state.super_epoch) % self.every:
            state, metrics = self._validated(state, state.optimizer)
        if self.average is not None and state.average is not None:
            state, _ = self._validated(state, state.average.optimizer, averaged=True)
        return state, metrics

    def _validated(self, state, optimizer, averaged=False):
        assert self.score is not None
        score = self.score(optimizer)
        shape = score.shape
        found = Snapshot(
            optimizer,
            jnp.full(shape, int(state.super_epoch), jnp.int32),
            jnp.asarray(score),
            jnp.full(shape, averaged),
        )
        best = found if state.best is None else _better(found, state.best)
        return dataclasses.replace(state, best=best), {"validation_loss": score}

    @property
    def _first_averaged(self):
        assert self.average is not None
        return self.super_epochs - max(1, round(self.average * self.super_epochs)) + 1

    def _averaged(self, state):
        first, now = self._first_averaged, int(state.super_epoch)
        if now < first:
            return dataclasses.replace(state, average=None)
        if now == first or state.average is None:
            average = Average(state.optimizer, jnp.ones((), jnp.int32))
        else:
            average = _with_one_more(state.average, state.optimizer)
        return dataclasses.replace(state, average=average)


def validation_of(
    given: AbstractObjectiveFamily | Validation | None,
    num_steps: int,
    super_epochs: int,
    key: PRNGKeyArray,
) -> Validation | None:
    """The validation that `meta_train(validation=...)` means: a family alone gets the training's settings."""
    if given is None or isinstance(given, Validation):
        return given
    return Validation(given, num_steps, every=max(1, super_epochs // 10), key=jr.fold_in(key, _DRAWS))


@eqx.filter_jit
def _better(new: Snapshot, old: Snapshot) -> Snapshot:
    # Of equal ones the later: if none is finite, the last one is left as without a validation.
    taken = new.score <= old.score

    def pick(x, y):
        return jnp.where(taken.reshape(*taken.shape, *(1,) * (x.ndim - taken.ndim)), x, y)

    arrays, static = eqx.partition(new, eqx.is_array)
    return eqx.combine(jax.tree.map(pick, arrays, eqx.filter(old, eqx.is_array)), static)


@eqx.filter_jit
def _with_one_more(average: Average, optimizer: AbstractOptimizer) -> Average:
    count = average.count + 1

    def mean(x, new):
        return x + (new - x) / count.astype(x.dtype) if eqx.is_inexact_array(x) else new

    return Average(jax.tree.map(mean, average.optimizer, optimizer), count)
