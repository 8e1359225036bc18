import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._checks import check_sizes
from .._errors import ArgumentError
from .._misc import ravel_wide, tree_dtype, unravel_like, wide_dtype_of
from .._types import Params, Scalar, State
from ._base import AbstractOptimizer


class PolicyState(eqx.Module):
    """What `PolicyOptimizer` remembers: the last losses and gradients, newest first; how many there were."""

    losses: Float[Array, " history"]
    grads: Float[Array, "history dim"]
    count: Int[Array, ""]


class PolicyOptimizer(AbstractOptimizer):
    """A policy over steps: a network that sees how losses and gradients went, but never where it is.

    At step t it sees, of the last H iterates,

    - f_t − f_{t−i} over max(|f_t|, |f_{t−i}|, `floor`), for i = 1 … H: the relative change of the loss since
        then, which is bounded;
    - ∇f_t, ∇f_{t−1}, …, ∇f_{t−H+1}, as they are;

    both zero where there was no such iterate yet. One hidden layer of softplus units answers the step, the
    mean of a Gaussian whose noise is added where policies are searched (`l2o_eqx.policy_search`), and nowhere
    else. It is made for functions of `dim` coordinates of one scale: it is invariant to nothing.

    Arithmetic and state are in float32 or wider; updates come back in the dtype of the gradients.

    **Arguments:**

    - `dim`: the number of coordinates.
    - `history`: H, how many iterates it sees.
    - `hidden_size`: units of the hidden layer.
    - `floor`: the least |f| that changes are relative to.
    - `scale`: the standard deviation, at first, of steps for features of size one.
    - `key`: draws the initial weights.

    **Raises:** `ValueError` for sizes below 1, a `floor` or `scale` that is not above 0, gradients of other
    than `dim` coordinates, or an `update` without value.

    Reference: Li & Malik 2016, "Learning to optimize" (arXiv:1606.01885), sec. 4: H = 25 and 50 units; there
    changes are relative to one f, which may be 0: a policy trained so diverged on new functions.
    """

    hidden: Float[Array, "hidden features"]
    hidden_bias: Float[Array, " hidden"]
    readout: Float[Array, "dim hidden"]
    readout_bias: Float[Array, " dim"]
    history: int = eqx.field(static=True)
    floor: float = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        history: int = 25,
        hidden_size: int = 50,
        *,
        floor: float = 1e-3,
        scale: float = 0.01,
        key: PRNGKeyArray,
    ):
        check_sizes("PolicyOptimizer", dim=dim, history=history, hidden_size=hidden_size)
        for name, value in (("floor", floor), ("scale", scale)):
            if not value > 0:
                raise ArgumentError(
                    f"`PolicyOptimizer({name}=...)` must be above 0. Got {name}={value}.",
                    argument=name,
                    given=value,
                )
        hkey, rkey = jr.split(key)
        features = history * (dim + 1)
        self.hidden = jr.normal(hkey, (hidden_size, features)) / math.sqrt(features)
        self.hidden_bias = jnp.zeros(hidden_size)
        self.readout = scale * jr.normal(rkey, (dim, hidden_size)) / math.sqrt(hidden_size)
        self.readout_bias = jnp.zeros(dim)
        self.history, self.floor = history, float(floor)

    @classmethod
    def make(
        cls,
        params: PyTree,
        history: int = 25,
        hidden_size: int = 50,
        *,
        floor: float = 1e-3,
        scale: float = 0.01,
        key: PRNGKeyArray,
    ) -> "PolicyOptimizer":
        """One for params like these.

        **Arguments:**

        - `params`: of the objectives, or their shapes.
        - `history`, `hidden_size`, `floor`, `scale`, `key`: as above.
        """
        dim = sum(leaf.size for leaf in jax.tree.leaves(params))
        return cls(dim, history, hidden_size, floor=floor, scale=scale, key=key)

    def wants(self) -> frozenset[str]:
        return frozenset({"value"})

    def init(self, params: Params) -> PolicyState:
        dim, dtype = self.readout_bias.shape[0], wide_dtype_of(tree_dtype(params))
        found = sum(leaf.size for leaf in jax.tree.leaves(params))
        if found != dim:
            raise ArgumentError(
                f"`PolicyOptimizer(dim={dim})` is for functions of so many coordinates. The params have "
                f"{found}.",
                argument="dim",
                given=dim,
            )
        losses, grads = jnp.zeros(self.history, dtype), jnp.zeros((self.history, dim), dtype)
        return PolicyState(losses, grads, jnp.zeros((), jnp.int32))

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, PolicyState]:
        del params, key
        if value is None:
            raise ArgumentError(
                "`PolicyOptimizer.update(value=...)` needs the loss at the params. Got None.",
                argument="value",
                given=None,
            )
        dtype = state.losses.dtype
        value = value.astype(dtype)
        known = jnp.arange(self.history) < state.count
        larger = jnp.maximum(jnp.maximum(jnp.abs(value), jnp.abs(state.losses)), self.floor)
        change = (value - state.losses) / larger
        newest = ravel_wide(grads).astype(dtype)
        seen = jnp.concatenate([newest[None], state.grads[:-1]])
        features = jnp.concatenate([jnp.where(known, change, 0), seen.ravel()])
        hidden = jax.nn.softplus(self.hidden @ features + self.hidden_bias)
        step = self.readout @ hidden + self.readout_bias
        losses = jnp.concatenate([value[None], state.losses[:-1]])
        return unravel_like(step, grads), PolicyState(losses, seen, state.count + 1)
