import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from ._checks import check_sizes
from ._devices import Restarts
from ._errors import ArgumentError, check
from ._meta_step import MetaState, init_meta_state
from ._meta_train import Course, FailedObjective, MetaSolution, fitting
from ._past import Past
from ._search._badmm import badmm_step, init_badmm
from ._search._mirror import init_mirror, mirror_step
from ._search._problem import Drawn, Method, SearchSettings, Structure
from ._snapshots import Keeper, Validation, validation_of
from ._turns import Turn
from .callbacks._base import Callback
from .objectives import AbstractObjectiveFamily, Mixture, params_shapes
from .optimizers import AbstractOptimizer
from .strategies import OncePerSuperEpoch
from .weightings import AbstractWeighting, Constant

# Far from the numbers of super epochs.
_OBJECTIVES = 2**31 - 10


def policy_search(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    *,
    num_steps: int = 40,
    method: Method = "mirror-descent",
    super_epochs: int = 15,
    num_objectives: int = 90,
    num_samples: int = 25,
    inner_iterations: int = 4,
    structure: Structure = "full",
    initial_rate: float = 0.1,
    initial_std: float = 0.1,
    kl_step: float = 0.2,
    penalty: float = 0.01,
    dual_rate: float = 0.1,
    weighting: AbstractWeighting | None = None,
    fit_updates: int = 100,
    fit_batch: int = 256,
    meta_optimizer: optax.GradientTransformation | None = None,
    restarts: int | None = None,
    validation: AbstractObjectiveFamily | Validation | None = None,
    key: PRNGKeyArray,
    callbacks: Sequence[Callback] = (),
    state: MetaState | None = None,
) -> MetaSolution:
    """Trains an optimizer as a policy, by guided policy search: nothing is differentiated through a run.

    An optimizer's step u_t = π(what it has seen) is a mean action, f(θ_{t+1}) what it costs, and
    θ_{t+1} = θ_t + u_t the dynamics, which are linear. Controllers ψ_t(u|θ) = N(K_t θ + k_t, C_t), one for
    every objective, know where they are; they are improved by the linear-quadratic regulator, and the policy
    is fitted to them by supervised learning.

    By **mirror descent**, a super epoch draws new objectives, and `inner_iterations` times

    1. samples trajectories of the policy with noise, and regresses its answers on θ: that is π̄_t(u|θ);
    2. expands the costs to second order around the mean trajectories (exact gradients and Hessians);
    3. finds the controllers that are better, min E_ψ[c], at a divergence KL(ψ ‖ π̄) of at most `kl_step` per
        step, times a factor between 0.1 and 10, which grows or shrinks with how well the gain of the last
        iteration of the same super epoch was predicted;
    4. fits the policy: min Σ (μ − û)ᵀ C⁻¹ (μ − û), where û is what it answered and, added to that, the
        difference between ψ and π̄.

    By **BADMM**, objectives are drawn once, and every one has a controller that stays, at first gradient
    descent. A super epoch samples the controllers, records what an optimizer would see along them,
    expands costs and policy there, and then, `inner_iterations` times,

    1. improves each controller: min E_ψ[c − λᵀu] + ν·KL(ψ ‖ π), at a divergence of at most `kl_step` per step
        from the one sampled, times a factor between 0.01 and 10 of each objective, which follows the gain of
        the last super epoch;
    2. fits the policy: min λᵀμ + (ν/2)·(μ − û)ᵀ C⁻¹ (μ − û), where û is what a controller means to do and μ
        what the policy does;
    3. moves the duals by what is still between them: λ += α·ν·E[μ − û].

    The penalty ν of an objective doubles where the two are more than `kl_step` nats per step apart, and
    halves below a tenth of that. The policy is fitted where controllers lead, and may be elsewhere when it is
    on its own.

    Objectives that are not finite, or so steep that no bound can be kept, are left out and reported. Any
    optimizer can be trained so, one with a learned start excepted; `optimizers.PolicyOptimizer` is the one
    of the paper.

    **Arguments:**

    - `optimizer`: what to train; every floating-point array in it is a meta-parameter. With `state`, only its
        structure matters.
    - `family`: what the objectives are drawn from, whose starting points are drawn with them.
    - `num_steps`: length of a trajectory.
    - `method`: `"mirror-descent"`, or `"badmm"`, that of Li & Malik.
    - `super_epochs`: how many; with `state`, how many in all.
    - `num_objectives`: objectives of a super epoch; with BADMM, of the whole search.
    - `num_samples`: trajectories of each objective at a time.
    - `inner_iterations`: how often controllers and policy take turns in a super epoch.
    - `structure`: `"full"`, or `"diagonal"`: controllers of one coordinate each, with the diagonal of the
        Hessian, estimated by 8 products; for many coordinates.
    - `initial_rate`: the learning rate of the first controllers; of BADMM.
    - `initial_std`: the standard deviation of the noise at first.
    - `kl_step`: nats per step that a controller may move at once.
    - `penalty`: ν at first; it stays between a hundredth and a hundred times of that. Of BADMM.
    - `dual_rate`: α; of BADMM.
    - `weighting`: makes costs of losses, c = Σ w_t f(θ_{t+1}), with its gradient at the mean losses of an
        objective's samples, scaled to weights of mean one; by default `Constant()`.
    - `fit_updates`: updates of the policy in every inner iteration.
    - `fit_batch`: trajectories per update.
    - `meta_optimizer`: of these updates, any optax transformation; by default `optax.adam(1e-3)`.
    - `restarts`, `validation`, `key`, `callbacks`, `state`: as in `meta_train`.

    **Returns:** a `MetaSolution`. In its metrics, `mean_loss` and `final_loss` are of the optimizer alone, on
    the training's objectives; `teacher_loss` is of the controllers: with BADMM the mean loss of their
    samples, with mirror descent the mean cost that they are expected to have. `meta_loss` is that of the fit,
    and `disagreement` how far the policy is from what it was fitted to, in nats per step.

    **Raises:** `ValueError` for sizes below 1, rates that are not positive, an unknown method or structure, a
    `Mixture`, an optimizer with a learned start or without meta-parameters, or a `state` that does not fit.

    Reference: Li & Malik 2016, "Learning to optimize" (arXiv:1606.01885); 2017, "Learning to optimize neural
    nets" (arXiv:1703.00441), for the diagonal; Levine et al. 2016 (arXiv:1504.00702), appendix A; Wang &
    Banerjee 2014, "Bregman alternating direction method of multipliers"; Montgomery & Levine 2016, "Guided
    policy search via approximate mirror descent" (arXiv:1607.04614). In Li & Malik, controllers see all
    that the policy sees, and dynamics are fitted to samples; here they see θ, which is a state, and the
    dynamics are known.
    """
    meta_optimizer = _default_meta_optimizer() if meta_optimizer is None else meta_optimizer
    settings = SearchSettings(
        num_steps,
        num_objectives,
        structure,
        num_samples,
        inner_iterations,
        kl_step,
        initial_rate,
        initial_std,
        penalty,
        dual_rate,
        Constant() if weighting is None else weighting,
        fit_updates,
        fit_batch,
    )
    _check(optimizer, family, settings, super_epochs, method)
    runs = Restarts.of("policy_search", optimizer, restarts)
    start = init_meta_state(optimizer, meta_optimizer, restarts=restarts)
    each = jr.fold_in(key, _OBJECTIVES)
    anew = method == "mirror-descent"
    init, search_step = (init_mirror, mirror_step) if anew else (init_badmm, badmm_step)

    @functools.lru_cache(maxsize=1)
    def keys_of(super_epoch):
        # BADMM's controllers belong to objectives that stay.
        own = jr.fold_in(each, super_epoch) if anew else each
        return _split(runs.keys(own), num_objectives, runs)

    first = Drawn.of(family, keys_of(0), runs)
    search = init(first, settings, runs)
    start = dataclasses.replace(start, strategy_state=search)
    state = start if state is None else fitting("policy_search", start, state, super_epochs, key)
    valid = validation_of(validation, num_steps, super_epochs, key)
    score = None if valid is None else functools.partial(valid.score, restarts=restarts)
    keeper = Keeper(score, 1 if valid is None else valid.every, None, super_epochs)

    def steps(state, count):
        del count
        keys = runs.keys(jr.fold_in(key, state.super_epoch))
        done = int(state.super_epoch)
        drawn = Drawn.of(family, keys_of(done), runs) if anew and done else first
        trained, meta_state, search, metrics, failed = search_step(
            state.optimizer,
            state.meta_optimizer_state,
            state.strategy_state,
            drawn,
            keys,
            settings,
            meta_optimizer,
            runs,
        )
        state = MetaState(trained, meta_state, state.super_epoch + 1, strategy_state=search)
        metrics, failed = jax.tree.map(lambda x: np.asarray(x)[None], (metrics, failed))
        return state, metrics, failed, failed

    def name_failed(rows):
        return tuple(_failed(row, keys_of(row[0] - 1)) for row in rows.tolist())

    updates = inner_iterations * fit_updates
    turns = [Turn("", OncePerSuperEpoch(), num_steps, updates)] * super_epochs
    past = state.past or Past.none_yet(key)
    course = Course(steps, name_failed, None, past, keeper, turns, lambda state: state)
    begun = int(state.super_epoch)
    return course.run(keeper.start(state), range(begun + 1, super_epochs + 1), callbacks)


def _failed(row: list[int], keys: Any) -> FailedObjective:
    # A restart of −1 is that of a search without.
    super_epoch, restart, number = row
    own = keys[number] if restart < 0 else keys[restart, number]
    return FailedObjective(super_epoch, None if restart < 0 else restart, jr.split(own, 3)[0])


def _split(keys, count, runs):
    return jr.split(keys, count) if runs.count is None else jax.vmap(lambda k: jr.split(k, count))(keys)


def _check(
    optimizer: AbstractOptimizer,
    family: AbstractObjectiveFamily,
    settings: SearchSettings,
    super_epochs: int,
    method: str,
) -> None:
    sizes = ("num_steps", "num_objectives", "num_samples", "inner_iterations", "fit_updates", "fit_batch")
    check_sizes("policy_search", super_epochs=super_epochs, **{n: getattr(settings, n) for n in sizes})
    for name in ("kl_step", "initial_rate", "initial_std", "penalty"):
        value = getattr(settings, name)
        check(
            f"`policy_search({name}=...)` must be above 0. Got {name}={value}.", **{name: (value, value > 0)}
        )
    rate = settings.dual_rate
    check(
        f"`policy_search(dual_rate=...)` cannot be negative. Got dual_rate={rate}.",
        dual_rate=(rate, rate >= 0),
    )
    for name, given, choice in (("method", method, Method), ("structure", settings.structure, Structure)):
        if given not in get_args(choice):
            raise ArgumentError(
                f"`policy_search({name}=...)` must be one of {get_args(choice)}. Got {name}={given!r}.",
                argument=name,
                given=given,
                possible=get_args(choice),
            )
    if isinstance(family, Mixture):
        raise ArgumentError(
            "`policy_search(family=...)` searches on one family at a time. Got a `Mixture`; families of the "
            "same shapes can be a `Choice`.",
            argument="family",
            given=family,
        )
    # One that answers with what it was given has none of its own.
    drawn = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params_shapes(family))
    if any(
        x is not y
        for x, y in zip(*map(jax.tree.leaves, (optimizer.initial_params(drawn), drawn)), strict=True)
    ):
        raise ArgumentError(
            f"`policy_search({type(optimizer).__name__})`: controllers begin where objectives do, so a "
            "learned start is not searched for. Train it with `meta_train`.",
            argument="optimizer",
            given=optimizer,
        )


@functools.cache
def _default_meta_optimizer():
    return optax.adam(1e-3)
