import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import FAMILIES, FURTHER_FAMILIES, assert_trees_close, sparing, to_float64

from l2o_eqx.data import load_mnist
from l2o_eqx.objectives import (
    ACTIVATIONS,
    MLP,
    MNIST,
    ConvNet,
    FromModel,
    Quadratic,
    Scaled,
    count_coordinates,
    digit_cross_entropy,
    digit_sigmoid_cross_entropy,
    minibatch_indices,
    params_shapes,
    sample_objectives,
)
from l2o_eqx.optimizers import by_layer


@pytest.mark.parametrize(
    "name",
    sparing(FAMILIES, but=FURTHER_FAMILIES),
)
def test_deterministic_in_key(name, getkey):
    family, key, other = FAMILIES[name](), getkey(), getkey()

    def loss(key):
        objective = family.sample(key)
        return objective.loss(objective.init(key), 3, key)

    assert loss(key) == loss(key)
    assert loss(key) != loss(other)
    assert loss(key).shape == () and loss(key).dtype == jnp.float32


@pytest.mark.parametrize(
    "name",
    sparing(FAMILIES, but=FURTHER_FAMILIES),
)
def test_batch_is_loop_and_copies_no_data(name, getkey):
    family, keys = FAMILIES[name](), jr.split(getkey(), 3)
    batch = sample_objectives(family, keys)
    for i in range(3):
        own = jax.tree.map(lambda x, i=i: x[i], batch.own)
        objective, expected = batch.select(own), family.sample(keys[i])
        params = expected.init(keys[i])
        assert_trees_close(objective.init(keys[i]), params)
        np.testing.assert_allclose(
            objective.loss(params, 1, keys[i]), expected.loss(params, 1, keys[i]), rtol=1e-6
        )
    data = [x for x in jax.tree.leaves(family) if hasattr(x, "shape")]
    shared = [x for x in jax.tree.leaves(batch.shared) if hasattr(x, "shape")]
    assert all(any(x is y for y in shared) for x in data)


def test_quadratic_is_equation_5_1(getkey):
    objective = Quadratic(16).sample(getkey())
    params = objective.init(getkey())
    residual = np.asarray(objective.matrix) @ np.asarray(params) - np.asarray(objective.target)
    square = np.sum(residual.astype(np.float64) ** 2)
    np.testing.assert_allclose(objective.loss(params, 0, getkey()), square, rtol=1e-5)
    norm = Quadratic(16, squared=False).sample(getkey())
    residual = np.asarray(norm.matrix) @ np.asarray(params) - np.asarray(norm.target)
    np.testing.assert_allclose(norm.loss(params, 0, getkey()), np.linalg.norm(residual), rtol=1e-5)


def test_quadratic_draws_are_standard_normal(getkey):
    """E‖Wθ − y‖² = n·n + n for standard normal W, θ, y: 272 for n = 16, the thesis's start near 270."""
    family = Quadratic(16)

    def start(key):
        objective = family.sample(key)
        return objective.loss(objective.init(jr.fold_in(key, 1)), 0, key), objective.matrix

    losses, matrices = jax.jit(jax.vmap(start))(jr.split(getkey(), 4000))
    np.testing.assert_allclose(np.mean(losses), 272, rtol=0.03)
    np.testing.assert_allclose(np.std(matrices), 1, rtol=0.01)


def test_norm_has_zero_gradient_at_its_minimum(getkey):
    objective = Quadratic(3, squared=False).sample(getkey())
    objective = type(objective)(jnp.eye(3), jnp.ones(3), squared=False)
    grads = jax.grad(objective.loss)(jnp.ones(3), 0, getkey())
    np.testing.assert_array_equal(grads, 0)


def test_scaled_is_its_formula(getkey):
    """c·f(s∘θ) from θ_1/s: the first loss is c·f(θ_1), and its gradient c·s∘∇f."""
    key, start = getkey(), getkey()
    scaled = Scaled(Quadratic(4), 0.1, 10.0, (np.exp(-3), np.exp(3))).sample(key)
    inner, c, s = scaled.objective, scaled.factor, scaled.scales
    assert s is not None and len(np.unique(s)) == 4
    theta = inner.init(start)
    np.testing.assert_allclose(scaled.init(start), theta / s, rtol=1e-6)
    loss, grads = jax.value_and_grad(scaled.loss)(scaled.init(start), 0, start)
    np.testing.assert_allclose(loss, c * inner.loss(theta, 0, start), rtol=1e-5)
    np.testing.assert_allclose(grads, c * s * jax.grad(inner.loss)(theta, 0, start), rtol=1e-4)


def test_scaled_factors_are_log_uniform(getkey):
    """Mean and variance of log c are those of U[log 1e-3, log 1e3]; half of the range, half of the draws."""
    objectives = sample_objectives(Scaled(Quadratic(2), pointwise=(0.5, 2.0)), jr.split(getkey(), 4000)).own
    for factors, half in ((objectives.factor, np.log(1e3)), (objectives.scales, np.log(2.0))):
        logs = np.log(factors)
        np.testing.assert_allclose(np.mean(logs), 0, atol=0.06 * half)
        np.testing.assert_allclose(np.std(logs), half / np.sqrt(3), rtol=0.04)
        assert 0.47 < np.mean(np.abs(logs) < half / 2) < 0.53 and np.abs(logs).max() <= half * 1.00001


@pytest.mark.parametrize(
    "arguments, message",
    [((0.0, 1.0), "low=.*0.0 to 1.0"), ((2.0, 1.0), "2.0 to 1"), ((1.0, 1.0, (2.0, 1.0)), "pointw")],
)
def test_scaled_refuses_other_ranges(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scaled(Quadratic(2), *arguments)


@pytest.mark.parametrize("num_examples, batch_size", [(1, 1), (3, 1), (7, 2), (129, 128), (1000, 10)])
def test_every_epoch_shows_every_example_once(num_examples, batch_size, getkey):
    steps, key = num_examples // batch_size, getkey()

    @jax.jit
    @jax.vmap
    def epoch(step):
        return minibatch_indices(step, key, num_examples=num_examples, batch_size=batch_size)

    epochs = np.asarray(epoch(jnp.arange(3 * steps))).reshape(3, -1)
    for shown in epochs:
        assert len(set(shown)) == steps * batch_size
        assert shown.min() >= 0 and shown.max() < num_examples
    if num_examples > 3:
        assert not np.array_equal(epochs[0], epochs[1])


def test_orders_are_uniform(getkey):
    """All 24 orders of four examples come up equally often: χ² with 23 degrees of freedom."""
    orders = jax.jit(jax.vmap(lambda key: minibatch_indices(0, key, num_examples=4, batch_size=4)))(
        jr.split(getkey(), 24000)
    )
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.sum((counts - 1000) ** 2 / 1000) < 50  # exceeded once in 1000 draws


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_its_formula(activation, getkey):
    model, x = MLP((5, 4, 3), ACTIVATIONS[activation], key=getkey()), jr.normal(getkey(), (5,))
    functions = {
        "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
        "tanh": np.tanh,
        "relu": lambda a: np.maximum(a, 0),
        "leaky_relu": lambda a: np.where(a >= 0, a, 0.1 * a),
    }
    first, last = ((np.asarray(m.weight), np.asarray(m.bias)) for m in model.layers)
    hidden = functions[activation](first[0] @ np.asarray(x) + first[1])
    np.testing.assert_allclose(model(x), last[0] @ hidden + last[1], rtol=1e-5, atol=1e-6)


def _nudged(params, key):
    # Zero biases would hide mistakes that concern them.
    def nudged(x):
        return x + 0.3 * jr.normal(jr.fold_in(key, x.size), x.shape) if eqx.is_array(x) else x

    return jax.tree.map(nudged, params)


def test_conv_net_is_its_formula(getkey):
    """Every output pixel written out: kernels slide by two over the image and its border of zeros."""
    model = _nudged(ConvNet(5, (2,), (4, 3), jnp.tanh, key=getkey()), getkey())
    image = jr.normal(getkey(), (25,))
    conv, hidden, last = ((np.asarray(m.weight), np.asarray(m.bias)) for m in model.layers)
    padded = np.zeros((7, 7))
    padded[1:6, 1:6] = np.asarray(image).reshape(5, 5)
    pixels = [
        conv[1][channel, 0, 0] + np.sum(conv[0][channel, 0] * padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3])
        for channel in range(2)
        for i in range(3)
        for j in range(3)
    ]
    x = np.tanh(hidden[0] @ np.tanh(pixels) + hidden[1])
    np.testing.assert_allclose(model(image), last[0] @ x + last[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "activation, image_size, channels, dense",
    [
        ("sigmoid", 28, (3, 2), (5,)),
        ("tanh", 7, (3,), (4, 5)),
        ("relu", 2, (), (4, 5)),
        ("leaky_relu", 3, (2, 1, 3, 2), (2, 4, 3)),
    ],
)
def test_conv_net_computes_what_its_layers_do(activation, image_size, channels, dense, getkey):
    """Value and derivatives, for a batch: the matrix products against Equinox's own convolutions."""
    function = ACTIVATIONS[activation]
    model = _nudged(ConvNet(image_size, channels, dense, function, key=getkey()), getkey())
    images = jr.normal(getkey(), (2, image_size**2))

    def with_equinox(model, x):
        x = x.reshape(1, image_size, image_size)
        *hidden, last = model.layers
        for layer in hidden:
            x = function(layer(x if isinstance(layer, eqx.nn.Conv2d) else x.ravel()))
        return last(x.ravel())

    @eqx.filter_jit
    def sum_of_squares(apply):
        return eqx.filter_value_and_grad(lambda m: jnp.sum(jax.vmap(apply, (None, 0))(m, images) ** 2))(model)

    expected, expected_grads = sum_of_squares(with_equinox)
    actual, grads = sum_of_squares(lambda model, x: model(x))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert_trees_close(grads, expected_grads, rtol=1e-4, atol=1e-5)


def test_conv_net_starts_glorot_uniform(getkey):
    """Uniform within ±√(6 / (fan in + fan out)), a kernel's fans counting its nine entries."""
    conv, dense = ConvNet(4, (300,), (100,), jnp.tanh, key=getkey()).layers
    for layer, fans in ((conv, 9 + 9 * 300), (dense, 4 * 300 + 100)):
        bound = np.sqrt(6 / fans)
        weight = np.asarray(layer.weight)
        assert 0.99 * bound < np.abs(weight).max() <= bound
        np.testing.assert_allclose(weight.std(), bound / np.sqrt(3), rtol=0.03)
        np.testing.assert_array_equal(layer.bias, 0)


def test_mnist_conv_net_has_a_group_per_layer():
    """Two convolutions and a dense layer: 28, 14, 7 pixels, and 8·7·7 inputs to the last."""
    shapes = params_shapes(MNIST((), conv_channels=(4, 8), data="embedded"))
    assert [x.shape for x in jax.tree.leaves(shapes)] == [
        *((4, 1, 3, 3), (4, 1, 1), (8, 4, 3, 3), (8, 1, 1), (10, 392), (10,))
    ]
    paths = ["layers.0", "layers.0", "layers.1", "layers.1", "layers.2", "layers.2"]
    assert [by_layer(path, x) for path, x in jax.tree.leaves_with_path(shapes)] == paths


@pytest.mark.parametrize("name", ["mnist", "mnist_conv", "mnist_sigmoid_output"])
def test_families_built_alike_share_one_program(name, getkey):
    traces = []

    @eqx.filter_jit
    def loss(family, key):
        traces.append(name)
        objective = family.sample(key)
        return objective.loss(objective.init(key), 0, key)

    first, second, key = FAMILIES[name](), FAMILIES[name](), getkey()
    assert eqx.tree_equal(first, second)
    assert loss(first, key) == loss(second, key)
    assert len(traces) == 1


def test_sigmoid_output_is_its_formula(getkey):
    """p_i = σ(z_i) / Σ_j σ(z_j) in double precision; ln 10 for zero logits; finite for huge ones."""
    labels = jnp.arange(8, dtype=jnp.uint8)
    images = jr.randint(getkey(), (8, 28, 28), 0, 256).astype(jnp.uint8)
    with jax.enable_x64(True):
        model = to_float64(MLP((784, 10), jnp.tanh, key=getkey()))
        logits = np.asarray(images, np.float64).reshape(8, 784) / 255 @ np.asarray(model.layers[0].weight).T
        outputs = 1 / (1 + np.exp(-logits))
        expected = -np.mean(np.log((outputs / outputs.sum(1, keepdims=True))[np.arange(8), np.arange(8)]))
        actual = digit_sigmoid_cross_entropy(model, (images, labels))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)  # the pixels are in single precision
        assert abs(actual - digit_cross_entropy(model, (images, labels))) > 1e-3
    # With an image of zeros the logits are the bias.
    black = jnp.zeros((1, 28, 28), jnp.uint8)
    for bias, loss in ((jnp.zeros(10), np.log(10)), (1e4 * (jnp.arange(10.0) - 20), 1e4 * 9)):
        one = eqx.tree_at(lambda m: m.layers[-1].bias, MLP((784, 10), jnp.tanh, key=getkey()), bias)
        actual = digit_sigmoid_cross_entropy(one, (black, labels[:1]))
        np.testing.assert_allclose(actual, loss, rtol=1e-6)


def test_mnist_is_the_thesis_network(getkey):
    family = MNIST(data="embedded")
    objective = family.sample(getkey())
    params = objective.init(getkey())
    assert sum(x.size for x in jax.tree.leaves(params)) == 25_450
    assert family.data[0].dtype == jnp.uint8 and family.data[0].shape == (5000, 28, 28)
    assert family.steps_per_epoch == 39
    # All-zero weights make all digits equally likely.
    zeros = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_allclose(objective.loss(zeros, 0, getkey()), np.log(10), rtol=1e-6)


def test_mnist_of_small_images(getkey):
    """64-32-10 on pooled digits; convolutions halve 8 to 4 and 2; variations keep the size."""
    small = MNIST((32,), "mixed", 4, image_size=8, num_examples=50, data="embedded")
    assert [x.shape for x in jax.tree.leaves(params_shapes(small))] == [(32, 64), (32,), (10, 32), (10,)]
    pooled = load_mnist("embedded").pooled(8)
    np.testing.assert_array_equal(small.data[0], pooled.train_images[:50])
    assert eqx.tree_equal(small, MNIST((32,), "mixed", 4, digits=pooled, num_examples=50))
    conv = MNIST((), conv_channels=(2, 3), image_size=8, num_examples=4, batch_size=2, data="embedded")
    objective = conv.sample(getkey())
    assert np.isfinite(objective.loss(objective.init(getkey()), 0, getkey()))
    for family, images in ((small, 64), (conv, 1)):
        for name, other in family.variations().items():
            assert jax.tree.leaves(params_shapes(other))[0].shape[1] == images, name


def test_mnist_loss_is_cross_entropy_of_the_minibatch(getkey):
    family = MNIST((2,), batch_size=4, num_examples=50, data="embedded")
    key = getkey()
    objective = family.sample(key)
    params = objective.init(key)
    indices = np.asarray(minibatch_indices(7, key, num_examples=50, batch_size=4))
    images, labels = (np.asarray(x)[indices] for x in family.data)
    logits = jax.vmap(objective.model(params))(jnp.asarray(images.reshape(4, 784) / 255, jnp.float32))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean(np.log(probabilities[np.arange(4), labels]))
    np.testing.assert_allclose(objective.loss(params, 7, key), expected, rtol=1e-5)


def test_mixed_activations_are_one_program_and_no_coordinates(getkey):
    """Of 200 networks each has one of the activations, about equally often, and the loss that is its own."""
    names = ("tanh", "relu", "leaky_relu")

    def make(activation):
        return MNIST((2,), activation, 4, num_examples=50, data="embedded")

    mixed = make(names)
    batch = sample_objectives(mixed, jr.split(getkey(), 200))
    indices = batch.own.static.activation.index
    counts = np.bincount(indices, minlength=3)
    assert counts.shape == (3,) and np.all(counts > 40)
    assert count_coordinates(mixed) == 784 * 2 + 2 + 2 * 10 + 10

    key, params = getkey(), mixed.sample(getkey()).init(getkey())
    losses = jax.vmap(lambda own: batch.select(own).loss(params, 0, key))(batch.own)
    for i, name in enumerate(names):
        alone = make(name).sample(getkey())
        expected = alone.loss(_as_params_of(alone, params), 0, key)
        np.testing.assert_allclose(losses[indices == i], expected, rtol=1e-6)


def _as_params_of(objective, params):
    structure = jax.tree.structure(objective.init(jr.key(0)))
    return jax.tree.unflatten(structure, jax.tree.leaves(params))


def test_sgd_learns_the_digits(getkey):
    """Plain SGD reaches a loss far below ln 10 on real digits: data and labels belong together."""
    objective = MNIST(data="embedded").sample(getkey())
    params, key = objective.init(getkey()), getkey()

    @jax.jit
    def step(params, t):
        loss, grads = jax.value_and_grad(objective.loss)(params, t, key)
        return optax.apply_updates(params, jax.tree.map(lambda g: -0.5 * g, grads)), loss

    losses = jax.lax.scan(step, params, jnp.arange(100))[1]
    assert np.mean(losses[-10:]) < 0.7


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Quadratic(0), "dim=0"),
        (lambda: Quadratic(2, theta_std=-1.0), "theta_std=-1.0"),
        (lambda: MNIST(activation="cube", data="embedded"), "sigmoid, tanh, relu, leaky_relu"),
        (lambda: MNIST(activation=("relu", "cube"), data="embedded"), "sigmoid, tanh, relu, leaky_relu"),
        (lambda: MNIST(output="cube", data="embedded"), "softmax, sigmoid"),
        (lambda: MNIST((0,), data="embedded"), r"hidden_sizes=\(0,\)"),
        (lambda: MNIST(conv_channels=(8, 0), data="embedded"), r"conv_channels=\(8, 0\)"),
        (lambda: ConvNet(28, (8,), (), jnp.tanh, key=jr.key(0)), r"dense_sizes=\(\)"),
        (lambda: MNIST(batch_size=5001, data="embedded"), "batch_size=5001"),
        (lambda: FromModel(len, lambda m, b: m, (jnp.ones(3), jnp.ones(4)), 2), r"\[3, 4\]"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(Exception, match=message):
        make()
