"""When `Safeguarded` lets its inner optimizer move: the rule that its docstring states."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._errors import ArgumentError

# Of the numbers of steps that the fallback takes.
_LONGEST = 2**20
# How many changes by the fallback's steps the loss may rise by; and over how many their mean runs.
_CHANGES = 3


class Guard(eqx.Module):
    """What `Safeguarded` knows of the run, one number each; in blocks the same for every coordinate.

    **Fields:**

    - `bound`: the highest loss at which the inner optimizer still goes on; the largest number where it does
        not move.
    - `change`: a running mean of how much the fallback's steps change the loss.
    - `last`: the loss at the last accepted point; the largest number before the first.
    - `mean_before`: the mean loss of the span before; `age`, `total`, `high`: of the steps of this span, how
        many, the sum of what the losses they led to lie above that mean, and the highest of these losses.
    - `hold`: steps that the fallback is still going to take; `length`: how many it takes next time.
    - `falls`: how often it fell back; `fallback_steps`: how many steps were the fallback's, or led back.
    - `num_steps`: of the run, if that is known.
    """

    bound: Float[Array, "*coordinates"]
    change: Float[Array, "*coordinates"]
    last: Float[Array, "*coordinates"]
    total: Float[Array, "*coordinates"]
    high: Float[Array, "*coordinates"]
    mean_before: Float[Array, "*coordinates"]
    age: Int[Array, "*coordinates"]
    hold: Int[Array, "*coordinates"]
    length: Int[Array, "*coordinates"]
    falls: Int[Array, "*coordinates"]
    fallback_steps: Int[Array, "*coordinates"]
    num_steps: Int[Array, "*coordinates"] | None

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

    def refuses(self, value: Float[Array, "*coordinates"]) -> Bool[Array, "*coordinates"]:
        """Whether the inner optimizer's last step led to a point that is not accepted."""
        return (self.hold == 0) & ~(value <= self.bound)

    def after(
        self,
        value: Float[Array, "*coordinates"],
        refused: Bool[Array, "*coordinates"],
        broken: Bool[Array, "*coordinates"],
        memory: int,
    ) -> tuple["Guard", Bool[Array, "*coordinates"]]:
        """The next one, and whether it falls back now; `broken` where the inner update is not finite."""
        most = jnp.finfo(value.dtype).max
        trusting, by_inner = self.hold == 0, self.bound < most
        takes_over = trusting & ~by_inner & ~refused
        step = jnp.where(self.last < most, jnp.abs(value - self.last), 0)
        change = jnp.where(by_inner, self.change, self.change + (step - self.change) / _CHANGES)
        counts = by_inner & ~refused
        age = self.age + counts
        # Differences, so that where nothing moves their sum is exactly zero.
        total = self.total + jnp.where(counts, value - self.mean_before, 0)
        high = jnp.fmax(self.high, value)
        full, stalled = age >= memory, (age >= memory) & ~(total < 0)
        falls = refused | (trusting & (broken | stalled))
        bound = jnp.where(full, jnp.minimum(self.bound, high + _CHANGES * change), self.bound)
        at_first = jnp.minimum(value + _CHANGES * change, most / 2)
        new_span = full | takes_over
        return Guard(
            bound=jnp.where(falls, most, jnp.where(takes_over, at_first, bound)),
            change=jnp.where(falls, 0, change),
            last=jnp.where(refused, self.last, value),
            total=jnp.where(new_span, 0, total),
            high=jnp.where(new_span | ~counts, -most, high),
            mean_before=jnp.where(takes_over, value, self.mean_before + jnp.where(full, total / memory, 0)),
            age=jnp.where(new_span | falls, 0, age),
            hold=jnp.where(falls, self.length, jnp.maximum(self.hold - 1, 0)),
            length=jnp.where(falls, jnp.minimum(4 * self.length, _LONGEST), jnp.where(full, 1, self.length)),
            falls=self.falls + falls,
            fallback_steps=self.fallback_steps + (falls | ~trusting),
            num_steps=self.num_steps,
        ), falls
