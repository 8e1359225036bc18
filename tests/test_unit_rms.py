import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import LEARNED, assert_trees_close

import l2o_eqx
from l2o_eqx.optimizers import FromOptax, UnitRMS

PARAMS = {"w": jnp.full((3, 2), 0.5), "b": jnp.ones(3), "none": jnp.zeros((0, 2))}
SGD = FromOptax(optax.sgd(0.3))


def first_update(optimizer, grads, params=PARAMS):
    return optimizer.update(grads, optimizer.init(params), params)[0]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_tensor_moves_by_the_rate_downhill(dtype, scale, getkey):
    """Half precision rounds each entry, the root mean square is taken in float32."""
    scale = np.clip(scale, 1e-4, 1e4) if dtype == "float16" else scale
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    grads = jax.tree.map(lambda x: (scale * jr.normal(getkey(), x.shape)).astype(dtype), PARAMS)
    updates = first_update(UnitRMS(SGD, 0.02), grads, params)
    assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
    for name in ("w", "b"):
        update, grad = (np.asarray(x[name], np.float64) for x in (updates, grads))
        rms = np.sqrt(np.mean(grad**2))
        np.testing.assert_allclose(update, -0.02 * grad / rms, rtol=1e-5 if dtype == "float32" else 2e-2)


def test_zero_directions_stay_zero_and_have_a_derivative(getkey):
    def total(grads):
        return sum(map(jnp.sum, jax.tree.leaves(first_update(UnitRMS(SGD, 0.02), grads))))

    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    assert total(zeros) == 0
    for x in jax.tree.leaves(jax.grad(total)(zeros)):
        assert np.all(np.isfinite(x))


@pytest.mark.parametrize("name", ["lstm_adam_like", "per_layer", "adam_mlp"])
def test_rms_output_in_a_chain_is_the_wrapper(name, getkey):
    """Rate, schedule and weight decay are optax's there and the wrapper's here; five steps, all arrays."""
    params = {"layers": ({"w": jr.normal(getkey(), (30, 19)), "b": jr.normal(getkey(), (30,))},)}
    schedule = optax.cosine_decay_schedule(0.1, 5)
    inner = LEARNED[name](getkey())
    chain = optax.chain(
        l2o_eqx.as_optax(inner, 5, output="rms"),
        optax.add_decayed_weights(0.3),
        optax.scale_by_learning_rate(schedule),
    )
    wrapper = UnitRMS(inner, schedule, 0.3)
    chain_state, wrapper_state = chain.init(params), wrapper.init_for(params, 5)
    update = jax.jit(chain.update)
    for _ in range(5):
        grads = jax.tree.map(lambda x: jr.normal(jr.key(1), x.shape) + x, params)
        expected, chain_state = update(grads, chain_state, params)
        updates, wrapper_state = wrapper.update(grads, wrapper_state, params)
        assert_trees_close(updates, expected, rtol=1e-3, atol=1e-4)
        params = optax.apply_updates(params, updates)


def test_rate_is_no_meta_parameter_and_the_horizon_gets_through(getkey):
    inner = LEARNED["adam_mlp"](getkey())
    wrapper = UnitRMS(inner, 0.1)
    assert l2o_eqx.count_meta_parameters(wrapper) == l2o_eqx.count_meta_parameters(inner)
    assert wrapper.init_for(PARAMS, 7).inner.horizon == 7
    assert wrapper.parts() == inner.parts()


def test_errors_name_the_argument(getkey):
    with pytest.raises(ValueError, match="weight_decay=-1.0"):
        UnitRMS(SGD, weight_decay=-1.0)
    with pytest.raises(ValueError, match="hand them to `update`"):
        decaying = UnitRMS(SGD, weight_decay=0.1)
        decaying.update(PARAMS, decaying.init(PARAMS), None)
    with pytest.raises(Exception, match="output"):
        l2o_eqx.as_optax(SGD, output="norm")  # pyright: ignore[reportArgumentType]
