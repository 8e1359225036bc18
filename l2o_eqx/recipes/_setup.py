"""The thesis's two kinds of objective with its settings, at full scale or at a small one."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from ..data import Digits
from ..estimators import FIRST_ORDER, Auto, Recorded
from ..objectives import MLP, MNIST, FromModel, Quadratic, digit_cross_entropy, params_shapes
from ..optimizers import AbstractOptimizer, CoordinatewiseLSTM, PerLayer
from ..preprocessors import AbstractPreprocessor, Identity, LogSign
from ..strategies import EveryStep, EveryWindow
from ._experiment import Experiment

Scale = Literal["full", "quick"]
Source = Literal["figures", "text", "code"]

# On the quadratic there is a test objective for every restart to see, sixteen of them, and runs are cheap.
_QUADRATIC_TESTS = 16
_NETWORK_TESTS = 2
_HELD_OUT = 1000


@dataclasses.dataclass(frozen=True)
class Setup:
    """How large experiments are, and which reading of the thesis they follow.

    **Fields:**

    - `digits`: MNIST, or part of it.
    - `scale`: `"full"` is the thesis's; `"quick"` runs the same code on small sizes, for a look.
    - `source`: `"text"` follows the text; `"code"` the released code, as far as the report says;
        `"figures"` follows the text on the quadratic of the code, which the thesis's figures show.

    **Raises:** `ValueError` for an unknown scale or source.
    """

    digits: Digits
    scale: Scale = "full"
    source: Source = "figures"

    def __post_init__(self):
        for name, choices in (("scale", Scale), ("source", Source)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"`Setup({name}={getattr(self, name)!r})`: must be one of {', '.join(get_args(choices))}."
                )

    @property
    def quick(self) -> bool:
        return self.scale == "quick"

    def restarts(self, kind: Literal["quadratic", "network", "histogram"]) -> int:
        """How many restarts an experiment has: at full scale 100, of the long trainings of networks 10."""
        if self.quick:
            return 5 if kind == "quadratic" else 2
        return 10 if kind == "network" else 100

    def estimator(self) -> Auto:
        """That of the text, or of the released code, which does not backpropagate through the state."""
        return Auto(FIRST_ORDER | {"state"} if self.source == "code" else FIRST_ORDER)

    def every_window(self, window: int = 16, **settings: Any) -> EveryWindow:
        """The strategy of sec. 5.5.2; in the released code nothing is backpropagated through the state."""
        return EveryWindow(window, self.estimator(), **settings)

    def every_step(
        self, window: int = 16, gradient: Literal["replayed", "recorded"] = "replayed"
    ) -> EveryStep:
        """The strategy of sec. 5.5.3, with the state as in `every_window`."""
        detach_state = self.source == "code"
        recorded = gradient == "recorded"
        return EveryStep(window, Recorded(detach_state) if recorded else self.estimator())

    def quadratic(
        self,
        *,
        preprocessor: AbstractPreprocessor | None = None,
        learning_rate: float = 0.001,
        num_steps: int = 320,
        super_epochs: int = 25,
        **changes: Any,
    ) -> Experiment:
        """An optimizer for random quadratics of 16 dimensions (sec. 5.1.1); `changes` are fields."""

        def make_optimizer(key: PRNGKeyArray) -> AbstractOptimizer:
            return CoordinatewiseLSTM((20, 20), preprocessor or Identity(), learning_rate, key=key)

        as_text = self.source == "text"
        common = {
            "family": Quadratic(16, squared=as_text, theta_std=1.0 if as_text else 0.05),
            "make_optimizer": make_optimizer,
            "num_steps": num_steps,
            "super_epochs": min(super_epochs, 4) if self.quick else super_epochs,
            "strategy": self.every_window(),
            "test_steps": num_steps,
            "num_test_objectives": _QUADRATIC_TESTS,
        }
        return Experiment(**{**common, **self._released(), **changes})

    def network(
        self,
        activation: str = "sigmoid",
        *,
        preprocessor: AbstractPreprocessor | None = None,
        learning_rate: float = 0.01,
        per_layer: bool = False,
        num_steps: int = 375,
        super_epochs: int = 10,
        batch_size: int = 128,
        output: str = "softmax",
        **changes: Any,
    ) -> Experiment:
        """An optimizer for the 784-32-10 network on MNIST (sec. 5.1.2); `changes` are fields."""
        if self.quick:
            sizes, batch_size, num_steps = (4,), min(batch_size, 32), max(32, num_steps // 8)
            super_epochs = min(super_epochs, 2)
        else:
            sizes = (32,)
        family = self.mnist(sizes, activation, batch_size, output=output)
        make_optimizer = optimizer_maker(family, preprocessor or LogSign(), learning_rate, per_layer)
        common = {
            "family": family,
            "make_optimizer": make_optimizer,
            "num_steps": num_steps,
            "super_epochs": super_epochs,
            "strategy": self.every_window(),
            "test_steps": num_steps,
            "num_test_objectives": _NETWORK_TESTS,
            "measure": NetworkProbe(self.digits),
        }
        return Experiment(**{**common, **self._released(), **changes})

    def mnist(self, *args: Any, **kwargs: Any) -> FromModel:
        """`MNIST` on the digits of this setup, which all its families share."""
        family = MNIST(*args, **kwargs, digits=self.digits)
        return dataclasses.replace(family, data=self._data)

    @functools.cached_property
    def _data(self) -> PyTree[Array]:
        return MNIST((1,), digits=self.digits).data

    def short_network(self, activation: str, **changes: Any) -> Experiment:
        """The networks of the histograms: 5 super epochs of 160 steps, so 50 meta-updates."""
        return self.network(
            activation, **{"num_steps": 160, "super_epochs": 5, "num_test_objectives": 1, **changes}
        )

    def conv_network(self, activation: str, **changes: Any) -> Experiment:
        """Two convolutions and a dense layer, with one optimizer for each of the three (sec. 5.4.3)."""
        channels, batch_size = ((2, 2), 32) if self.quick else ((8, 8), 128)
        family = self.mnist((), activation, batch_size, conv_channels=channels)
        make_optimizer = optimizer_maker(family, LogSign(), 0.01, per_layer=True)
        return self.network(activation, **{"family": family, "make_optimizer": make_optimizer, **changes})

    def _released(self) -> dict[str, Any]:
        return {"norm_floor": 1e-6, "shared_adam": True} if self.source == "code" else {}


def optimizer_maker(
    family: FromModel, preprocessor: AbstractPreprocessor, learning_rate: float, per_layer: bool = False
) -> Callable[[PRNGKeyArray], AbstractOptimizer]:
    """From a key to the thesis's LSTM of two layers of 20 units, or to one per layer of the network."""

    def one(key: PRNGKeyArray) -> CoordinatewiseLSTM:
        return CoordinatewiseLSTM((20, 20), preprocessor, learning_rate, key=key)

    if not per_layer:
        return one
    shapes = params_shapes(family)
    return lambda key: PerLayer.make(one, shapes, key=key)


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
