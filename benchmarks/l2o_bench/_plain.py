"""What one would write without this package: `jax.grad` through a `lax.scan`, vmapped over everything."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

import l2o_eqx as l2o
from l2o_eqx.optimizers import AbstractOptimizer, CoordinatewiseLSTM
from l2o_eqx.strategies import OncePerSuperEpoch

from ._cases import WINDOW, Case


class VmappedLSTM(AbstractOptimizer):
    """The same optimizer with Equinox's own cells, vmapped over the coordinates."""

    like: CoordinatewiseLSTM

    def init(self, params: PyTree) -> PyTree:
        size = sum(x.size for x in jax.tree.leaves(params))
        return [(jnp.zeros((size, c.hidden_size)), jnp.zeros((size, c.hidden_size))) for c in self.like.cells]

    def update(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree | None,
        *,
        value: Array | None = None,
        key: Array | None = None,
    ) -> tuple[PyTree, PyTree]:
        del params
        flat, unravel = ravel_pytree(grads)
        assert self.like.preprocessor is not None
        hidden, _ = self.like.preprocessor(flat, None)
        next_state = []
        for cell, before in zip(self.like.cells, state, strict=True):
            hidden, memory = jax.vmap(cell)(hidden, before)
            next_state.append((hidden, memory))
        return unravel(self.like.learning_rate * jnp.sum(hidden, axis=1)), next_state


def make(case: Case, *, checkpoint: bool = False, our_cell: bool = False) -> tuple[Callable[[], Any], int]:
    """A function that trains for one super epoch, and the bytes of temporaries of its program.

    **Arguments:**

    - `case`: what to train on, with an update per window or per super epoch.
    - `checkpoint`: whether each inner step is computed again for its derivative (`jax.checkpoint`).
    - `our_cell`: whether the optimizer is the package's own instead of `VmappedLSTM`, which leaves only the
        engine to compare.
    """
    window = case.num_steps if isinstance(case.strategy, OncePerSuperEpoch) else WINDOW
    family, meta_optimizer = case.family(), l2o.default_meta_optimizer()
    optimizer = case.optimizer(jr.key(0))
    optimizer = optimizer if our_cell else VmappedLSTM(optimizer)
    arrays, static = eqx.partition(optimizer, eqx.is_inexact_array)

    def unroll(optimizer, objective, params, state, start, key):
        def one_step(carry, t):
            params, state = carry
            loss, grads = jax.value_and_grad(objective.loss)(params, t, key)
            updates, state = optimizer.update(lax.stop_gradient(grads), state, params)
            return (eqx.apply_updates(params, updates), state), loss

        step = jax.checkpoint(one_step) if checkpoint else one_step
        carry, losses = lax.scan(step, (params, state), start + jnp.arange(window))
        return jnp.sum(losses), carry

    def super_epoch(arrays, meta_state, key):
        okey, ikey, lkey = (jr.split(k, case.num_objectives) for k in jr.split(key, 3))
        objectives = l2o.objectives.sample_objectives(family, okey)
        params = jax.vmap(lambda own, k: objectives.select(own).init(k))(objectives.own, ikey)
        state = jax.vmap(eqx.combine(arrays, static).init)(params)

        def meta_loss(arrays, params, state, start):
            optimizer = eqx.combine(arrays, static)

            def one(own, *rest):
                return unroll(optimizer, objectives.select(own), *rest)

            losses, carry = jax.vmap(one, in_axes=(0, 0, 0, None, 0))(
                objectives.own, params, state, start, lkey
            )
            return jnp.mean(losses), carry

        def one_window(carry, start):
            arrays, meta_state, params, state = carry
            (loss, (params, state)), grads = jax.value_and_grad(meta_loss, has_aux=True)(
                arrays, params, state, start
            )
            updates, meta_state = meta_optimizer.update(grads, meta_state, arrays)
            return (optax.apply_updates(arrays, updates), meta_state, params, state), loss

        starts = window * jnp.arange(case.num_steps // window)
        carry, losses = lax.scan(one_window, (arrays, meta_state, params, state), starts)
        return carry[0], carry[1], losses

    def run_all(arrays, meta_state, key):
        if case.restarts is None:
            return super_epoch(arrays, meta_state, key)
        return jax.vmap(super_epoch)(arrays, meta_state, jr.split(key, case.restarts))

    init = meta_optimizer.init if case.restarts is None else jax.vmap(meta_optimizer.init)
    meta_state, key = init(arrays), jr.key(1)
    program = jax.jit(run_all).lower(arrays, meta_state, key).compile()
    memory = program.memory_analysis()

    def run() -> Any:
        nonlocal arrays, meta_state
        arrays, meta_state, losses = program(arrays, meta_state, key)
        return jax.block_until_ready(losses)

    return run, int(memory.temp_size_in_bytes) if memory else 0
