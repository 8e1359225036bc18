import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import LEARNED, OPTIMIZERS, VARIANTS, assert_trees_close, given_to, sparing

import l2o_eqx
from l2o_eqx.optimizers import (
    Blocks,
    CoordinatewiseLSTM,
    FromOptax,
    HierarchicalRNN,
    PerLayer,
    by_kind,
    by_leaf,
    by_rank,
    by_shape,
)
from l2o_eqx.preprocessors import AdamLike, SignedLog

PARAMS = {"layers": [{"w": jnp.ones((3, 2)), "b": jnp.zeros(3)}, {"w": jnp.ones((1, 3))}]}


def params_of(name):
    """Params whose layers a `PerLayer` of the list has labels for."""
    if name in ("per_layer", "clipped_per_layer"):
        return {"layers": tuple(PARAMS["layers"])}
    return {**PARAMS, "scalar": jnp.array(0.5)}


def grads_like(params, key):
    leaves, treedef = jax.tree.flatten(params)
    keys = jr.split(key, len(leaves))
    return jax.tree.unflatten(treedef, [jr.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


# That with matrices does all that the plain AdamMLP does, one operation after the other, which takes long.
@pytest.mark.parametrize(
    "name", sparing(OPTIMIZERS, but=VARIANTS | {"hierarchical_rnn", "adam_mlp_matrices"})
)
def test_shapes_dtypes_and_jit(name, getkey):
    optimizer, params = OPTIMIZERS[name](getkey()), params_of(name)
    state, grads, extra = optimizer.init(params), grads_like(params, getkey()), given_to(optimizer)
    updates, next_state = optimizer.update(grads, state, params, **extra)
    assert_trees_close(jax.tree.map(jnp.zeros_like, updates), jax.tree.map(jnp.zeros_like, params))
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, next_state)]
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, *shapes))
    jitted, _ = eqx.filter_jit(optimizer.update)(grads, state, params, **extra)
    assert_trees_close(jitted, updates, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sparing(OPTIMIZERS, but=VARIANTS))
def test_vmap_is_loop(name, getkey):
    optimizer, params = OPTIMIZERS[name](getkey()), params_of(name)
    grads = [grads_like(params, getkey()) for _ in range(3)]
    state = optimizer.init(params)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)
    # Compiled: operations one by one would each be a program of their own.
    update = jax.jit(lambda g: optimizer.update(g, state, params, **given_to(optimizer))[0])
    batched = jax.jit(jax.vmap(update))(stacked)
    for i, g in enumerate(grads):
        expected = update(g)
        one = jax.tree.map(lambda x, i=i: x[i], batched)
        assert_trees_close(one, expected, rtol=1e-4, atol=1e-5)


SHAPES = {"params": jax.ShapeDtypeStruct((2,), "float32")}
COORDINATEWISE = [n for n, make in LEARNED.items() if isinstance(make(jr.key(0)).layout(SHAPES), Blocks)]


@pytest.mark.parametrize("name", COORDINATEWISE)
def test_coordinatewise_means_blocks_and_permutations(name, getkey):
    """Any part of the coordinates, with its part of the state, gives its part of the updates."""
    optimizer = LEARNED[name](getkey())
    params = jr.normal(getkey(), (10,))
    state = optimizer.init(params)
    for _ in range(2):
        grads = jr.normal(getkey(), (10,))
        updates, next_state = optimizer.update(grads, state, params)
        for part in (slice(0, 3), slice(3, 10), jr.permutation(getkey(), 10)):
            part_state = jax.tree.map(lambda x, part=part: x[..., part], state)
            part_updates, _ = optimizer.update(grads[part], part_state, params[part])
            assert_trees_close(part_updates, updates[part], rtol=1e-4, atol=1e-5)
        state = next_state


def test_lstm_is_its_equations(getkey):
    """Two layers, three steps, written out in NumPy: gates i, f, g, o; the update is α·Σ h."""
    optimizer = CoordinatewiseLSTM((5, 4), SignedLog(), learning_rate=0.3, key=getkey())
    params = jnp.zeros((2, 3))
    state = optimizer.init(params)
    weights = [
        tuple(np.asarray(x, np.float64) for x in (c.weight_ih, c.weight_hh, c.bias)) for c in optimizer.cells
    ]
    memory = [[(np.zeros(n), np.zeros(n)) for _ in range(6)] for n in (5, 4)]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    for _ in range(3):
        grads = jr.normal(getkey(), (2, 3))
        updates, state = optimizer.update(grads, state, params)
        for k, g in enumerate(np.asarray(grads, np.float64).ravel()):
            x = np.array([np.log(abs(g)) / 10 * np.sign(g)])
            for layer, (w_ih, w_hh, bias) in enumerate(weights):
                h, c = memory[layer][k]
                i, f, cell, o = np.split(w_ih @ x + w_hh @ h + bias, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(cell)
                x = sigmoid(o) * np.tanh(c)
                memory[layer][k] = (x, c)
            np.testing.assert_allclose(updates.ravel()[k], 0.3 * x.sum(), rtol=2e-5, atol=1e-6)


def test_lstm_agrees_with_equinox_cell(getkey):
    optimizer = CoordinatewiseLSTM((6,), learning_rate=1.0, key=getkey())
    grads = jr.normal(getkey(), (4,))
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    hidden, _ = jax.vmap(lambda g: optimizer.cells[0](g[None], (jnp.zeros(6), jnp.zeros(6))))(grads)
    np.testing.assert_allclose(updates, hidden.sum(1), rtol=1e-5, atol=1e-6)


def test_default_lstm_has_5040_meta_parameters(getkey):
    """As the thesis's network: 6 tensors; no coordinate can move further than α·20 in a step."""
    optimizer = CoordinatewiseLSTM(key=getkey())
    assert l2o_eqx.count_meta_parameters(optimizer) == 5040
    assert len(jax.tree.leaves(eqx.filter(optimizer, eqx.is_inexact_array))) == 6
    grads = 1e6 * jr.normal(getkey(), (50,))
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    assert np.max(np.abs(updates)) <= 0.001 * 20


def test_replacing_weights_changes_updates(getkey):
    optimizer, grads = CoordinatewiseLSTM((3,), key=getkey()), jnp.ones(2)
    zeroed = eqx.tree_at(
        lambda o: (o.cells[0].weight_ih, o.cells[0].bias),
        optimizer,
        replace_fn=jnp.zeros_like,
    )
    assert np.all(zeroed.update(grads, zeroed.init(grads), grads)[0] == 0)
    assert np.all(optimizer.update(grads, optimizer.init(grads), grads)[0] != 0)


def test_per_layer_with_one_label_is_the_optimizer(getkey):
    single = LEARNED["lstm_adam_like"](getkey())
    wrapped = PerLayer({"all": single}, lambda path, leaf: "all")
    params, grads = params_of("single"), grads_like(params_of("single"), getkey())
    expected, _ = single.update(grads, single.init(params), params)
    actual, _ = wrapped.update(grads, wrapped.init(params), params)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, e)


def test_per_layer_gives_each_group_its_own(getkey):
    """Weight and bias of a layer share an optimizer; changing one layer's leaves the other's alone."""

    def make(key):
        return CoordinatewiseLSTM((3,), key=key)

    per_layer = PerLayer.make(make, PARAMS, key=getkey())
    assert sorted(per_layer.optimizers) == ["layers.0", "layers.1"]
    grads = grads_like(PARAMS, getkey())
    before, _ = per_layer.update(grads, per_layer.init(PARAMS), PARAMS)
    changed = eqx.tree_at(lambda o: o.optimizers["layers.1"], per_layer, make(getkey()))
    after, _ = changed.update(grads, changed.init(PARAMS), PARAMS)
    assert_trees_close(after["layers"][0], before["layers"][0], rtol=0, atol=0)
    assert not np.allclose(after["layers"][1]["w"], before["layers"][1]["w"])
    assert len(PerLayer.make(make, PARAMS, label=by_leaf, key=getkey()).optimizers) == 3
    assert sorted(PerLayer.make(make, PARAMS, label=by_rank, key=getkey()).optimizers) == [
        "rank1",
        "rank2",
    ]


@pytest.mark.parametrize(
    "label, groups",
    [
        (by_shape, {"2x1x3x3", "2x1x1", "10x392", "10", "scalar"}),
        (by_kind, {"convolution", "dense"}),
    ],
)
def test_groups_of_a_convolutional_network_survive_a_file(label, groups, getkey, tmp_path):
    """A kernel and its bias are one kind; shapes tell all four arrays apart. Both labels have names."""

    def make(key):
        return CoordinatewiseLSTM((2,), key=key)

    conv, dense = eqx.nn.Conv2d(1, 2, 3, 2, 1, key=getkey()), eqx.nn.Linear(392, 10, key=getkey())
    params = {"layers": eqx.filter((conv, dense), eqx.is_array), "scalar": jnp.ones(())}
    optimizer = PerLayer.make(make, params, label=label, key=getkey())
    assert {*optimizer.optimizers} == groups
    path = l2o_eqx.save(tmp_path / "optimizer.safetensors", optimizer)
    loaded = l2o_eqx.load(path)
    assert loaded.label is label
    assert_trees_close(loaded, optimizer, rtol=0, atol=0)


def test_per_layer_names_missing_labels(getkey):
    optimizer = PerLayer({"layers.0": LEARNED["lstm_identity"](getkey())})
    with pytest.raises(ValueError, match=r"no optimizer for \['layers.1'\]"):
        optimizer.init(PARAMS)


def test_hierarchical_tells_coordinates_of_each_other(getkey):
    """A gradient in one tensor changes the updates of all others, two steps later: up, and down."""
    optimizer = HierarchicalRNN(3, 4, 2, key=getkey())
    params = [jnp.zeros(2), jnp.zeros(3)]
    update = jax.jit(lambda grads, state: optimizer.update(grads, state, params))

    def third_update(first_grad):
        state = optimizer.init(params)
        for scale in (first_grad, 1.0, 1.0, 1.0):
            updates, state = update([jnp.full(2, scale), jnp.ones(3)], state)
        return updates[1]

    assert np.max(np.abs(third_update(1.0) - third_update(-5.0))) > 0


def test_as_optax_in_an_optax_loop(getkey):
    """The transformation adds up to the same path as `unroll`, also inside a chain."""
    optimizer, objective = LEARNED["lstm_identity"](getkey()), l2o_eqx.objectives.Quadratic(3)
    objective = objective.sample(getkey())
    params, key = objective.init(getkey()), getkey()
    expected = l2o_eqx.unroll(optimizer, objective, params, optimizer.init(params), 4, key=key)
    transformation = optax.chain(l2o_eqx.as_optax(optimizer), optax.scale(1.0))
    state = transformation.init(params)
    for t in range(4):
        grads = jax.grad(objective.loss)(params, t, key)
        updates, state = transformation.update(grads, state)
        params = optax.apply_updates(params, updates)
    assert_trees_close(params, expected.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm_adam_like", "user_looking_lstm"])
def test_as_optax_in_blocks_is_the_optimizer_itself(name, getkey):
    """600 coordinates are three blocks on a CPU."""
    optimizer = LEARNED[name](getkey())
    params = {"w": jr.normal(getkey(), (30, 19)), "b": jr.normal(getkey(), (30,))}
    transformation = l2o_eqx.as_optax(optimizer)
    state, blocked = optimizer.init(params), transformation.init(params)
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
        same, blocked = transformation.update(params, blocked, params)
        assert_trees_close(same, updates, rtol=1e-5, atol=1e-6)


def test_as_optax_without_params(getkey):
    """Optimizers that ignore the params do without; those that need them say so instead of guessing."""
    grads = params_of("per_layer")
    for name in ("lstm_identity", "learned_momentum", "per_layer"):
        transformation = l2o_eqx.as_optax(LEARNED[name](getkey()))
        updates, _ = transformation.update(grads, transformation.init(grads))
        expected, _ = transformation.update(grads, transformation.init(grads), grads)
        assert_trees_close(updates, expected, rtol=0, atol=0)
    decaying = l2o_eqx.as_optax(FromOptax(optax.adamw(0.1)))
    with pytest.raises(ValueError, match="params"):
        decaying.update(grads, decaying.init(grads))


def test_from_optax_is_optax(getkey):
    params, grads = params_of("any"), grads_like(params_of("any"), getkey())
    adam = optax.adam(1e-2)
    expected, _ = adam.update(grads, adam.init(params), params)
    wrapped = FromOptax(adam)
    assert_trees_close(wrapped.update(grads, wrapped.init(params), params)[0], expected)


@pytest.mark.parametrize("name", [n for n in LEARNED if not n.startswith("user")])
def test_save_and_load(name, tmp_path, getkey):
    optimizer = LEARNED[name](getkey())
    path = l2o_eqx.save(tmp_path / "optimizer.safetensors", optimizer)
    loaded = l2o_eqx.load(path)
    assert eqx.tree_equal(loaded, optimizer)


def test_bfloat16_params_keep_their_dtype(getkey):
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)}
    for preprocessor in (SignedLog(), AdamLike()):
        optimizer = CoordinatewiseLSTM((3,), preprocessor, key=getkey())
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        assert updates["a"].dtype == jnp.bfloat16 and updates["b"].dtype == jnp.float32


def test_adam_like_works_in_bfloat16():
    """State and features are float32: 0.999 would round to 1, and the features to 0."""
    grads = jnp.array([0.5, -2.0], jnp.bfloat16)
    features, _ = AdamLike()(grads, AdamLike().init(grads))
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, [[1, 1], [-1, -1]], rtol=1e-2)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda key: CoordinatewiseLSTM((), key=key), r"hidden_sizes=\(\)"),
        (lambda key: CoordinatewiseLSTM((3, 0), key=key), r"hidden_sizes=\(3, 0\)"),
        (lambda key: HierarchicalRNN(0, key=key), "coordinate_size=0"),
        (lambda key: PerLayer({}), "at least one optimizer"),
    ],
)
def test_errors_name_the_argument(make, message, getkey):
    with pytest.raises(ValueError, match=message):
        make(getkey())
