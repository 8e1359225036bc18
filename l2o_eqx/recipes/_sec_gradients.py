"""Section 5.3.1: how large the gradients of a network are, layer by layer."""

from collections.abc import Mapping
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

from ..objectives import FromModel
from ..optimizers import FromOptax
from ._figure import Figure, PanelResults
from ._setup import Setup
from ._verdicts import Verdict, combine, judge_median

_UNTRAINED, _TRAINED = "untrained", "after 100 steps of Adam"
_STEPS = 100


def gradients(setup: Setup) -> Figure:
    """Sizes of a network's gradients, before training and within."""
    family = setup.network().family
    assert isinstance(family, FromModel)

    def extra(seed: int) -> dict[str, Any]:
        return gradient_sizes(family, num_networks=5 if setup.quick else 20, key=jr.key(seed))

    def judge(results: PanelResults, extra: Mapping[str, Any]) -> list[Verdict]:
        del results
        sizes, rare = [], []
        for stage in (_UNTRAINED, _TRAINED):
            found = {name: np.asarray(values) for name, values in extra[stage].items()}
            biases, layers = found["output_bias"] / found["other"], found["hidden"] / found["output"]
            mean = f"mean |∇| {stage}, "
            sizes += [
                judge_median(12, biases, f"{mean}output layer's biases / all other weights", at_least=2.0),
                judge_median(12, layers, f"{mean}hidden layer / output layer", at_most=1.0),
            ]
            rare += [
                judge_median(13, found[name], f"share below e⁻¹⁰ {stage}, {what}", at_most=0.05)
                for name, what in (("small", "all entries"), ("small_not_zero", "those not exactly zero"))
            ]
        return [combine(12, sizes), combine(13, rare)]

    return Figure(
        "Sizes of gradients",
        "5.3.1",
        [],
        (12, 13),
        judge,
        "Gradients of one minibatch. Much larger means twice as large, rare means at most 5 %. Pixels that "
        "are black in the whole minibatch have weights with a gradient of exactly zero; means of |∇| leave "
        "these out.",
        extra,
    )


def gradient_sizes(
    family: FromModel, *, num_networks: int, key: PRNGKeyArray
) -> dict[str, dict[str, list[float]]]:
    """Sizes of the gradients of networks, on a minibatch each, before training and after 100 steps of Adam.

    **Arguments:**

    - `family`: networks of several dense layers, as `MNIST` makes them.
    - `num_networks`: how many are drawn.
    - `key`: draws them.

    **Returns:** by stage and name, one number per network. Means of |∇| over entries that are not exactly
    zero: `output_bias` of the output layer's biases, `other` of all others, `hidden` of the first layer,
    `output` of the last. Shares: `small` and `zero` of all entries, those below e⁻¹⁰ and those exactly zero;
    `small_not_zero` of the rest, those below e⁻¹⁰.
    """
    found = _gradient_sizes(family, jr.split(key, num_networks))
    return {
        stage: {name: np.asarray(values, np.float64).tolist() for name, values in sizes.items()}
        for stage, sizes in found.items()
    }


@eqx.filter_jit
def _gradient_sizes(family, keys):
    optimizer = FromOptax(optax.adam(1e-3))

    def one(key):
        okey, ikey, lkey = jr.split(key, 3)
        objective = family.sample(okey)
        params = objective.init(ikey)
        trained = l2o.unroll(optimizer, objective, params, optimizer.init(params), _STEPS, key=lkey).params
        return {
            stage: _sizes(jax.grad(objective.loss)(p, step, lkey))
            for stage, p, step in ((_UNTRAINED, params, 0), (_TRAINED, trained, _STEPS))
        }

    return lax.map(one, keys)


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
