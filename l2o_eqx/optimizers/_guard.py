"""When `Safeguarded` lets its inner optimizer move: the rule that its docstring states."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._errors import ArgumentError

# The one that moves by default, the other on trial, and the first one again, to compare the trial with.
_INCUMBENT, _CHALLENGER, _ANSWER = range(3)
# Of the numbers of steps that the fallback takes.
_LONGEST = 2**20
# Of the doublings of a span.
_MOST_ROUNDS = 12
# How many changes by a step the loss may rise by; and over how many their mean runs.
_CHANGES = 3


class Span(eqx.Module):
    """The losses along some steps of one optimizer: what a line through them is fitted from.

    **Fields:**

    - `first`: the loss before the first step.
    - `age`: the number of losses since.
    - `total`, `moment`: of the losses less the first, the sum, and the sum weighted by their numbers.
    - `roughness`: the root of the sum of the squared second differences of the losses.
    """

    first: Float[Array, "*coordinates"]
    age: Int[Array, "*coordinates"]
    total: Float[Array, "*coordinates"]
    moment: Float[Array, "*coordinates"]
    roughness: Float[Array, "*coordinates"]

    @classmethod
    def at(cls, value: Float[Array, "*coordinates"]) -> "Span":
        """One that begins at this loss."""
        zero = jnp.zeros_like(value)
        return cls(value, jnp.zeros(value.shape, jnp.int32), zero, zero, zero)

    def then(self, value: Float[Array, "*coordinates"], bend: Float[Array, "*coordinates"]) -> "Span":
        """With the next loss, and what its second difference is."""
        age, above = self.age + 1, value - self.first
        return Span(
            first=self.first,
            age=age,
            total=self.total + above,
            moment=self.moment + age * above,
            # Squares of small losses would round to zero.
            roughness=jnp.hypot(self.roughness, jnp.where(age >= 2, bend, 0)),
        )

    def fall(self) -> tuple[Float[Array, "*coordinates"], Float[Array, "*coordinates"]]:
        """How far the line of least squares falls, and the standard error of that.

        Independent noise of variance σ² gives second differences of 6σ², whatever the slope. With n losses,
        Σ(i - ī)² is n(n² - 1)/12.
        """
        n = (self.age + 1).astype(self.first.dtype)
        fall = -(self.moment - (n - 1) / 2 * self.total) * 12 / (n * (n + 1))
        variance = 12 * (n - 1) / (n * (n + 1)) / (6 * jnp.maximum(n - 2, 1))
        return fall, jnp.sqrt(variance) * self.roughness


class Guard(eqx.Module):
    """What `Safeguarded` knows of the run, one number each; in blocks the same for every coordinate.

    **Fields:**

    - `by_inner`: whether the inner optimizer is the incumbent, the one that moves unless the other is tried.
    - `phase`: 0 where the incumbent moves, 1 where the other is on trial, 2 where the incumbent answers.
    - `bound`: the highest loss at which the inner optimizer, or one on trial, still goes on.
    - `change`: a running mean of how much a step of the incumbent changes the loss.
    - `last`, `before_last`: the losses at the last accepted points; the largest number where there are none.
    - `span`, `high`: the losses of this span, and the highest that the inner optimizer led to in it.
    - `incumbent_fall`, `challenger_fall`: how far the loss fell in the span before the trial, and in it.
    - `spans`: how many more the incumbent has before the other is tried; `rounds`: log₂ of how many times
        half a `memory` a span has.
    - `hold`: steps that the fallback is still going to take; `length`: how many it takes next time.
    - `falls`: how often it fell back; `fallback_steps`: how many steps were the fallback's, or led back.
    - `num_steps`: of the run, if that is known.
    """

    by_inner: Bool[Array, "*coordinates"]
    phase: Int[Array, "*coordinates"]
    bound: Float[Array, "*coordinates"]
    change: Float[Array, "*coordinates"]
    last: Float[Array, "*coordinates"]
    before_last: Float[Array, "*coordinates"]
    span: Span
    high: Float[Array, "*coordinates"]
    incumbent_fall: Float[Array, "*coordinates"]
    challenger_fall: Float[Array, "*coordinates"]
    spans: Int[Array, "*coordinates"]
    rounds: Int[Array, "*coordinates"]
    hold: Int[Array, "*coordinates"]
    length: Int[Array, "*coordinates"]
    falls: Int[Array, "*coordinates"]
    fallback_steps: Int[Array, "*coordinates"]
    num_steps: Int[Array, "*coordinates"] | None

    @classmethod
    def new(cls, shape: tuple[int, ...], dtype: jnp.dtype, num_steps: Int[Array, ""] | int | None) -> "Guard":
        """Before the first step: the inner optimizer takes over at the first loss."""
        none, nothing = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, dtype)
        most = jnp.full(shape, jnp.finfo(dtype).max, dtype)
        return cls(
            by_inner=none > 0,
            phase=none,
            bound=most,
            change=nothing,
            last=most,
            before_last=most,
            span=Span.at(nothing),
            high=-most,
            incumbent_fall=nothing,
            challenger_fall=nothing,
            spans=none + 2,
            rounds=none,
            hold=none + 1,
            length=none + 1,
            falls=none,
            fallback_steps=none,
            num_steps=None if num_steps is None else jnp.full(shape, num_steps, jnp.int32),
        )

    @classmethod
    def of(cls, state: PyTree) -> "Guard":
        """The guard in a state, with one number each: that of an optimizer, a transformation, or a chain.

            falls = optimizers.Guard.of(optax_state).falls

        **Raises:** `ArgumentError` if there is none, or several.
        """
        nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, cls))
        found = [x for x in nodes if isinstance(x, cls)]
        if len(found) != 1:
            raise ArgumentError(
                f"`Guard.of(state)` must be given a state with one `Safeguarded`. Got {len(found)}.",
                argument="state",
                given=state,
            )
        # In blocks, all coordinates have the same.
        return jax.tree.map(lambda x: jnp.ravel(x)[0] if x.size else x, found[0])

    @property
    def on_trial(self) -> Bool[Array, "*coordinates"]:
        """Whether the one that is not the incumbent moves."""
        return self.phase == _CHALLENGER

    @property
    def moves_inner(self) -> Bool[Array, "*coordinates"]:
        """Whether the last step was the inner optimizer's."""
        return self.by_inner ^ self.on_trial

    def refuses(self, value: Float[Array, "*coordinates"], memory: int) -> Bool[Array, "*coordinates"]:
        """Whether the last step led to a point that is not accepted."""
        # A trial may lose in between as much as the incumbent had gained.
        between = self.on_trial & (self.span.age + 1 < self._length(memory))
        bound = self.bound + jnp.where(between, jnp.maximum(self.incumbent_fall, 0), 0)
        return (self.moves_inner | self.on_trial) & ~(value <= bound)

    def after(
        self,
        value: Float[Array, "*coordinates"],
        refused: Bool[Array, "*coordinates"],
        broken: Bool[Array, "*coordinates"],
        memory: int,
    ) -> tuple["Guard", Bool[Array, "*coordinates"]]:
        """The next one, and whether the inner optimizer moves now; `broken`: its update is not finite."""
        # Where nothing is known of the loss, as if it had not changed; after a trial in vain, as before it.
        value = jnp.where(jnp.isfinite(value), value, self.last)
        value = jnp.where(self.on_trial & refused, self.span.first, value)
        most = jnp.finfo(value.dtype).max
        span, change, high = self._with(value, refused)
        fall, error = span.fall()
        stopped = refused | (broken & self.moves_inner)
        full = (span.age >= self._length(memory)) & (self.hold == 0) & ~stopped
        wins, answers, loses = self._verdict(fall, error, full, stopped)
        tries = full & (self.phase == _INCUMBENT) & ((self.spans <= 1) | (fall <= -error))
        fails, takes_over = stopped & ~self.on_trial, self.hold == 1

        # The fallback is on hold, or has to be, and with a win all begins with the shortest spans again.
        afresh = fails | (self.hold > 0)
        over = wins | loses | afresh
        rounds = jnp.where(loses, jnp.minimum(self.rounds + 1, _MOST_ROUNDS), self.rounds)
        rounds = jnp.where(afresh | wins, 0, rounds)
        by_inner = (takes_over | (self.by_inner ^ wins)) & ~fails
        phase = jnp.where(over, _INCUMBENT, self.phase)
        phase = jnp.where(tries, _CHALLENGER, jnp.where(answers, _ANSWER, phase))
        moves = (by_inner ^ (phase == _CHALLENGER)) & ~refused & ~broken
        passed = full & self.moves_inner
        bound = jnp.where(
            passed & ~self.on_trial, jnp.minimum(self.bound, high + _CHANGES * change), self.bound
        )
        at_first = jnp.minimum(value + _CHANGES * change, most / 2)
        return Guard(
            by_inner=by_inner,
            phase=phase,
            bound=jnp.where(tries | takes_over, at_first, bound),
            change=jnp.where(fails, 0, change),
            last=jnp.where(refused & ~self.on_trial, self.last, value),
            before_last=jnp.where(refused, most, self.last),
            span=jax.tree.map(lambda x, y: jnp.where(full | over, x, y), Span.at(value), span),
            high=jnp.where(full | over, -most, high),
            incumbent_fall=jnp.where(tries, fall, self.incumbent_fall),
            challenger_fall=jnp.where(answers, fall, self.challenger_fall),
            spans=jnp.where(over, jnp.where(rounds > 0, 2 ** (rounds + 2), 2), self.spans - full),
            rounds=rounds,
            hold=jnp.where(fails, self.length + 1, jnp.maximum(self.hold - 1, 0)),
            length=jnp.where(
                fails, jnp.minimum(4 * self.length, _LONGEST), jnp.where(passed, 1, self.length)
            ),
            falls=self.falls + (fails | (wins & self.by_inner) | (loses & ~self.by_inner)),
            fallback_steps=self.fallback_steps + ~moves,
            num_steps=self.num_steps,
        ), moves

    def _verdict(self, fall, error, full, stopped):
        # Of a trial: it is won, the incumbent has to answer first, or it is lost.
        tried, answered = full & self.on_trial, full & (self.phase == _ANSWER)
        clearly = tried & (fall - self.incumbent_fall > 2**0.5 * error)
        # Of a loss that falls by the same factor in every span, the falls are in geometric progression.
        incumbents = jnp.sqrt(jnp.maximum(self.incumbent_fall, 0)) * jnp.sqrt(jnp.maximum(fall, 0))
        wins = clearly | (answered & (self.challenger_fall - incumbents > 1.5**0.5 * error))
        hopeless = (tried & ~clearly & (fall <= 0)) | (self.on_trial & stopped)
        loses = hopeless | (answered & ~wins)
        return wins, tried & ~wins & ~loses, loses

    def _length(self, memory):
        return (memory + 1) // 2 * 2**self.rounds

    def _with(self, value, refused):
        # The span, mean change and highest loss with one more loss.
        most = jnp.finfo(value.dtype).max
        step = jnp.where(self.last < most, jnp.abs(value - self.last), 0)
        bend = jnp.where(self.before_last < most, (value - self.last) - (self.last - self.before_last), 0)
        mean = jnp.where(self.change == 0, step, self.change + (step - self.change) / _CHANGES)
        change = jnp.where(self.on_trial | refused, self.change, mean)
        high = jnp.fmax(self.high, jnp.where(self.moves_inner, value, -most))
        return self.span.then(value, bend), change, high
