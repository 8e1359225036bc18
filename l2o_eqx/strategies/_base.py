import abc
from collections.abc import Callable, Sequence

import equinox as eqx
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .._types import Keys, State
from ..objectives import ObjectiveBatch
from ..optimizers import AbstractOptimizer
from ..weightings import AbstractWeighting

# (optimizer, meta-optimizer's state, meta-gradient) -> the next optimizer and state.
MetaUpdate = Callable[[AbstractOptimizer, PyTree, PyTree], tuple[AbstractOptimizer, PyTree]]


class SuperEpoch(eqx.Module):
    """What a strategy hands back after one super epoch.

    `losses` are those of the inner steps, in order. `meta_losses` and every entry of `metrics` have one
    number per meta-update: the meta-loss, and the norms and shares of zeros of the meta-gradient before
    the meta-optimizer touched it (see `grad_metrics`). `sound` tells which objectives were finite all along;
    `None` counts all as such. `strategy_state` is the strategy's next state.
    """

    optimizer: AbstractOptimizer
    meta_state: PyTree
    losses: Float[Array, "steps objectives"]
    meta_losses: Float[Array, " updates"]
    metrics: dict[str, Float[Array, " updates"]]
    sound: Bool[Array, " objectives"] | None = None
    strategy_state: State = None


class AbstractUpdateStrategy(eqx.Module):
    """Which windows of losses train the optimizer during a super epoch, and how often.

    To write your own, implement `num_updates` and `super_epoch`. Begin with `estimators.first_window`, ask an
    estimator about it, and go on where it ended: `window.after(result)`. `AbstractWindowStrategy`
    does all that, if windows are of one length.
    """

    @abc.abstractmethod
    def num_updates(self, num_steps: int) -> int:
        """How many meta-updates a super epoch of `num_steps` makes.

        **Raises:** `ValueError` if the strategy cannot train on a super epoch of this length.
        """

    def init(self, optimizer: AbstractOptimizer, *, key: PRNGKeyArray) -> State:
        """What the strategy remembers from super epoch to super epoch, before the first; by default nothing.

        It is part of `MetaState`. With restarts there is one for each.
        """
        del optimizer, key
        return None

    def coordinates_apart(self) -> bool:
        """Whether different devices may run different coordinates of one objective.

        Then its estimator's `coordinates_apart()` is the answer.
        """
        return False

    def begins_anywhere(self) -> bool:
        """Whether the first window may begin after the first step; by default not.

        Where a run begins, and all that acts on its first step alone, then has a gradient now and then.
        """
        return False

    def chosen(
        self, num_steps: Sequence[int], *, key: PRNGKeyArray
    ) -> list[tuple["AbstractUpdateStrategy", int]]:
        """Which strategy runs each super epoch of a training, and how many steps it has; by default itself.

        Decided on the host, before the training: each pair that differs is one compiled program.

        **Arguments:**

        - `num_steps`: of every super epoch, as asked for.
        - `key`: to draw with. For the same key, more super epochs begin with the same choices.
        """
        del key
        return [(self, steps) for steps in num_steps]

    @abc.abstractmethod
    def super_epoch(
        self,
        optimizer: AbstractOptimizer,
        meta_state: PyTree,
        objectives: ObjectiveBatch,
        *,
        meta_update: MetaUpdate,
        weighting: AbstractWeighting,
        num_steps: int,
        init_keys: Keys,
        loss_keys: Keys,
        key: PRNGKeyArray,
        strategy_state: State = None,
    ) -> SuperEpoch:
        """Runs one inner optimization per objective and trains the optimizer along the way.

        On several devices each may call this with its own part of the objectives. `meta_update` takes the
        mean of their meta-gradients; whatever else must be the same on all, such as a norm of the
        meta-gradient, needs `objectives.mean_over_devices`.

        **Arguments:**

        - `optimizer`, `meta_state`: where the meta-training stands.
        - `objectives`: one inner optimization each.
        - `meta_update`: applies a meta-gradient.
        - `weighting`: turns a window's losses into the meta-loss.
        - `num_steps`: length of the super epoch.
        - `init_keys`, `loss_keys`: for the starting points and for the minibatches.
        - `key`: for whatever else is drawn; the same on all devices.
        - `strategy_state`: from `init` or the super epoch before.
        """
