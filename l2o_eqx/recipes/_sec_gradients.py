"""Section 5.3.1: how large the gradients of a network are, layer by layer, and those of the quadratic."""

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

from ..objectives import AbstractObjectiveFamily, FromModel
from ..optimizers import FromOptax
from ._figure import Figure, PanelResults
from ._setup import Setup
from ._verdicts import Verdict, combine, judge_median

_UNTRAINED, _TRAINED = "untrained", "after 100 steps of Adam"
_QUADRATIC = "quadratic, share above 1"
_STEPS = 100
# Of gradients that are below e⁻¹⁰ or above 1 in size: up to this share they are rare.
_RARE = 0.05


def gradients(setup: Setup) -> Figure:
    """Sizes of gradients of a network and of the quadratic, before training and within."""
    family, quadratic = setup.network().family, setup.quadratic().family
    assert isinstance(family, FromModel)
    num = 5 if setup.quick else 20

    def extra(seed: int) -> dict[str, Any]:
        key = jr.key(seed)
        sizes = gradient_sizes(family, num_networks=num, key=key)
        return {**sizes, _QUADRATIC: shares_above_one(quadratic, num_objectives=num, key=key)}

    def judge(results: PanelResults, extra: Mapping[str, Any]) -> list[Verdict]:
        del results
        sizes, rare, large = [], [], []
        for stage in (_UNTRAINED, _TRAINED):
            found = {name: np.asarray(values) for name, values in extra[stage].items()}
            biases, layers = found["output_bias"] / found["other"], found["hidden"] / found["output"]
            mean = f"mean |∇| {stage}, "
            sizes += [
                judge_median(12, biases, f"{mean}output layer's biases / all other weights", at_least=2.0),
                judge_median(12, layers, f"{mean}hidden layer / output layer", at_most=1.0),
            ]
            rare += [
                judge_median(13, found[name], f"share below e⁻¹⁰ {stage}, {what}", at_most=_RARE)
                for name, what in (("small", "all entries"), ("small_not_zero", "those not exactly zero"))
            ]
            above = np.asarray(extra[_QUADRATIC][stage])
            large.append(
                judge_median(10, above, f"share of |∇| > 1 on the quadratic, {stage}", at_least=_RARE)
            )
        return [combine(10, large), combine(12, sizes), combine(13, rare)]

    return Figure(
        "Sizes of gradients",
        "5.3.1",
        [],
        (10, 12, 13),
        judge,
        "On networks, gradients of one minibatch. Much larger means twice as large, rare means at most 5 %, "
        "and too many above 1 in size more than that; figure 10 judges whether ρ fails because of them. "
        "Pixels that are black in the whole minibatch have weights with a gradient of exactly zero; means of "
        "|∇| leave these out.",
        extra,
        4.0 if setup.quick else 6.0,
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
    found = _at_both_stages(family, jr.split(key, num_networks), _sizes)
    return {
        stage: {name: np.asarray(values, np.float64).tolist() for name, values in sizes.items()}
        for stage, sizes in found.items()
    }


def shares_above_one(
    family: AbstractObjectiveFamily, *, num_objectives: int, key: PRNGKeyArray
) -> dict[str, list[float]]:
    """Shares of the entries of gradients that are larger than 1 in size, where eq. 5.2 is not one to one.

    **Arguments:**

    - `family`: of the objectives.
    - `num_objectives`: how many are drawn.
    - `key`: draws them.

    **Returns:** one number per objective, where it begins and after 100 steps of Adam.
    """
    found = _at_both_stages(family, jr.split(key, num_objectives), lambda g: jnp.mean(_magnitudes(g) > 1))
    return {stage: np.asarray(shares, np.float64).tolist() for stage, shares in found.items()}


@eqx.filter_jit
def _at_both_stages(family, keys, measure):
    optimizer = FromOptax(optax.adam(1e-3))

    def one(key):
        okey, ikey, lkey = jr.split(key, 3)
        objective = family.sample(okey)
        params = objective.init(ikey)
        trained = l2o.unroll(optimizer, objective, params, optimizer.init(params), _STEPS, key=lkey).params
        return {
            stage: measure(jax.grad(objective.loss)(p, step, lkey))
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
