from typing import Any

import jax
import jax.random as jr
import numpy as np
import pytest

import l2o_eqx as l2o
from l2o_eqx.objectives import (
    HELD_OUT_ACTIVATIONS,
    MNIST,
    AbstractObjectiveFamily,
    FromModel,
    Quadratic,
    Rescaled,
    Scaled,
    params_shapes,
)

EVERYWHERE = {
    "as trained",
    "horizon × 3",
    "horizon × 10",
    "loss × 0.001",
    "loss × 1000",
    "params × 0.1",
    "params × 10",
    "params × 0.05 to 20",
}


def _widths(family):
    return [leaf.shape for leaf in jax.tree.leaves(params_shapes(family)) if leaf.ndim == 2]


def test_variations_of_quadratics():
    found = l2o.variations(Quadratic(3, squared=False, theta_std=0.5))
    dims = {"dimension × ½": 2, "dimension × 2": 6, "dimension × 4": 12}
    assert found.keys() == EVERYWHERE | dims.keys() | {"other family: mnist"}
    for name, dim in dims.items():
        assert found[name].family == Quadratic(dim, squared=False, theta_std=0.5)
    assert [found[f"horizon × {n}"].horizon for n in (3, 10)] == [3, 10]
    assert found["as trained"] == (Quadratic(3, squared=False, theta_std=0.5), 1.0, 1.0, 1.0)
    assert isinstance(found["other family: mnist"].family, FromModel)
    # There is no half of one dimension.
    assert "dimension × ½" not in l2o.variations(Quadratic(1))


def test_variations_of_networks():
    family = MNIST((3, 5), ("tanh", "relu"), 4, data="embedded")
    found: dict[str, Any] = {name: one.family for name, one in l2o.variations(family).items()}
    assert _widths(found["width × ½"]) == [(2, 784), (3, 2), (10, 3)]
    assert _widths(found["width × 2"]) == [(6, 784), (10, 6), (10, 10)]
    assert _widths(found["width × 4"]) == [(12, 784), (20, 12), (10, 20)]
    assert _widths(found["depth + 1"]) == [(3, 784), (5, 3), (5, 5), (10, 5)]
    activations = {name.split()[1]: one for name, one in found.items() if name.startswith("activation")}
    assert activations.keys() == {"sigmoid", "leaky_relu", "gelu"}
    model = activations["gelu"].make_model(jr.key(0))
    assert model.activation is HELD_OUT_ACTIVATIONS["gelu"]
    assert all(one.data[0] is family.data[0] for one in activations.values())
    assert found["other family: quadratic"] == Quadratic()


def test_variations_of_convolutional_networks():
    found = MNIST((), conv_channels=(2,), batch_size=4, data="embedded").variations()
    shapes = [leaf.shape for leaf in jax.tree.leaves(params_shapes(found["width × 2"])) if leaf.ndim > 3]
    deeper = [leaf.shape for leaf in jax.tree.leaves(params_shapes(found["depth + 1"])) if leaf.ndim > 3]
    assert shapes == [(4, 1, 3, 3)] and deeper == [(2, 1, 3, 3), (2, 2, 3, 3)]


def test_other_families_vary_in_horizon_and_scale_alone_unless_they_say_more():
    class Own(AbstractObjectiveFamily):
        def sample(self, key):
            return Quadratic(2).sample(key)

    class Larger(Own):
        def variations(self):
            return {"larger": Quadratic(5)}

    assert l2o.variations(Own()).keys() == EVERYWHERE
    assert l2o.variations(Larger())["larger"].family == Quadratic(5)
    scaled = l2o.variations(Scaled(Quadratic(2)))["dimension × 2"].family
    assert scaled == Scaled(Quadratic(4))
    rescaled = l2o.variations(Rescaled(Quadratic(2), 2.0))
    assert rescaled["dimension × 2"].family == Rescaled(Quadratic(4), 2.0)
    assert "other family: mnist" in rescaled


def test_rescaled_objectives_are_the_same_draws(getkey):
    key, step = getkey(), 0
    one = Quadratic(3).sample(key)
    other = Rescaled(Quadratic(3), loss=1e3, params=0.1).sample(key)
    start, scaled = one.init(key), other.init(key)
    np.testing.assert_allclose(scaled, 0.1 * start, rtol=1e-6)
    loss = one.loss(start, step, key)
    np.testing.assert_allclose(other.loss(scaled, step, key), 1e3 * loss, rtol=1e-5)
    with pytest.raises(ValueError, match="above 0"):
        Rescaled(Quadratic(3), loss=0.0)
