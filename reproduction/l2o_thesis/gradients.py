"""Section 5.3.1: how large the gradients of a network are, layer by layer, and those of the quadratic."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import l2o_eqx as l2o
from l2o_eqx.objectives import AbstractObjectiveFamily
from l2o_eqx.optimizers import FromOptax

from .experiment import Experiment

_STEPS = 100


def gradients(experiment: Callable[..., Experiment], quick: bool, seed: int) -> dict[str, Any]:
    """Sizes of gradients of networks and quadratics, before training and after 100 steps of Adam.

    **Returns:** for `untrained` and `trained`, one number per network: means of |∇| over entries that are not
    exactly zero, `output_bias` of the output layer's biases, `other` of all others, `hidden` of the first
    layer, `output` of the last; and shares, `small` and `zero` of all entries, those below e⁻¹⁰ and those
    exactly zero, `small_not_zero` of the rest, those below e⁻¹⁰. And one per quadratic: `above_one`, the
    share of entries that are larger than 1 in size, where eq. 5.2 is not one to one.
    """
    num, key = 5 if quick else 20, jr.key(seed)
    found = at_both_stages(experiment("network").family, num, key, _sizes)
    large = at_both_stages(experiment("quadratic").family, num, key, _above_one)
    return {stage: {**found[stage], **large[stage]} for stage in found}


def at_both_stages(
    family: AbstractObjectiveFamily, num: int, key: PRNGKeyArray, measure: Callable[[PyTree], Any]
) -> dict[str, dict[str, list[float]]]:
    """What `measure` gives of gradients, for each of `num` objectives, before training and after."""

    @eqx.filter_jit
    def both(family, keys):
        optimizer = FromOptax(optax.adam(1e-3))

        def one(key):
            okey, ikey, lkey = jr.split(key, 3)
            objective = family.sample(okey)
            params = objective.init(ikey)
            state = optimizer.init(params)
            trained = l2o.unroll(optimizer, objective, params, state, _STEPS, key=lkey).params
            return {
                stage: measure(jax.grad(objective.loss)(p, step, lkey))
                for stage, p, step in (("untrained", params, 0), ("trained", trained, _STEPS))
            }

        return lax.map(one, keys)

    found = both(family, jr.split(key, num))
    return {
        stage: {name: np.asarray(values, np.float64).tolist() for name, values in sizes.items()}
        for stage, sizes in found.items()
    }


def _above_one(grads: PyTree) -> dict[str, Float[Array, ""]]:
    return {"above_one": jnp.mean(_magnitudes(grads) > 1)}


def _sizes(grads: PyTree) -> dict[str, Float[Array, ""]]:
    first, *_, last = grads.layers
    others = eqx.tree_at(lambda g: g.layers[-1].bias, grads, None)
    everything = _magnitudes(grads)
    zero = everything == 0
    small = everything < jnp.exp(-10.0)
    return {
        "output_bias": _mean(_magnitudes(last.bias)),
        "other": _mean(_magnitudes(others)),
        "hidden": _mean(_magnitudes(first)),
        "output": _mean(_magnitudes(last)),
        "small": jnp.mean(small),
        "zero": jnp.mean(zero),
        "small_not_zero": jnp.sum(small & ~zero) / jnp.maximum(jnp.sum(~zero), 1),
    }


def _magnitudes(tree: PyTree) -> Float[Array, " entries"]:
    return jnp.concatenate([jnp.abs(x).ravel() for x in jax.tree.leaves(tree)])


def _mean(magnitudes: Float[Array, " entries"]) -> Float[Array, ""]:
    return jnp.sum(magnitudes) / jnp.maximum(jnp.sum(magnitudes > 0), 1)
