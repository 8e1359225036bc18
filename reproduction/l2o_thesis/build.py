"""From settings to the parts of `l2o_eqx`: all families, optimizers and strategies are made here."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from l2o_eqx.data import Digits
from l2o_eqx.estimators import FIRST_ORDER, Auto, Backprop, Recorded, Replay
from l2o_eqx.objectives import (
    MLP,
    MNIST,
    AbstractObjectiveFamily,
    FromModel,
    Quadratic,
    digit_cross_entropy,
    params_shapes,
)
from l2o_eqx.optimizers import AbstractLayout, AbstractOptimizer, CoordinatewiseLSTM, PerLayer
from l2o_eqx.preprocessors import AbstractPreprocessor, Identity, LogAndSign, SignedLog
from l2o_eqx.strategies import AbstractUpdateStrategy, EveryStep, EveryWindow
from l2o_eqx.weightings import AbstractWeighting, Constant, Linear

from .figures import Spec

MakeOptimizer = Callable[[PRNGKeyArray], AbstractOptimizer]

_PREPROCESSORS: dict[str, Callable[[], AbstractPreprocessor]] = {
    "none": Identity,
    "rho": SignedLog,
    "two": LogAndSign,
}
_HELD_OUT = 1000

ORDERS: dict[str, dict[str, Any]] = {
    "first": {"estimator": Replay()},
    "second": {"estimator": Backprop(())},
}
"""How `l2o_eqx.meta_gradient` is asked for the two orders of the meta-gradient, without an eye on speed."""


def make_family(spec: Spec, digits: Digits, *, of_test: bool = False) -> AbstractObjectiveFamily:
    """What to train on, or with `of_test` what to test on, where that is something else."""
    if "dim" in spec:
        dim = spec.get("test_dim", spec["dim"]) if of_test else spec["dim"]
        return Quadratic(dim, squared=spec["squared"], theta_std=spec["theta_std"])
    family = MNIST(
        tuple(spec["hidden"]),
        spec["activation"],
        spec["batch_size"],
        conv_channels=tuple(spec.get("conv_channels", ())),
        output=spec["output"],
        digits=digits,
    )
    return dataclasses.replace(family, data=_shared_data(digits))


# All families of a process share what is on the device.
_DATA: dict[str, PyTree[Array]] = {}


def _shared_data(digits: Digits) -> PyTree[Array]:
    if digits.sha256 not in _DATA:
        _DATA[digits.sha256] = MNIST((1,), digits=digits).data
    return _DATA[digits.sha256]


def make_optimizer(spec: Spec, family: AbstractObjectiveFamily) -> MakeOptimizer:
    """From a key to the thesis's LSTM of two layers of 20 units, or to one per layer of the network."""
    preprocessor, rate = _PREPROCESSORS[spec["preprocessor"]](), spec["learning_rate"]
    readout = spec.get("readout", "sum")

    def one(key: PRNGKeyArray) -> CoordinatewiseLSTM:
        return CoordinatewiseLSTM((20, 20), preprocessor, rate, linear_readout=readout != "sum", key=key)

    if readout == "dense with bias":
        return lambda key: BiasedReadout(one(key), jnp.zeros(()))
    if spec.get("per_layer"):
        assert isinstance(family, FromModel)
        shapes = params_shapes(family)
        return lambda key: PerLayer.make(one, shapes, key=key)
    return one


def make_strategy(spec: Spec) -> AbstractUpdateStrategy:
    """Every `window` steps (sec. 5.5.2), or with `every_step` at every one of them (sec. 5.5.3)."""
    # In the released code nothing is backpropagated through the state.
    constant = spec.get("detach_state", False)
    estimator = Auto(FIRST_ORDER | {"state"} if constant else FIRST_ORDER)
    if "every_step" in spec:
        recorded = spec["every_step"] == "recorded"
        return EveryStep(spec["window"], Recorded(constant) if recorded else estimator)
    return EveryWindow(spec["window"], estimator)


def make_weighting(spec: Spec) -> AbstractWeighting:
    """Constant, or growing linearly with `linear_from`."""
    return Linear(first=spec["linear_from"]) if "linear_from" in spec else Constant()


class BiasedReadout(AbstractOptimizer):
    """An LSTM whose trained read-out has a bias: all coordinates move by α·bias at every step.

    **Arguments:**

    - `lstm`: has a dense read-out without a bias, `linear_readout=True`, and α.
    - `bias`: a meta-parameter; zero before training, as in Keras.

    Reference: thesis sec. 5, footnote 4.
    """

    lstm: CoordinatewiseLSTM
    bias: Float[Array, ""]

    def layout(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> AbstractLayout:
        return self.lstm.layout(shapes)

    def init(self, params: PyTree) -> PyTree:
        return self.lstm.init(params)

    def update(
        self, grads: PyTree, state: PyTree, params: PyTree | None, *, value: Any = None, key: Any = None
    ) -> tuple[PyTree, PyTree]:
        updates, state = self.lstm.update(grads, state, params)
        drift = self.lstm.learning_rate * self.bias
        return jax.tree.map(lambda u: u + drift.astype(u.dtype), updates), state


class NetworkProbe(eqx.Module):
    """What the weights of a trained classifier are like, measured on digits it was not trained on.

    Called with an objective of `MNIST` and its params, it gives `held_out_loss`, `accuracy`, `entropy` (of
    the outputs, in nats), and for an `MLP` of the last hidden layer `dead_units`, the share of units that
    give the same value to all digits, and `hidden_size`, the root mean square of their values.
    """

    images: UInt8[Array, "digits 28 28"]
    labels: UInt8[Array, " digits"]

    def __init__(self, digits: Digits):
        self.images = jnp.asarray(np.asarray(digits.test_images[:_HELD_OUT]))
        self.labels = jnp.asarray(np.asarray(digits.test_labels[:_HELD_OUT]))

    def __call__(self, objective: Any, params: PyTree) -> dict[str, Float[Array, ""]]:
        model = objective.model(params)
        inputs = self.images.reshape(len(self.images), -1).astype(jnp.float32) / 255.0
        logits = jax.vmap(model)(inputs)
        log_probabilities = jax.nn.log_softmax(logits)
        found = {
            "held_out_loss": digit_cross_entropy(model, (self.images, self.labels)),
            "accuracy": jnp.mean(jnp.argmax(logits, axis=1) == self.labels),
            "entropy": jnp.mean(jnp.sum(jsp.entr(jnp.exp(log_probabilities)), axis=1)),
        }
        if isinstance(model, MLP):
            for layer in model.layers[:-1]:
                inputs = model.activation(jax.vmap(layer)(inputs))
            found["dead_units"] = jnp.mean(jnp.ptp(inputs, axis=0) == 0)
            found["hidden_size"] = jnp.sqrt(jnp.mean(jnp.square(inputs)))
        return found


@functools.cache
def rho(largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of the preprocessing ρ of eq. 5.2 between −`largest` and `largest`."""
    # Dense about zero, where ρ jumps.
    x = (largest * np.sinh(np.linspace(-12, 12, 4001)) / np.sinh(12)).astype(np.float32)
    return x, np.asarray(SignedLog()(jnp.asarray(x), None)[0])[:, 0]
