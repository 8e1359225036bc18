"""The families and wrappers with known minima: derivatives, minima and formulas, and the picture."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.image
import numpy as np
import optax
import pytest
from helpers import ZOO, ScaledGradient, assert_trees_close
from jax import lax
from jax.flatten_util import ravel_pytree

import l2o_eqx
from l2o_eqx import objectives as zoo
from l2o_eqx import plots
from l2o_eqx.objectives import sample_objectives
from l2o_eqx.objectives._norm import NormObjective
from l2o_eqx.optimizers import FromOptax
from l2o_eqx.weightings import Constant

KEY = jr.key(7)
# Where the gradient jumps: at the minimum it is zero by convention, but not around it.
SHARP = {"ackley", "rescaled", "norm", "min_max_well"}
UNKNOWN, NOT_ATTAINED = {"network", "robust_regression"}, {"outward_snake"}


@functools.cache
def facts(name: str) -> dict[str, Any]:
    """All numbers about a family that the tests ask for, from one compiled program in double precision.

    Tests compile more than they compute: every function is traced once, for all points.
    """
    family = ZOO[name]()

    @jax.jit
    def compute(keys, moves):
        batch = sample_objectives(family, keys[:2])
        objective, key = batch.select(jax.tree.map(lambda x: x[0], batch.own)), keys[0]
        starts = jax.vmap(objective.init)(keys)
        unravel = ravel_pytree(jax.tree.map(lambda x: x[0], starts))[1]
        starts = jax.vmap(lambda tree: ravel_pytree(tree)[0])(starts)

        def value(x):
            return objective.outer_loss(unravel(x), 2, key)

        minimum = objective.minimum()
        point = None if minimum is None or minimum.params is None else ravel_pytree(minimum.params)[0]
        points = jnp.stack([starts[0], starts[0] if point is None else point])
        moves = moves[..., : starts.shape[1]]
        step = 1e-6 * jnp.eye(starts.shape[1])
        places = [points, points[0] + step, points[0] - step, points[1] + moves.reshape(-1, step.shape[0])]
        values = jax.vmap(value)(jnp.concatenate([starts, *places]))
        splits = np.cumsum([len(x) for x in (starts, *places)])[:-1]
        elsewhere, (_, there), up, down, around = jnp.split(values, splits)
        grad, slope = jax.vmap(jax.grad(value))(points)
        losses = jax.vmap(lambda own, x, k: batch.select(own).loss(unravel(x), 2, k))(
            batch.own, starts[:2], keys[:2]
        )
        found = {"losses": losses, "grad": grad, "differences": (up - down) / 2e-6, "elsewhere": elsewhere}
        if minimum is not None:
            found["minimum"] = minimum.value
        if point is not None:
            found |= {"there": there, "slope": slope, "around": around.reshape(moves.shape[:2])}
        return found

    moves = np.random.default_rng(0).normal(size=(3, 200, 64)) * np.array([1e-4, 1e-2, 1.0])[:, None, None]
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        return jax.tree.map(np.asarray, compute(jr.split(KEY, 2000), moves))


@pytest.mark.parametrize("name", ZOO)
def test_gradients_are_finite_differences(name):
    found = facts(name)
    assert found["grad"].dtype == np.float64
    scale = np.abs(found["grad"]).max()
    assert scale > 0
    np.testing.assert_allclose(found["differences"], found["grad"], rtol=1e-5, atol=1e-7 * scale)


@pytest.mark.parametrize("name", ZOO)
def test_minimum_is_one(name):
    """Its value is had where it is said to be, and nowhere is there a lower one, far or near."""
    found = facts(name)
    assert ("minimum" in found) == (name not in UNKNOWN)
    assert ("there" in found) == (name not in UNKNOWN | NOT_ATTAINED)
    if "minimum" not in found:
        return
    tolerance = 1e-9 * (1 + abs(found["minimum"]))
    assert np.all(found["elsewhere"] >= found["minimum"] - tolerance)
    if "there" not in found:
        return
    np.testing.assert_allclose(found["there"], found["minimum"], atol=tolerance)
    near, middle, far = found["around"]
    assert np.all(near >= found["minimum"] - tolerance) and np.all(middle >= found["minimum"] - tolerance)
    # Beyond its box, one of them has lower values, and says so.
    assert name == "michalewicz" or np.all(far >= found["minimum"] - tolerance)
    # A minimum and no plain: almost everything around it is higher.
    assert np.median(near) > found["minimum"]
    if name not in SHARP:
        np.testing.assert_allclose(found["slope"], 0, atol=1e-6 * max(1, np.abs(found["grad"]).max()))


@pytest.mark.parametrize("name", ZOO)
def test_draws_in_a_batch_differ(name):
    first, second = facts(name)["losses"]
    assert first != second and np.isfinite(first) and np.isfinite(second)


@pytest.mark.parametrize("name", ZOO)
def test_batches_of_draws_are_not_for_lapack(name):
    """Two of its batches in one program can wait for each other in XLA's threads, for ever."""
    family = ZOO[name]()

    def drawn(key):
        objective = family.sample(key)
        return jax.value_and_grad(objective.loss)(objective.init(key), 0, key)

    assert "lapack" not in jax.jit(jax.vmap(drawn)).lower(jr.split(KEY, 3)).as_text()


@pytest.mark.parametrize("name", ZOO)
def test_single_precision_stays(name):
    family = ZOO[name]()

    def losses(key):
        objective = family.sample(key)
        params, minimum = objective.init(key), objective.minimum()
        return objective.loss(params, 0, key), objective.outer_loss(params, 0, key), params, minimum

    leaves = jax.tree.leaves(eqx.filter_eval_shape(losses, KEY))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def _textbook_michalewicz(x):
    i = np.arange(1, 1 + len(x))
    return len(x) - np.sum(np.sin(x) * np.sin(i * x**2 / np.pi) ** 20)


def _textbook_ackley(x):
    ripples = np.exp(np.mean(np.cos(2 * np.pi * x)))
    return 20 + np.e - 20 * np.exp(-0.2 * np.sqrt(np.mean(x**2))) - ripples


# As they are written in the sources, which lose digits near the minimum.
TEXTBOOK = {
    "rosenbrock": (zoo.Rosenbrock(2), lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2),
    "matyas": (zoo.Matyas(), lambda x: 0.26 * np.sum(x**2) - 0.48 * x[0] * x[1]),
    "styblinski_tang": (
        zoo.StyblinskiTang(3),
        lambda x: np.sum(x**4 - 16 * x**2 + 5 * x) / 2 + 39.16616570377142 * 3,
    ),
    "michalewicz": (zoo.Michalewicz(4), _textbook_michalewicz),
    "rastrigin": (zoo.Rastrigin(3), lambda x: 10 * len(x) + np.sum(x**2 - 10 * np.cos(2 * np.pi * x))),
    "ackley": (zoo.Ackley(3), _textbook_ackley),
    "min_max_well": (zoo.MinMaxWell(3), lambda x: np.max(x**2) + 1 / np.min(x**2) - 2),
    "dependency_chain": (
        zoo.DependencyChain(3, 0.1),
        lambda x: x[0] ** 2 + x[1] ** 2 / (x[0] ** 2 + 0.1) + x[2] ** 2 / (x[1] ** 2 + 0.1),
    ),
}


@pytest.mark.parametrize("name", TEXTBOOK)
def test_functions_are_their_formulas(name):
    family, formula = TEXTBOOK[name]
    objective = family.sample(KEY)
    for key in jr.split(KEY, 3):
        x = objective.init(key)
        expected = formula(np.asarray(x, np.float64))
        np.testing.assert_allclose(objective.loss(x, 0, key), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "family, value, tolerance",
    [
        (zoo.Branin(), 0.39788735772973816, 1e-6),
        (zoo.Michalewicz(2), 2 - 1.8013034, 1e-6),
        (zoo.Michalewicz(5), 5 - 4.687658, 1e-5),
        (zoo.Michalewicz(10), 10 - 9.66015, 1e-4),
    ],
    ids=["branin", "michalewicz_2", "michalewicz_5", "michalewicz_10"],
)
def test_minima_of_the_literature(family, value, tolerance):
    np.testing.assert_allclose(family.minimum().value, value, atol=tolerance)


def test_all_three_minima_of_branin():
    points = jnp.array([[-np.pi, 12.275], [np.pi, 2.275], [3 * np.pi, 2.475]])
    values = jax.vmap(zoo.Branin().value)(points)
    np.testing.assert_allclose(values, 0.39788736, rtol=1e-5)


def test_functions_with_tips_have_zero_gradients_there():
    tips = (zoo.Ackley().sample(KEY), NormObjective(jnp.eye(2), jnp.ones(2), 1.0))
    for objective, point in zip(tips, (jnp.zeros(2), jnp.ones(2)), strict=True):
        value, grads = jax.value_and_grad(objective.loss)(point, 0, KEY)
        assert value == 0 and np.all(np.asarray(grads) == 0)


def test_outward_snake_falls_along_its_path_without_end():
    objective = zoo.OutwardSnake(2).sample(KEY)
    far = jnp.array([1e1, 1e2, 1e3, 1e4])
    path = jnp.stack([far, jnp.pi * jnp.cos(far)], axis=1)
    values = np.asarray(jax.vmap(lambda x: objective.loss(x, 0, KEY))(path))
    assert np.all(np.diff(values) < 0) and values[-1] < 2e-4


def test_spectra_are_what_is_said():
    """The Hessian's largest eigenvalue is 1; the others' logarithms are uniform down to −log κ."""
    batch = jax.jit(jax.vmap(zoo.SpectralQuadratic(4, 100.0).sample))(jr.split(KEY, 500))
    spectra = np.linalg.eigvalsh(2 * np.swapaxes(batch.matrix, 1, 2) @ batch.matrix)
    np.testing.assert_allclose(spectra[:, -1], 1, rtol=1e-4)
    logs = np.log(spectra[:, :-1])
    assert logs.min() >= -np.log(100) - 1e-3
    np.testing.assert_allclose(logs.mean(), -np.log(100) / 2, rtol=0.05)
    # The eigenvectors are those of a QR decomposition, by another way.
    key = jr.split(KEY)[1]
    rotation, upper = np.linalg.qr(jr.normal(jr.split(key, 3)[0], (6, 6)))
    rows = zoo.SpectralQuadratic(6).sample(key).matrix
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(rows.T, rotation * np.sign(np.diag(upper))[None], atol=1e-5)
    centered = zoo.Bowl(50.0).sample(KEY)
    assert centered.matrix.shape == (2, 2) and np.all(np.asarray(centered.target) == 0)


def test_norm_is_numpys():
    objective = zoo.Norm(4, 3.0).sample(KEY)
    x = objective.init(KEY)
    expected = np.linalg.norm(np.asarray(objective.matrix @ x - objective.target), 3)
    np.testing.assert_allclose(objective.loss(x, 0, KEY), expected, rtol=1e-5)


@pytest.mark.parametrize("clusters", [2, 3])
def test_both_classes_have_examples(clusters):
    """In every draw, whatever labels the Gaussians get."""
    draw = zoo.SyntheticClassification((), 3, 30, num_clusters=clusters).sample
    labels = jax.jit(jax.vmap(lambda key: draw(key).labels))(jr.split(KEY, 64))
    shares = np.mean(labels, axis=1)
    assert np.all((shares > 0) & (shares < 1)) and len(np.unique(shares)) == clusters // 3 + 1


def test_classes_overlap_but_not_entirely():
    draw = zoo.LogisticRegression(2, 60).sample
    lowest = jax.jit(jax.vmap(lambda key: draw(key).minimum().value))(jr.split(KEY, 64))
    assert 0.1 < np.median(lowest) < 0.6


def test_outer_loss_is_the_mean_over_an_epoch():
    """Minibatches of one size cover all examples; so their mean is the loss over the full batch."""

    @eqx.filter_jit
    def losses(family, key):
        objective = family.sample(key)
        params = objective.init(key)
        batches = jax.vmap(lambda t: objective.loss(params, t, key))(jnp.arange(4))
        return jnp.mean(batches), objective.outer_loss(params, 0, key)

    for family in (zoo.Projection(3, 8, 2), zoo.SyntheticClassification((3,), 2, 8, 2, "tanh")):
        mean, outer = losses(family, KEY)
        np.testing.assert_allclose(outer, mean, rtol=1e-5)
        assert family.sample(KEY).has_outer_loss()
    assert not zoo.SyntheticClassification((), 2, 8).sample(KEY).has_outer_loss()


def _slopes(family, count):
    objective = family.sample(KEY)
    params = objective.init(KEY)
    steps = jnp.arange(count)
    values, grads = jax.jit(jax.vmap(lambda t: jax.value_and_grad(objective.loss)(params, t, KEY)))(steps)
    clean = jax.grad(objective.outer_loss)(params, 0, KEY)
    return (
        objective.outer_loss(params, 0, KEY),
        np.asarray(values),
        np.asarray(grads) - np.asarray(clean),
        clean,
    )


def test_noise_is_on_gradients_alone():
    """Of mean zero and the stated deviation, uncorrelated in time; that of another wrapper is other noise."""
    clean, values, noise, _ = _slopes(zoo.Noisy(zoo.Booth(), 2.0), 2000)
    np.testing.assert_allclose(values, clean, rtol=1e-6)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.15)
    np.testing.assert_allclose(noise.std(), 2, rtol=0.05)
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.1
    # Twice the same noise would have the deviation 4.
    *_, twice, _ = _slopes(zoo.Noisy(zoo.Noisy(zoo.Booth(), 2.0), 2.0), 2000)
    np.testing.assert_allclose(twice.std(), np.sqrt(8), rtol=0.05)


def test_sparse_gradients_are_entries_of_the_whole():
    clean, values, missing, whole = _slopes(zoo.SparseGradients(zoo.Quadratic(8), 0.9), 1000)
    np.testing.assert_allclose(values, clean, rtol=1e-6)
    shown = np.isclose(missing, 0, atol=1e-4)
    np.testing.assert_allclose(shown.mean(), 0.1, atol=0.02)
    assert np.all(shown | np.isclose(missing, -np.asarray(whole), rtol=1e-4))


def test_what_is_trained_for_has_no_noise():
    """The meta-gradient is that of the clean losses along a run on noisy, sparse gradients of minibatches."""
    family = zoo.SparseGradients(zoo.Noisy(zoo.Projection(3, 8, 2), 0.5), 0.5)
    optimizer, weighting = ScaledGradient(jnp.asarray(0.05), jnp.asarray(0.01)), Constant()
    key, steps = jr.key(1), 4
    objective = family.sample(key)
    params = objective.init(key)

    @jax.jit
    @jax.value_and_grad
    def meta_loss(optimizer):
        theta, state, losses = params, optimizer.init(params), []
        for t in range(steps):
            losses.append(objective.outer_loss(theta, t, key))
            grads = lax.stop_gradient(jax.grad(objective.loss)(theta, t, key))
            updates, state = optimizer.update(grads, state, lax.stop_gradient(theta))
            theta = theta + updates
        return weighting(jnp.stack(losses), 0, steps)

    loss, grads = meta_loss(optimizer)
    found = l2o_eqx.meta_gradient(
        optimizer, objective, params, optimizer.init(params), window=steps, weighting=weighting, key=key
    )
    np.testing.assert_allclose(found.meta_loss, loss, rtol=1e-5)
    assert_trees_close(found.grads, grads, rtol=1e-4, atol=1e-5)


def test_log_is_its_formula():
    inner, key = zoo.Quadratic(3), KEY
    x = inner.sample(key).init(key)
    loss = inner.sample(key).loss(x, 0, key)
    outer = zoo.Log(inner, 1e-3).sample(key).loss(x, 0, key)
    np.testing.assert_allclose(outer, np.log(loss + 1e-3) - np.log(1e-3), rtol=1e-5)


def test_sum_is_of_both():
    objective = zoo.Sum(zoo.Quadratic(3), zoo.Projection(2, 8, 2)).sample(KEY)
    params = objective.init(KEY)
    one, two = jr.split(KEY)
    both = objective.first.loss(params[0], 1, one) + objective.second.loss(params[1], 1, two)
    assert objective.loss(params, 1, KEY) == both
    known = zoo.Sum(zoo.Booth(), zoo.Sum(zoo.Branin(), zoo.Beale())).sample(KEY).minimum()
    assert known is not None
    np.testing.assert_allclose(known.value, 0.3978874, rtol=1e-5)
    assert [len(x) for x in jax.tree.leaves(known.params)] == [2, 2, 2]
    unknown = zoo.Sum(zoo.Booth(), zoo.SyntheticClassification((2,)))
    assert unknown.sample(KEY).minimum() is None
    snake = zoo.Sum(zoo.Branin(), zoo.OutwardSnake(2)).sample(KEY).minimum()
    assert snake is not None
    np.testing.assert_allclose(snake.value, 0.3978874, rtol=1e-5)
    assert snake.params is None


WRAPPERS = {
    "log": lambda family: zoo.Log(family, 1e-2),
    "noisy": zoo.Noisy,
    "sparse_gradients": zoo.SparseGradients,
    "scaled": lambda family: zoo.Scaled(family, 0.5, 2.0, (0.5, 2.0)),
    "rescaled": lambda family: zoo.Rescaled(family, 2.0, 3.0),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_hand_on_what_they_do_not_change(name):
    """Outer losses, whether there are others than the loss, minima, and variations; also around another."""
    wrap = WRAPPERS[name]
    for inner in (zoo.Projection(4, 8, 2), zoo.Log(zoo.Projection(4, 8, 2), 0.1)):
        objective = wrap(inner).sample(KEY)
        assert objective.has_outer_loss()
        params, minimum = objective.init(KEY), objective.minimum()
        # The outer loss does not depend on the step, the loss does.
        outer = [objective.outer_loss(params, t, KEY) for t in (0, 1)]
        assert outer[0] == outer[1]
        assert objective.loss(params, 0, KEY) != objective.loss(params, 1, KEY)
        np.testing.assert_allclose(objective.outer_loss(minimum.params, 0, KEY), minimum.value, atol=1e-6)
        varied = wrap(inner).variations()
        assert varied == {name: wrap(family) for name, family in inner.variations().items()}
    assert wrap(zoo.Booth()).sample(KEY).has_outer_loss() == (name in ("noisy", "sparse_gradients"))
    assert wrap(zoo.SyntheticClassification((2,))).sample(KEY).minimum() is None
    assert wrap(zoo.OutwardSnake(2)).sample(KEY).minimum().params is None


def test_variations_keep_the_rest():
    assert zoo.Michalewicz(4, 5).variations()["dimension × ½"] == zoo.Michalewicz(2, 5)
    assert zoo.Rosenbrock(2).variations().keys() == {"dimension × 2", "dimension × 4"}
    assert zoo.Beale().variations() == {}
    both = zoo.Sum(zoo.Rastrigin(2), zoo.LogisticRegression(2)).variations()
    assert both["dimension × 2"] == zoo.Sum(zoo.Rastrigin(4), zoo.LogisticRegression(2))
    assert both["features × 2"] == zoo.Sum(zoo.Rastrigin(2), zoo.LogisticRegression(4))
    network = zoo.SyntheticClassification((3,), 2, 30, 8, ("tanh", "relu"), 4, 0.0).variations()["width × 2"]
    assert network == zoo.SyntheticClassification((6,), 2, 30, 8, ("tanh", "relu"), 4, 0.0)
    assert "other family: quadratic" in l2o_eqx.variations(zoo.Noisy(zoo.Log(zoo.Rosenbrock())))
    assert "other family: mnist" in l2o_eqx.variations(zoo.Noisy(zoo.Log(zoo.Quadratic())))


@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda: zoo.Rosenbrock(1), "dim"),
        (lambda: zoo.Ackley(0), "dim"),
        (lambda: zoo.DependencyChain(1), "dim"),
        (lambda: zoo.DependencyChain(3, 0.0), "floor"),
        (lambda: zoo.OutwardSnake(1), "dim"),
        (lambda: zoo.Projection(2, 4, 5), "batch_size"),
        (lambda: zoo.Norm(2, 0.5), "norm_power"),
        (lambda: zoo.SpectralQuadratic(2, 0.5), "condition"),
        (lambda: zoo.Bowl(0.5), "condition"),
        (lambda: zoo.LogisticRegression(l2=0.0), "l2"),
        (lambda: zoo.SyntheticClassification((0,)), "hidden_sizes"),
        (lambda: zoo.SyntheticClassification(num_clusters=1), "num_clusters"),
        (lambda: zoo.SyntheticClassification(batch_size=101), "batch_size"),
        (lambda: zoo.SyntheticClassification((2,), activation="cube"), "activation"),
        (lambda: zoo.Log(zoo.Booth(), 0.0), "log_floor"),
        (lambda: zoo.Noisy(zoo.Booth(), -1.0), "noise_std"),
        (lambda: zoo.SparseGradients(zoo.Booth(), 1.0), "zeros"),
    ],
)
def test_errors_name_the_argument(make, argument):
    with pytest.raises(l2o_eqx.ArgumentError) as caught:
        make()
    assert caught.value.argument == argument and f"{argument}=" in str(caught.value)


def test_objectives_are_drawn_with_the_paths_of_optimizers(tmp_path):
    """A path is the run of `unroll`: it begins where the objective draws its start."""
    objective, steps = zoo.Booth().sample(KEY), 20
    optimizers = {"SGD": FromOptax(optax.sgd(0.05)), "Adam": FromOptax(optax.adam(0.5))}
    figure = plots.plot_objective(objective, optimizers, tmp_path / "a.png", num_steps=steps, key=KEY)
    assert matplotlib.image.imread(tmp_path / "a.png").shape[0] > 400
    axes, ikey = figure.axes[0], jr.split(KEY, 3)[0]
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    params = objective.init(ikey)
    run = l2o_eqx.unroll(optimizers["SGD"], objective, params, optimizers["SGD"].init(params), steps, key=KEY)
    paths = {line.get_label(): np.stack(line.get_data(), axis=1) for line in axes.lines}
    path = paths[labels[0]]
    np.testing.assert_allclose(path[0], params, rtol=1e-6)
    np.testing.assert_allclose(path[-1], run.params, rtol=1e-5)
    assert len(path) == steps + 1 and labels[0].startswith("SGD: ") and labels[-1] == "minimum 0"
    np.testing.assert_allclose(paths["minimum 0"], [[1, 3]])


def test_a_picture_has_two_coordinates():
    with pytest.raises(l2o_eqx.ArgumentError, match=r"two entries. Got shapes \[\(3,\)\]"):
        plots.plot_objective(zoo.Rastrigin(3).sample(KEY), {}, key=KEY)


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_paths_that_diverge_leave_the_picture(rate, tmp_path):
    """And do not squash it; contours of a saddle without a known minimum are drawn, too."""
    figure = plots.plot_objective(
        zoo.OutwardSnake(2).sample(KEY),
        {"SGD": FromOptax(optax.sgd(rate))},
        tmp_path / "a.png",
        num_steps=5,
        key=KEY,
    )
    low, high = figure.axes[0].get_xlim()
    assert -30 < low < high < 30
