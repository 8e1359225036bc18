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

# How much further than an entry is large, or a step of the other one, it may be from where the way back ends,
# so that this is right to 4 digits in float32; with fewer digits, to one.
_REACH, _DIGIT = 1e3, 0.1
# So that what `Guard` counts fits in 32 bits.
_LONGEST_MEMORY = 2**18


class SafeguardedState(eqx.Module):
    """What `Safeguarded` carries: both states, where the fallback would have gone last, and the rule's."""

    inner: State
    fallback: State
    back: Params
    guard: Guard


class Safeguarded(AbstractWrapper):
    """A learned optimizer on objectives that it was not trained for, with a fallback where it does not help.

    The rule looks at `value` alone, the loss f(θ_t) that every step comes with, so that no evaluation of f is
    added. One of the two is the incumbent, at first the inner optimizer, and moves; the other is tried from
    time to time. With M the `memory`, and d the mean change of the loss by the incumbent's last steps:

    1. **Bounds.** The inner optimizer takes over at a loss f_c, and moves as long as f(θ_t) ≤ f_c + 3d and
        its update is finite; d is 0 at the first loss. Of each of its spans, the highest loss plus 3d is the
        bound of the next if that is lower. Where the loss is too high, the params go back to the last point
        that was accepted and from there, in the same move, along the fallback's update. Then the fallback
        moves for N more steps, N = 1, 4, 16, … each time in a row. Where that happens again, or its update
        was not finite, the inner optimizer begins anew.
    2. **Spans.** A span is M/2 steps, after which the fall of the loss is known: that of a line of least
        squares, with its standard error, from second differences. After two spans, or one in which the loss
        has surely not fallen, the other is tried for a span, and the incumbent answers with one. Where f
        falls by a factor in every span, three falls in a row are in geometric progression if the factors are
        the same: so the other takes over where its fall is larger than √(fall before · fall after), by more
        than the error; at once, without the answer, where it is larger than the fall before.
    3. **Trials.** One begins with a bound of f + 3d, which may be exceeded in between by as much as the
        incumbent had gained in the span before. Where it is, the params go back to where the trial began,
        without a fall of the loss it is lost as well. Where the incumbent stays, spans are twice as long from
        then on, and the next trial comes after 8, 16, 32, … of them; where the other takes over, or falls
        back, all begins with M/2 again.

    So where one of the two is better all along, the run ends as that one alone does after fewer steps. Of T
    steps, a fallback that is better misses M at first and some √(MT) in trials; where the inner optimizer
    diverges, two each of some log₄ T times. Logistic regression by the gallery's `mnist` ends at 0.027 after
    1,000 steps, by Adam at 0.0047 (0.0062 after 800), and by the one with the other to fall back on at
    0.0073. On 42 such pairs, in 31 the loss is at most that of the fallback after 80 % of the steps.

    What the rule sees is how fast the loss falls now: it takes for better what gains at first and is slow
    later, and misses what has to climb before it falls, such as Adam in the valley of Rosenbrock's function
    beside slow gradient descent (2e-5 after 1,000 steps; Adam alone 5e-12). Where losses are those of
    minibatches, take a `memory` over which progress is larger than the noise. `benchmarks/safeguard.py` has
    these numbers and others.

    Both are asked for an update at every step, and the params are kept once more. The fallback sees the
    gradients at all points but those that are refused, also where its update is not taken; the inner
    optimizer those at which it moves, since it was trained on gradients along its own way. On a trial, and
    where the inner optimizer moves, no entry gets further from where the way back leads than 1000 times as
    far as it is large, or as the other one's update is (less in narrow dtypes), or that way would be lost to
    rounding. If both are coordinatewise, so is this one; else it runs on whole trees.

    The state is a `SafeguardedState`. In it, or in that of `as_optax` or a chain around it, `Guard.of(state)`
    finds how often it fell back, `falls`, and the steps that were not the inner optimizer's,
    `fallback_steps`.

    **Arguments:**

    - `inner`: the trained optimizer.
    - `fallback`: what one would use without it: an optimizer, or an optax transformation such as
        `optax.adam(1e-3)`, with which `l2o_eqx.save` cannot store this.
    - `memory`: M, an even number of steps, before which the fallback is not tried unless the loss stalls.

    **Raises:** `ValueError` for a memory below 1 or above 262,144, and on `update` without `value` or params.

    Reference: the rule is the loss-based guard of Prémont-Schwarz et al. 2022, "A simple guard for learned
    optimizers" (arXiv:2201.12426), in that losses alone decide which optimizer moves, with the safeguard of
    Heaton et al. 2020, "Safeguarded learned convex optimization" (arXiv:2003.01880): a reference value, and
    the fallback's step where it is missed. Recent maxima as a reference are those of Grippo, Lampariello &
    Lucidi 1986, "A nonmonotone line search technique". The bound 3d, the comparison of falls and the
    numbers N are ours: those papers evaluate f at the fallback's point, or a residual.
    """

    inner: AbstractOptimizer
    fallback: AbstractOptimizer = eqx.field(converter=as_optimizer)
    memory: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check_count("Safeguarded", memory=self.memory)
        if self.memory > _LONGEST_MEMORY:
            raise ArgumentError(
                f"`Safeguarded(memory=...)` must be at most {_LONGEST_MEMORY}. Got {self.memory}.",
                argument="memory",
                given=self.memory,
            )

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
        return SafeguardedState(
            inner=initial_state(self.inner, params, num_steps),
            fallback=initial_state(self.fallback, params, num_steps),
            back=jax.tree.map(jnp.asarray, params),
            guard=Guard.new(shape, dtype, num_steps),
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
        refused = guard.refuses(value, self.memory)
        theirs, fallback = take_step(self.fallback, seen, state.fallback, params)
        theirs = jax.tree.map(lambda t: jnp.where(jnp.isfinite(t), t, 0), theirs)
        own, inner = take_step(self.inner, seen, state.inner, params)
        broken = _has_broken(own, refused)
        own = jax.tree.map(lambda o, t: jnp.where(jnp.isfinite(o), o, t), own, theirs)
        anew = guard.moves_inner & (broken | (refused & (guard.on_trial | (guard.length > 1))))
        was_on_trial = guard.on_trial
        # In blocks, each coordinate knows of itself alone: the loss decides for all of them.
        guard, by_inner = guard.after(value, refused, broken & (broken.ndim == 0), self.memory)

        # The way back: to where a trial began, or the last accepted point, and from there along the
        # fallback's update. The inner optimizer goes on from where it was, with the gradient there.
        ahead = jax.tree.map(lambda p, w: (p + w).astype(p.dtype), params, theirs)
        here = _choose(guard.by_inner & guard.on_trial, params, ahead)
        back = _choose(refused | (guard.on_trial & was_on_trial), state.back, here)
        way_back = jax.tree.map(lambda b, p: (b - p).astype(p.dtype), state.back, params)
        taken, others = _choose(by_inner, own, theirs), _choose(by_inner, theirs, own)
        within = jax.tree.map(_within_reach, taken, params, back, others)
        move = _choose(by_inner | guard.on_trial, within, theirs)
        num_steps = None if guard.num_steps is None else jnp.max(guard.num_steps, initial=0)
        first = initial_state(self.inner, params, num_steps)
        return _choose(refused, way_back, move), SafeguardedState(
            inner=_choose_state(anew, first, _choose_state(by_inner, inner, state.inner)),
            fallback=_choose_state(refused, state.fallback, fallback),
            back=back,
            guard=guard,
        )


def _within_reach(update, params, back, others):
    # The update, cut where it would lead so far from `back` that the way there is lost to rounding. The way
    # to zero is not.
    numbers = jnp.finfo(params.dtype)
    digits = min(_REACH, _DIGIT / float(numbers.eps))
    largest = jnp.where(back == 0, numbers.max, digits * jnp.maximum(jnp.abs(back), jnp.abs(others)))
    reach = jnp.minimum(largest, float(numbers.max) / 4).astype(params.dtype)
    target = params + update
    cut = jnp.clip(target, back - reach, back + reach) - params
    return jnp.where(jnp.abs(target - back) <= reach, update, cut).astype(update.dtype)


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
