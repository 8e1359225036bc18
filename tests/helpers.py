"""One list of every implementation: adding a class here gives it all conformance tests."""

from collections.abc import Callable, Container, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

import l2o_eqx
from l2o_eqx import estimators, objectives, optimizers, outputs, preprocessors, strategies, weightings
from l2o_eqx.optimizers import AbstractOptimizer


class ScaledGradient(AbstractOptimizer):
    """A learned step size that also looks at the params: what a user's own optimizer may look like."""

    rate: jax.Array
    decay: jax.Array

    def init(self, params):
        return jnp.zeros(())

    def update(self, grads, state, params, *, value=None, key=None):
        def one(g, p):
            return -(self.rate * g + self.decay * p) / (1 + state)

        return jax.tree.map(one, grads, params), state + 0.1


class LookingLSTM(AbstractOptimizer):
    """A coordinatewise optimizer that looks at the params, which the engine must hand over in blocks."""

    lstm: optimizers.CoordinatewiseLSTM
    decay: jax.Array

    def layout(self, shapes):
        return self.lstm.layout(shapes)

    def init(self, params):
        return self.lstm.init(params)

    def update(self, grads, state, params, *, value=None, key=None):
        updates, state = self.lstm.update(grads, state, params)
        return jax.tree.map(lambda u, p: u - self.decay * p, updates, params), state


class RootMeanSquare(AbstractOptimizer):
    """Coordinatewise, and not finite where all gradients have been zero: padding must not show that."""

    rate: jax.Array

    def layout(self, shapes):
        return optimizers.Blocks()

    def init(self, params):
        return jnp.zeros(sum(x.size for x in jax.tree.leaves(params)))

    def update(self, grads, state, params, *, value=None, key=None):
        flat, unravel = ravel_pytree(grads)
        state = state + flat**2
        return unravel(-self.rate * flat / jnp.sqrt(state)), state


def _per_layer(key):
    def make(key):
        return optimizers.CoordinatewiseLSTM((3,), learning_rate=0.1, key=key)

    # One optimizer for every label that any of the families below has.
    labels = ["layers.0", "layers.1", "layers.2", "params"]
    keys = dict(zip(labels, jr.split(key, len(labels)), strict=True))
    return optimizers.PerLayer({name: make(k) for name, k in keys.items()})


def as_if_trained(optimizer, key):
    """All its weights moved: with a last layer of zeros no other has a derivative."""
    weights, static = eqx.partition(optimizer, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(weights)
    moved = [x + 0.1 * jr.normal(k, x.shape) for x, k in zip(leaves, jr.split(key, len(leaves)), strict=True)]
    return eqx.combine(treedef.unflatten(moved), static)


def _adam_mlp(key, matrices=False):
    optimizer = optimizers.AdamMLP((3, 4), learning_rate=0.1, num_steps=5, matrices=matrices, key=key)
    return as_if_trained(optimizer, key)


def small_celo2(key, **settings):
    optimizer = optimizers.Celo2(
        (3, 4), 0.1, magnitude=0.5, weight_decay=0.1, num_steps=5, key=key, **settings
    )
    return as_if_trained(optimizer, key)


PREPROCESSORS: dict[str, Callable[[], preprocessors.AbstractPreprocessor]] = {
    "identity": preprocessors.Identity,
    "signed_log": preprocessors.SignedLog,
    "log_and_sign": preprocessors.LogAndSign,
    "adam_like": preprocessors.AdamLike,
}

OUTPUTS: dict[str, Callable[[], outputs.AbstractOutput]] = {
    "momentum": lambda: outputs.MomentumOutput(0.05, 0.8),
    "curvature": lambda: outputs.CurvatureOutput(0.2, 0.8, 0.05),
    "adam": lambda: outputs.AdamOutput(0.05),
}


def answering(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same with a read-out that is not zero, as after some training: derivatives reach all weights."""

    def answer(key):
        optimizer = make(key)
        weight = 0.3 * jr.normal(jr.fold_in(key, 1), optimizer.readout.weight.shape)
        return eqx.tree_at(lambda o: o.readout.weight, optimizer, weight)

    return answer


# Learned optimizers: key -> optimizer. Small, and with steps large enough for derivatives to show.
LEARNED: dict[str, Callable[[Any], AbstractOptimizer]] = {
    **{
        f"lstm_{name}": lambda key, make=make: optimizers.CoordinatewiseLSTM(
            (3, 4), make(), learning_rate=0.1, key=key
        )
        for name, make in PREPROCESSORS.items()
    },
    "lstm_linear_readout": lambda key: optimizers.CoordinatewiseLSTM(
        (4,), learning_rate=0.1, linear_readout=True, key=key
    ),
    **{
        f"lstm_{name}_output": answering(
            lambda key, make=make: optimizers.CoordinatewiseLSTM((4,), output=make(), key=key)
        )
        for name, make in OUTPUTS.items()
    },
    "per_layer": _per_layer,
    "hierarchical_rnn": lambda key: as_if_trained(
        optimizers.HierarchicalRNN(3, 4, 2, (0.01, 0.1), key=key), key
    ),
    "adam_mlp": _adam_mlp,
    "adam_mlp_matrices": lambda key: _adam_mlp(key, matrices=True),
    "celo2": small_celo2,
    "unit_rms": lambda key: optimizers.UnitRMS(
        optimizers.CoordinatewiseLSTM((3,), learning_rate=0.1, key=key), 0.1, 0.01
    ),
    "clipped_lstm": lambda key: optimizers.Clipped(
        optimizers.CoordinatewiseLSTM((3,), learning_rate=0.1, key=key), 0.02
    ),
    "clipped_per_layer": lambda key: optimizers.Clipped(_per_layer(key), 0.02),
    "learned_momentum": lambda key: optimizers.LearnedMomentum(4, key=key),
    "learned_momentum_per_layer": lambda key: optimizers.LearnedMomentum(
        3, per="layer", first_step="relative", key=key
    ),
    "subspace_rnn": lambda key: optimizers.SubspaceRNN(4, key=key),
    "gradient_descent": lambda key: optimizers.GradientDescent(None, 0.03, num_rates=3),
    "equation": lambda key: optimizers.Equation(
        ("m0.9/sqrt(v)", "g/L", "cos*muon(m0.5)", "u"), (-0.01, -0.1, -0.01, 0.3), num_steps=5
    ),
    "user_scaled_gradient": lambda key: ScaledGradient(jnp.float32(1e-2), jnp.float32(1e-3)),
    "user_root_mean_square": lambda key: RootMeanSquare(jnp.float32(1e-2)),
    "user_looking_lstm": lambda key: LookingLSTM(
        optimizers.CoordinatewiseLSTM((3,), learning_rate=0.1, key=key), jnp.float32(1e-2)
    ),
}

OPTIMIZERS: dict[str, Callable[[Any], AbstractOptimizer]] = {
    **LEARNED,
    "from_optax": lambda key: optimizers.FromOptax(optax.adam(1e-2)),
    # In blocks, as both are. It falls back at once: what the tests say of the loss is always the same.
    "safeguarded": lambda key: optimizers.Safeguarded(
        optimizers.CoordinatewiseLSTM((3,), learning_rate=0.1, key=key), RootMeanSquare(jnp.float32(1e-2)), 1
    ),
}


def _made_once(make: Callable[[Any], AbstractOptimizer]) -> Callable[[Any], AbstractOptimizer]:
    # One program in place of dozens, and of one key once: optimizers cannot be changed.
    compiled, made = eqx.filter_jit(make), {}

    def make_once(key):
        if key is None or isinstance(key, Tracer):
            return make(key)
        name = jr.key_data(key).tobytes(), jax.config.read("jax_enable_x64")
        if name not in made:
            made[name] = compiled(key)
        return made[name]

    return make_once


LEARNED = {name: _made_once(make) for name, make in LEARNED.items()}
OPTIMIZERS = {name: _made_once(make) for name, make in OPTIMIZERS.items() if name not in LEARNED} | LEARNED

# Further ones of a kind of which the list has another: a layout, a wrapper, an output, a preprocessor.
VARIANTS = {
    *("lstm_identity", "lstm_signed_log", "lstm_log_and_sign", "lstm_linear_readout", "lstm_momentum_output"),
    *("lstm_adam_output", "adam_mlp", "clipped_lstm", "learned_momentum"),
}


def sparing(values: Iterable[Any], *, but: Container[Any]) -> list[Any]:
    """Parameters of a test: those in `but` are further cases, for `--thorough` alone."""
    return [pytest.param(x, marks=pytest.mark.thorough) if x in but else x for x in values]


def given_to(optimizer: AbstractOptimizer) -> dict[str, Any]:
    """What else than gradients, state and params its `update` must be handed."""
    return {"value": jnp.float32(1.0)} if "value" in optimizer.needs() else {}


def _from_model():
    images = jr.normal(jr.key(5), (40, 6))
    labels = jr.randint(jr.key(6), (40,), 0, 3)

    def loss(model, batch):
        x, y = batch
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y))

    def make(key):
        return objectives.MLP((6, 4, 3), jnp.tanh, key=key)

    return objectives.FromModel(make, loss, (images, labels), 8)


def _mnist(hidden_sizes, **settings):
    return objectives.MNIST(hidden_sizes, batch_size=4, num_examples=50, data="embedded", **settings)


FAMILIES: dict[str, Callable[[], objectives.AbstractObjectiveFamily]] = {
    "quadratic": lambda: objectives.Quadratic(5),
    "quadratic_norm": lambda: objectives.Quadratic(5, squared=False, theta_std=0.05),
    "from_model": _from_model,
    "mnist": lambda: _mnist((2,)),
    "mnist_mixed": lambda: _mnist((2,), activation=("tanh", "relu")),
    "mnist_conv": lambda: _mnist((), conv_channels=(2, 2)),
    "scaled": lambda: objectives.Scaled(objectives.Quadratic(5), 0.1, 10.0),
    "scaled_from_model": lambda: objectives.Scaled(_from_model(), 0.5, 2.0, (0.5, 2.0)),
    "mnist_sigmoid_output": lambda: _mnist((2,), output="sigmoid"),
    "sinusoid": lambda: objectives.Sinusoid(2, 3, (3,)),
    # Its params are a pair.
    "sum": lambda: objectives.Sum(objectives.Booth(), objectives.SyntheticClassification((2,), 3, 20)),
}

# Families that are checked by themselves, in `test_zoo.py`, but not with every optimizer or estimator: what
# these ask of a family, those above have.
ZOO: dict[str, Callable[[], objectives.AbstractObjectiveFamily]] = {
    "quadratic": lambda: objectives.Quadratic(4),
    "rosenbrock": objectives.Rosenbrock,
    "rosenbrock_5": lambda: objectives.Rosenbrock(5),
    "beale": objectives.Beale,
    "booth": objectives.Booth,
    "matyas": objectives.Matyas,
    "styblinski_tang": lambda: objectives.StyblinskiTang(3),
    "branin": objectives.Branin,
    "michalewicz": objectives.Michalewicz,
    "rastrigin": lambda: objectives.Rastrigin(3),
    "ackley": lambda: objectives.Ackley(3),
    "dependency_chain": lambda: objectives.DependencyChain(4, 1e-2),
    "min_max_well": lambda: objectives.MinMaxWell(4),
    "outward_snake": lambda: objectives.OutwardSnake(3),
    "projection": lambda: objectives.Projection(3, 8, 2),
    "norm": lambda: objectives.Norm(3, 1.5),
    "spectral_quadratic": lambda: objectives.SpectralQuadratic(4, 100.0),
    "bowl": objectives.Bowl,
    "logistic_regression": lambda: objectives.LogisticRegression(2, 30),
    "robust_regression": lambda: objectives.RobustRegression(2, 30),
    "softmax_regression": lambda: objectives.SyntheticClassification((), 2, 30, 8),
    "network": lambda: objectives.SyntheticClassification((3,), 2, 30, 8, ("tanh", "relu"), 4),
    "log": lambda: objectives.Log(objectives.Rosenbrock(), 1e-2),
    "noisy": lambda: objectives.Noisy(objectives.Booth()),
    "sparse_gradients": lambda: objectives.SparseGradients(objectives.Projection(3, 8, 2), 0.5),
    "scaled": lambda: objectives.Scaled(objectives.Booth(), 0.1, 10.0, (0.5, 2.0)),
    "rescaled": lambda: objectives.Rescaled(objectives.Ackley(), 2.0, 0.1),
    "sum": lambda: objectives.Sum(objectives.Beale(), objectives.Projection(2, 8, 2)),
    "choice": lambda: objectives.Choice(
        {"ackley": objectives.Ackley(3), "tang": objectives.StyblinskiTang(3)}
    ),
    "goldstein_price": objectives.GoldsteinPrice,
    "hartmann_3": objectives.Hartmann,
    "hartmann_6": lambda: objectives.Hartmann(6),
    "in_box": lambda: objectives.InBox(objectives.Branin()),
    "gaussian_process": lambda: objectives.GaussianProcess(2, (0.3, 0.6), 32),
    "regret": lambda: objectives.Regret(objectives.GaussianProcess(1)),
}

# Further ones of what is built in, of which `mnist_conv` and `scaled_from_model` are there, too.
FURTHER_FAMILIES = {"mnist", "mnist_mixed", "mnist_sigmoid_output", "scaled", "quadratic_norm"}

WEIGHTINGS: dict[str, Callable[[], weightings.AbstractWeighting]] = {
    "constant": weightings.Constant,
    "linear": weightings.Linear,
    "linear_super_epoch": lambda: weightings.Linear(0.5, "super_epoch", first=0),
    "exponential": weightings.Exponential,
    "exponential_super_epoch": lambda: weightings.Exponential(1.2, "super_epoch"),
    "final_only": weightings.FinalOnly,
    "final_only_super_epoch": lambda: weightings.FinalOnly("super_epoch"),
    "per_step": lambda: weightings.PerStep((0.5, 0.0, 2.0, 0.3, 0.0, 0.7, 1.0, 0.2, 0.4, 0.3, 0.7)),
    "observed_improvement": weightings.ObservedImprovement,
    "log_mean": weightings.LogMean,
    "log_mean_relative": lambda: weightings.LogMean(1e-6, relative=True, power=2.0),
}

ESTIMATORS: dict[str, Callable[[], estimators.AbstractEstimator]] = {
    "auto": estimators.Auto,
    "backprop": estimators.Backprop,
    "backprop_recompute": lambda: estimators.Backprop(recompute=True),
    "second_order": lambda: estimators.Backprop(()),
    "replay": estimators.Replay,
    "recorded": estimators.Recorded,
    "clipped": lambda: estimators.ClippedPerObjective(estimators.Replay(), 0.5),
    "es": lambda: estimators.ES(0.05, 4),
    "es_ranked": lambda: estimators.ES(0.05, 4, ranked=True),
    "pes": lambda: estimators.PES(0.05, 4),
    "nres": lambda: estimators.NRES(0.05, 4),
    "forward": estimators.Forward,
    "forward_random": lambda: estimators.Forward(4),
    "rtrl": estimators.RTRL,
}


def estimator_of(order="first", activations="auto", *, detach_state=False, objective_clip=None):
    """The estimator with these properties."""
    constants = estimators.FIRST_ORDER if order == "first" else frozenset()
    constants |= {"state"} if detach_state else set()
    if activations == "auto":
        found = estimators.Auto(constants)
    elif activations == "recompute" and order == "first":
        found = estimators.Replay(detach_state)
    else:
        found = estimators.Backprop(constants, recompute=activations == "recompute")
    return found if objective_clip is None else estimators.ClippedPerObjective(found, objective_clip)


STRATEGIES: dict[str, Callable[[], strategies.AbstractUpdateStrategy]] = {
    "every_window": lambda: strategies.EveryWindow(3),
    "every_window_second": lambda: strategies.EveryWindow(3, estimators.Auto(())),
    "every_window_kept": lambda: strategies.EveryWindow(3, estimators.Backprop()),
    "every_window_recomputed": lambda: strategies.EveryWindow(3, estimators.Replay()),
    "every_window_rest": lambda: strategies.EveryWindow(
        3, estimator_of(detach_state=True), include_final_loss=True, remainder="train"
    ),
    "every_window_phase": lambda: strategies.EveryWindow(3, random_phase=True),
    "random_windows": lambda: strategies.RandomWindows(3, sizes=1),
    "every_window_pes": lambda: strategies.EveryWindow(3, estimators.PES(0.1, 2)),
    "once_per_super_epoch": strategies.OncePerSuperEpoch,
    "every_step": lambda: strategies.EveryStep(3),
    "every_step_recorded": lambda: strategies.EveryStep(3, estimators.Recorded()),
}


def draw_grads(key, num_steps, params):
    """Gradients of so many steps, the steps on a leading axis."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jr.split(key, len(leaves))
    grads = [jr.normal(k, (num_steps, *x.shape), x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten(grads)


# Once, so that calls with the same shapes share one program.
@eqx.filter_jit
def _updates(optimizer, grads, params, state):
    def step(state, grads):
        updates, state = optimizer.update(grads, state, params)
        return state, updates

    return jax.lax.scan(step, state, grads)[1]


def updates_of(optimizer, grads, params):
    """The updates along recorded gradients, at params that stay where they are."""
    return _updates(optimizer, grads, params, optimizer.init(params))


def to_float64(tree):
    """Every float32 array as float64; needs x64 mode."""

    def convert(x):
        return x.astype(jnp.float64) if eqx.is_inexact_array(x) else x

    return jax.tree.map(convert, tree)


def assert_trees_close(actual, expected, *, rtol=1e-5, atol=1e-7):
    """Same structure, shapes and dtypes, and values that agree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype, (a.shape, a.dtype, e.shape, e.dtype)
        scale = max(1e-30, float(np.max(np.abs(e), initial=0.0)))
        np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=rtol, atol=atol * scale)


def stop_at(count, reason=None):
    """A callback that ends the work once so many super epochs, or updates, are done."""

    def callback(progress):
        done = getattr(progress, "super_epoch", None) or getattr(progress, "update", None)
        return l2o_eqx.StopTraining(reason) if done == count else None

    return callback


class CountedFamily(objectives.AbstractObjectiveFamily):
    """Counts how often its loss is traced."""

    traces: list = eqx.field(static=True)

    def sample(self, key):
        return CountedObjective(jr.normal(key, (3,)), self.traces)


class CountedObjective(objectives.AbstractObjective):
    target: jax.Array
    traces: list = eqx.field(static=True)

    def init(self, key):
        return jr.normal(key, (3,))

    def loss(self, params, step, key):
        self.traces.append(step)
        return jnp.sum((params - self.target) ** 2)


class Traces(list):
    """A list that is itself alone, so that it can be a static field."""

    def __hash__(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return id(self)

    def __eq__(self, other):
        return self is other
