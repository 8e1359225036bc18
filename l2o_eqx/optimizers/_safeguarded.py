import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._checks import check_count
from .._errors import ArgumentError
from .._misc import ravel, tree_dtype, unravel_like, wide_dtype_of
from .._types import Params, State, StepNumber
from ._base import AbstractOptimizer
from ._blocks import Blocks
from ._from_optax import as_optimizer
from ._guard import Guard
from ._layouts import AbstractLayout, Seen, Whole, initial_state, take_step
from ._wrapper import AbstractWrapper

# How much further than |θ| + |w| an entry may move, so that the way back is right to 4 digits in float32.
_REACH = 1e3


class SafeguardedState(eqx.Module):
    """What `Safeguarded` carries: both states, where the fallback would have gone last, and the rule's."""

    inner: State
    fallback: State
    back: Params
    guard: Guard


class Safeguarded(AbstractWrapper):
    """A learned optimizer on objectives that it was not trained for, with a fallback where it does not help.

    The rule looks at `value` alone, the loss f(θ_t) that every step comes with, so that no evaluation of f is
    added. With M the `memory`, and d the mean change of the loss by the fallback's last steps, 0 at first:

    1. The inner optimizer takes over at a loss f_c, and moves as long as f(θ_t) ≤ f_c + 3d and its update is
        finite. After every M steps, the mean of their losses must be lower than that of the M before, at
        first than f_c; the bound is then the highest of the M, plus 3d, if that is lower.
    2. Where the loss is too high, the params go back to the last point that was accepted and from there, in
        the same move, along the fallback's update, and the inner optimizer will begin anew. Where its update
        is not finite, or the mean has not fallen, the fallback takes the step from θ_t.
    3. Then the fallback moves for N more steps, N = 1, 4, 16, … each time that it falls back, and 1 again
        once the inner optimizer has passed M steps.

    So a trial never ends higher than about three steps of the fallback before it. Where the inner optimizer
    diverges or stalls, the run ends as the fallback alone does after fewer steps: of T steps it loses some
    log₄ T trials, of two steps where it diverges at once, of up to M and those three where it does so slowly
    or stands still. What the rule does not see is that an inner optimizer makes progress, but slower than the
    fallback would: that would take running both. Where losses are those of minibatches, take a `memory` over
    which progress is larger than the noise of a mean of M: on networks for digits (64 of 2,000 at a step, 150
    steps, three networks), Adam with a far too slow fallback ends at 0.27 to 0.31 with a memory of 10, and
    with 30 where it ends alone, at 0.23 to 0.26.

    Both are asked for an update at every step, and the params are kept once more. The fallback sees the
    gradients at all accepted points, also where its update is not taken. No entry moves by more than 1000
    times (|θ| + the fallback's update), or the way back would be lost to rounding. If both are
    coordinatewise, so is this one; else it runs on whole trees.

    The state is a `SafeguardedState`. In it, or in that of `as_optax` or a chain around it, `Guard.of(state)`
    finds how often it fell back, `falls`, and the steps that were not the inner optimizer's,
    `fallback_steps`.

    **Arguments:**

    - `inner`: the trained optimizer.
    - `fallback`: what one would use without it: an optimizer, or an optax transformation such as
        `optax.adam(1e-3)`, with which `l2o_eqx.save` cannot store this.
    - `memory`: M, the number of losses that a new one is compared with.

    **Raises:** `ValueError` for a memory below 1, and on `update` without `value` or params.

    Reference: the rule is the loss-based guard of Prémont-Schwarz et al. 2022, "A simple guard for learned
    optimizers" (arXiv:2201.12426), in that losses alone decide which optimizer moves, with the safeguard of
    Heaton et al. 2020, "Safeguarded learned convex optimization" (arXiv:2003.01880): a reference value, and
    the fallback's step where it is missed. Recent maxima as a reference are those of Grippo, Lampariello &
    Lucidi 1986, "A nonmonotone line search technique". The bound 3d and the numbers N are ours: those papers
    evaluate f at the fallback's point, or a residual.
    """

    inner: AbstractOptimizer
    fallback: AbstractOptimizer = eqx.field(converter=as_optimizer)
    memory: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check_count("Safeguarded", memory=self.memory)

    def wants(self) -> frozenset[str]:
        return frozenset({"value"}) | self.inner.wants() | self.fallback.wants()

    def needs(self) -> frozenset[str]:
        return frozenset({"value"}) | self.inner.needs() | self.fallback.needs()

    def layout(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> AbstractLayout:
        both = [optimizer.layout(shapes) for optimizer in (self.inner, self.fallback)]
        return Blocks() if all(isinstance(layout, Blocks) for layout in both) else Whole()

    def inner_state(self, state: State) -> State:
        return state.inner

    def init(self, params: Params) -> State:
        return self._init(params, None)

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        return self._init(params, num_steps)

    def _init(self, params: Params, num_steps: StepNumber | None) -> SafeguardedState:
        apart = isinstance(self.layout(jax.eval_shape(lambda p: p, params)), Blocks)
        shape = (sum(x.size for x in jax.tree.leaves(params)),) if apart else ()
        dtype = wide_dtype_of(tree_dtype(params))
        none, nothing = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, dtype)
        most = jnp.full(shape, jnp.finfo(dtype).max, dtype)
        return SafeguardedState(
            inner=initial_state(self.inner, params, num_steps),
            fallback=initial_state(self.fallback, params, num_steps),
            back=jax.tree.map(jnp.asarray, params),
            guard=Guard(
                bound=most,
                change=nothing,
                last=most,
                total=nothing,
                high=-most,
                mean_before=nothing,
                age=none,
                hold=none,
                length=none + 1,
                falls=none,
                fallback_steps=none,
                num_steps=None if num_steps is None else jnp.full(shape, num_steps, jnp.int32),
            ),
        )

    def update(
        self,
        grads: Params,
        state: SafeguardedState,
        params: Params | None,
        *,
        value: Float[Array, "*coordinates"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, SafeguardedState]:
        for name, given in (("params", params), ("value", value)):
            if given is None:
                raise ArgumentError(f"`Safeguarded` needs `{name}`: hand it to `update`.", argument=name)
        assert params is not None and value is not None
        guard = state.guard
        seen, value = Seen(grads, value, key), jnp.broadcast_to(value, guard.high.shape)
        value = value.astype(guard.high.dtype)
        refused = guard.refuses(value)
        theirs, fallback = take_step(self.fallback, seen, state.fallback, params)
        own, inner = take_step(self.inner, seen, state.inner, params)
        broken = _has_broken(own, refused)
        own = jax.tree.map(_within_reach, own, theirs, params)
        trusting = guard.hold == 0
        guard, falls = guard.after(value, refused, broken, self.memory)

        moved = _choose(trusting & ~falls, own, theirs)
        way_back = jax.tree.map(lambda b, p: (b - p).astype(p.dtype), state.back, params)
        there = jax.tree.map(lambda p, w: (p + w).astype(p.dtype), params, theirs)
        num_steps = None if guard.num_steps is None else jnp.max(guard.num_steps, initial=0)
        anew = initial_state(self.inner, params, num_steps)
        return _choose(refused, way_back, moved), SafeguardedState(
            inner=_choose_state(
                refused | (trusting & broken), anew, _choose_state(trusting, inner, state.inner)
            ),
            fallback=_choose_state(refused, state.fallback, fallback),
            back=_choose(refused, state.back, there),
            guard=guard,
        )


def _within_reach(own, theirs, params):
    reach = _REACH * (jnp.abs(params) + jnp.abs(theirs))
    return jnp.clip(jnp.where(jnp.isfinite(own), own, theirs), -reach, reach).astype(own.dtype)


def _has_broken(updates, like):
    # Of every coordinate apart, or of all of them together.
    broken = jax.tree.map(lambda u: ~jnp.isfinite(u), updates)
    if like.ndim:
        return ravel(broken, np.dtype(np.float32)) > 0
    return jnp.any(jnp.stack([jnp.any(x) for x in jax.tree.leaves(broken)] or [like & False]))


def _choose(which, ours, others):
    # Trees like the params, whose coordinates are raveled in `which` if it is no scalar.
    if not which.ndim:
        return jax.tree.map(lambda x, y: jnp.where(which, x, y), ours, others)
    spread = unravel_like(which.astype(jnp.float32), ours)
    return jax.tree.map(lambda here, x, y: jnp.where(here > 0, x, y), spread, ours, others)


def _choose_state(which, ours, others):
    # Trees whose arrays have the coordinates on the last axis, if `which` has.
    def one(x, y):
        return jnp.where(which.reshape(*(1,) * (x.ndim - which.ndim), *which.shape), x, y)

    return jax.tree.map(one, ours, others)
