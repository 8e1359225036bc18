"""Meta-optimizers: optax transformations that move the meta-parameters, and parts to make them of.

Any optax transformation is a meta-optimizer. To clip meta-gradients, `optax.clip` and its like will do.
"""

import functools
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from ._errors import ArgumentError
from ._misc import tree_norm
from ._retreat import retreat as retreat
from .optimizers import AbstractOptimizer

Normalization = Literal["tensor", "part", "global", "clip", "none"]


@functools.cache
def default_meta_optimizer(
    learning_rate: float = 1e-3,
    *,
    normalization: Normalization = "tensor",
    norm_floor: float = 0.0,
    clip_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-7,
    warmup_updates: int = 0,
    total_updates: int | None = None,
    final_share: float = 0.0,
    drop_norm: float | None = None,
    retreat_after: int = 20,
) -> optax.GradientTransformation:
    """Unit norm of every weight tensor, then Adam, as in the thesis (with Keras's ε = 1e-7).

    A meta-gradient that is not finite is left out instead of destroying the optimizer. Calls with the same
    arguments return the same object, which lets trainings share one compiled program.

    **Arguments:**

    - `learning_rate`: Adam's; with a schedule, its largest.
    - `normalization`: unit norm per `"tensor"`, `"part"` or `"global"` (see `unit_norm`), `"clip"` for
        `optax.clip_by_global_norm`, or `"none"`.
    - `norm_floor`: smallest norm that unit norm divides by; 1e-6 in the thesis's released code.
    - `clip_norm`: largest global norm that `"clip"` lets through.
    - `b1`, `b2`, `eps`: Adam's decay rates and the number added to its root.
    - `warmup_updates`: meta-updates in which the rate rises to its largest value, in equal steps from
        `learning_rate / (warmup_updates + 1)` on.
    - `total_updates`: meta-updates in all, `super_epochs * strategy.num_updates(num_steps)`, over which the
        rate then falls along a cosine. If `None`, it stays where it is.
    - `final_share`: the share of `learning_rate` that the cosine ends at.
    - `drop_norm`: a meta-gradient of at least this global norm counts as zero, see `drop_spikes`.
    - `retreat_after`: so many meta-gradients in a row that are not finite take back the last update and halve
        those that follow, see `retreat`.

    **Raises:** `ValueError` for an unknown normalization, a warm-up that is as long as the training, a
    negative one, a `final_share` outside of 0 to 1, a `drop_norm` that is not positive, or a `retreat_after`
    below 1.

    Reference: thesis sec. 5.3.2; Loshchilov & Hutter 2017, "SGDR" (arXiv:1608.03983), for the cosine.
    """
    before: dict[str, Callable[[], optax.GradientTransformation]] = {
        "none": optax.identity,
        "clip": lambda: optax.clip_by_global_norm(clip_norm),
        **{per: functools.partial(unit_norm, per, eps=norm_floor) for per in ("tensor", "part", "global")},
    }
    if normalization not in before:
        raise ArgumentError(
            f"`default_meta_optimizer(normalization={normalization!r})`: the normalizations are "
            f"{', '.join(map(repr, before))}.",
            argument="normalization",
            given=normalization,
            possible=before,
        )
    rate = _schedule(learning_rate, warmup_updates, total_updates, final_share)
    chain = optax.chain(before[normalization](), optax.adam(rate, b1, b2, eps))
    if drop_norm is not None:
        chain = optax.chain(drop_spikes(drop_norm), chain)
    return retreat(chain, retreat_after)


def _schedule(
    peak: float, warmup_updates: int, total_updates: int | None, final_share: float
) -> float | optax.Schedule:
    if warmup_updates < 0 or (total_updates is not None and total_updates <= warmup_updates):
        raise ArgumentError(
            "`default_meta_optimizer(warmup_updates=...)` must be at least 0 and less than `total_updates`. "
            f"Got warmup_updates={warmup_updates}, total_updates={total_updates}.",
            argument="warmup_updates",
            given=warmup_updates,
        )
    if not 0 <= final_share <= 1:
        raise ArgumentError(
            "`default_meta_optimizer(final_share=...)` is a share of the learning rate, from 0 to 1. "
            f"Got final_share={final_share}.",
            argument="final_share",
            given=final_share,
        )
    if total_updates is None:
        after = optax.constant_schedule(peak) if warmup_updates else peak
    else:
        after = optax.cosine_decay_schedule(peak, total_updates - warmup_updates, final_share)
    if not warmup_updates or not callable(after):
        return after
    # From the first step of the stairs and not from zero, which would waste an update.
    rise = optax.linear_schedule(peak / (warmup_updates + 1), peak, warmup_updates)
    return optax.join_schedules([rise, after], [warmup_updates])


def drop_spikes(largest_norm: float) -> optax.GradientTransformation:
    """Replaces a meta-gradient of at least this global norm by zero.

    Meta-gradients through long windows come in spikes, of up to 10^15 times their usual norm, whose
    direction says nothing. Clipped or scaled to norm one they would count as much as any other.

    **Arguments:**

    - `largest_norm`: norms from here on are spikes.

    **Raises:** `ValueError` unless it is positive.
    """
    if not largest_norm > 0:
        raise ArgumentError(
            f"`drop_spikes(largest_norm=...)` must be positive. Got largest_norm={largest_norm}.",
            argument="largest_norm",
            given=largest_norm,
        )

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        # A norm whose square overflows is infinite here, and a spike.
        spike = optax.tree.norm(updates) >= largest_norm
        return jax.tree.map(lambda u: jnp.where(spike, jnp.zeros_like(u), u), updates), state

    return optax.GradientTransformation(init, update)


def unit_norm(
    per: Literal["tensor", "part", "global"] = "tensor", *, eps: float = 0.0
) -> optax.GradientTransformation:
    """Scales meta-gradients to Euclidean norm one.

    Meta-gradients are tiny, above all for networks; this makes their scale irrelevant.

    **Arguments:**

    - `per`: every weight `"tensor"` by itself, as the thesis's code does, all tensors of a `"part"` of the
        optimizer together (see `AbstractOptimizer.parts`), so that the meta-gradient of one layer's
        optimizer is not small beside another's, or all there are, `"global"`.
    - `eps`: smallest norm to divide by; the released code has 1e-6. A zero gradient stays zero.

    **Raises:** `ValueError` for an unknown `per`.

    Reference: thesis sec. 5.3.2.
    """
    if per not in ("tensor", "part", "global"):
        raise ArgumentError(
            f"`unit_norm(per={per!r})`: a norm is taken per 'tensor', per 'part' or 'global'.",
            argument="per",
            given=per,
            possible=("tensor", "part", "global"),
        )

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params

        if per == "tensor":
            return jax.tree.map(lambda u: _scaled(u, eps), updates), state
        if per == "part" and isinstance(updates, AbstractOptimizer) and len(updates.parts()) > 1:
            scaled = [_scaled(part, eps) for part in updates.parts().values()]
            # Leaf by leaf: a part may be put together of several fields.
            return eqx.tree_at(_leaves_of_parts, updates, jax.tree.leaves(scaled)), state
        return _scaled(updates, eps), state

    return optax.GradientTransformation(init, update)


def _leaves_of_parts(optimizer):
    return jax.tree.leaves(list(optimizer.parts().values()))


def _scaled(tree, eps):
    norm = jnp.maximum(tree_norm(tree), eps)
    norm = jnp.where(norm > 0, norm, 1.0)
    return jax.tree.map(lambda u: u / norm.astype(u.dtype), tree)
