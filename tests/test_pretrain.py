from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import LEARNED, assert_trees_close, stop_at

import l2o_eqx as l2o
from l2o_eqx.optimizers import AbstractOptimizer, CoordinatewiseLSTM, FromOptax, PerLayer
from l2o_eqx.preprocessors import SignedLog

TINY: dict[str, Any] = {"num_steps": 2, "batch_size": 4, "num_samples": 20}


class Descent(AbstractOptimizer):
    """Gradient descent with a learned step size, in the first `patience` steps; it then stands still."""

    rate: jax.Array
    learning_rate: float = eqx.field(static=True, default=0.5)
    patience: int = eqx.field(static=True, default=1000)

    def init(self, params):
        del params
        return jnp.int32(0)

    def update(self, grads, state, params, *, value=None, key=None):
        del params
        rate = jnp.where(state < self.patience, self.rate, 0.0)
        return jax.tree.map(lambda g: -rate * g, grads), state + 1


def lstm(key):
    return CoordinatewiseLSTM((3,), SignedLog(), 0.01, key=key)


# The loss.


@pytest.mark.parametrize("omega", [0.0, 2.0, 3.5])
def test_the_loss_is_equation_5_11(omega):
    rng = np.random.default_rng(0)
    updates, targets = rng.normal(size=(2, 3, 5))
    updates[0, 0] = targets[1, 1] = updates[2, 2] = targets[2, 2] = 0.0
    expected = 0.0
    for g, target in zip(updates.ravel(), targets.ravel(), strict=True):
        sign = 1 if g * target > 0 else -1 if g * target < 0 else 0
        expected += abs(g - target) * np.exp(-omega * sign) / 15
    with jax.enable_x64(True):
        value = l2o.sign_weighted_loss(jnp.asarray(updates), jnp.asarray(targets), omega)
        assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    if omega == 0:
        np.testing.assert_allclose(value, np.mean(np.abs(updates - targets)), rtol=1e-12)


def test_the_loss_has_a_finite_derivative_where_its_parts_have_none():
    targets = jnp.array([0.5, -0.5, 0.0, 2.0])
    updates = jnp.array([0.0, 0.0, 0.0, 2.0])
    slopes = jax.grad(l2o.sign_weighted_loss)(updates, targets)
    np.testing.assert_array_equal(slopes, [-0.25, 0.25, 0, 0])


def test_signs_of_tiny_numbers_count():
    tiny = jnp.float32(1e-30)
    np.testing.assert_allclose(l2o.sign_weighted_loss(tiny, -tiny), 2e-30 * np.exp(2), rtol=1e-6)


# The report.


@pytest.mark.parametrize(
    ("rate", "agreement", "error"), [(0.5, 1, 0), (0.75, 1, 0.5), (-0.5, 0, 2), (0, 0, 1)]
)
def test_the_report_knows_gradient_descent(rate, agreement, error, getkey):
    report = l2o.pretraining_report(Descent(jnp.float32(rate)), num_samples=50, key=getkey())
    assert (report.sign_agreement, report.relative_error) == (agreement, error)


def test_the_report_takes_any_optimizer_and_all_steps(getkey):
    sgd = l2o.pretraining_report(FromOptax(optax.sgd(0.1)), learning_rate=0.1, num_samples=50, key=getkey())
    assert sgd.sign_agreement == 1 and sgd.relative_error < 1e-6
    tired = Descent(jnp.float32(0.5), patience=3)
    assert l2o.pretraining_report(tired, num_steps=4, num_samples=50, key=getkey()).sign_agreement == 0.75
    assert l2o.pretraining_report(tired, num_steps=3, num_samples=50, key=getkey()).sign_agreement == 1


# The loop.


@pytest.mark.parametrize(
    ("loss", "rate"), [("sign-weighted", 0.8), ("sign-weighted", -0.2), ("squared", 0.8)]
)
def test_an_update_follows_the_gradient_of_the_loss(loss, rate, getkey):
    """For g = −r·∇ the loss and its derivative by r are known up to the mean of |∇| or ∇²."""
    meta_rate = 1e-3
    solution = l2o.pretrain(
        Descent(jnp.float32(rate)),
        loss=loss,
        input_std=0.1,
        num_steps=1,
        batch_size=5000,
        num_samples=10_000,
        meta_optimizer=optax.sgd(meta_rate),
        key=getkey(),
    )
    expected = []
    for value in solution.losses:
        off = rate - 0.5
        if loss == "squared":
            expected.append(off**2 * 0.1**2)
            slope = 2 * value / off
        else:
            expected.append(abs(off) * np.exp(-2 * np.sign(rate)) * 0.1 * np.sqrt(2 / np.pi))
            slope = value / off
        rate -= meta_rate * slope
    # Sampling errors of the means of |∇| and ∇² are 1.1 % and 2 %.
    np.testing.assert_allclose(solution.losses, expected, rtol=0.06)
    assert isinstance(solution.optimizer, Descent)
    np.testing.assert_allclose(solution.optimizer.rate, rate, rtol=1e-6)


def test_pretraining_teaches_an_lstm_the_sign(getkey):
    optimizer = CoordinatewiseLSTM((8,), SignedLog(), 0.01, key=getkey())
    before = l2o.pretraining_report(optimizer, key=getkey())
    solution = l2o.pretrain(optimizer, num_samples=128 * 300, key=getkey())
    assert before.sign_agreement < 0.7 and solution.report.sign_agreement > 0.9
    assert solution.report.relative_error < before.relative_error
    again = l2o.pretraining_report(solution.optimizer, key=getkey())
    assert abs(again.sign_agreement - solution.report.sign_agreement) < 0.02


def test_the_state_is_reset_unless_carried(getkey):
    """Exact for three steps in a row: an update of two steps is right at first, and always if reset."""
    kwargs: dict[str, Any] = {"meta_optimizer": optax.sgd(0.0), "key": getkey(), **TINY}
    tired = Descent(jnp.float32(0.5), patience=3)
    reset = l2o.pretrain(tired, **kwargs)
    carried = l2o.pretrain(tired, carry_state=True, **kwargs)
    exact = 1e-9
    assert np.all(reset.losses < exact)
    assert carried.losses[0] < exact and np.all(carried.losses[1:] > 1e-5)


def test_restarts_are_independent(getkey):
    key = getkey()
    batch = Descent(jnp.array([0.1, 0.3, 0.9]), patience=3)
    kwargs: dict[str, Any] = {"carry_state": True, **TINY}
    together = l2o.pretrain(batch, restarts=3, key=key, **kwargs)
    assert together.losses.shape == (3, 5) and together.report.sign_agreement.shape == (3,)
    alone = l2o.pretrain(l2o.select_restart(batch, 1), key=jr.split(key, 3)[1], **kwargs)
    assert_trees_close(l2o.select_restart(together.optimizer, 1), alone.optimizer)
    np.testing.assert_allclose(together.losses[1], alone.losses, rtol=1e-5)
    assert_trees_close(jax.tree.map(lambda x: x[1], together.report), alone.report)


def test_blocks_are_pretrained_as_if_alone(getkey):
    key = getkey()
    lone = {
        "c": Descent(jnp.float32(0.3), 0.1),
        "b": Descent(jnp.float32(0.1)),
        "a": Descent(jnp.float32(0.3), 0.4),
    }
    whole = l2o.pretrain(
        PerLayer({"y": PerLayer({n: lone[n] for n in "cb"}), "x": lone["a"]}), key=key, **TINY
    )
    alone = {name: l2o.pretrain(block, key=key, **TINY) for name, block in lone.items()}
    inner = PerLayer({n: alone[n].optimizer for n in "cb"})
    assert eqx.tree_equal(whole.optimizer, PerLayer({"y": inner, "x": alone["a"].optimizer}))
    losses = [s.losses for s in alone.values()]
    np.testing.assert_allclose(whole.losses, np.mean(losses, axis=0), rtol=1e-6)
    agreements = [s.report.sign_agreement for s in alone.values()]
    np.testing.assert_allclose(whole.report.sign_agreement, np.mean(agreements), rtol=1e-6)


@pytest.mark.parametrize("name", ["learned_momentum", "user_scaled_gradient"])
def test_other_optimizers_are_pretrained(name, getkey):
    """Those whose state is that of a tensor, or no array of coordinates."""
    optimizer = LEARNED[name](getkey())
    solution = l2o.pretrain(optimizer, learning_rate=0.2, carry_state=True, key=getkey(), **TINY)
    assert jax.tree.structure(solution.optimizer) == jax.tree.structure(optimizer)
    assert not eqx.tree_equal(solution.optimizer, optimizer)
    assert np.all(np.isfinite(solution.losses))


def test_same_key_same_bits_and_callbacks_see_all(getkey):
    optimizer, key = lstm(getkey()), getkey()
    kwargs: dict[str, Any] = {"num_steps": 1, "batch_size": 2, "num_samples": 251}
    seen = []
    whole = l2o.pretrain(optimizer, key=key, callbacks=[seen.append], **kwargs)
    assert [(p.update, p.num_updates) for p in seen] == [(100, 125), (125, 125)]
    np.testing.assert_array_equal(np.concatenate([p.losses for p in seen]), whole.losses)
    assert whole.result == "completed" and whole.losses.shape == (125,)

    again = l2o.pretrain(optimizer, key=key, **kwargs)
    assert eqx.tree_equal(whole, again)
    other = l2o.pretrain(optimizer, key=getkey(), **kwargs)
    assert not eqx.tree_equal(whole.optimizer, other.optimizer)

    stopped = l2o.pretrain(optimizer, key=key, callbacks=[stop_at(100)], **kwargs)
    assert stopped.result == "stopped"
    np.testing.assert_array_equal(stopped.losses, whole.losses[:100])
    resumed = l2o.pretrain(optimizer, key=key, state=stopped.state, **kwargs)
    assert eqx.tree_equal(resumed.optimizer, whole.optimizer)
    np.testing.assert_array_equal(resumed.losses, whole.losses[100:])
    with pytest.raises(ValueError, match="state"):
        l2o.pretrain(
            CoordinatewiseLSTM((2,), SignedLog(), 0.01, key=getkey()), key=key, state=stopped.state, **kwargs
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_samples": 127}, "num_samples=127, batch_size=128"),
        ({"omega": -1.0}, "omega=-1.0"),
        ({"input_std": 0.0}, "input_std=0.0"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"restarts": 2}, "restarts=2"),
        ({"optimizer": FromOptax(optax.sgd(0.1))}, "nothing to train"),
        ({"optimizer": LEARNED["user_scaled_gradient"](None)}, "ScaledGradient has no `learning_rate`"),
    ],
)
def test_mistakes_are_named(arguments, message, getkey):
    with pytest.raises(ValueError, match=message):
        l2o.pretrain(**{"optimizer": Descent(jnp.float32(0.1)), "key": getkey(), **arguments})


def test_mistakes_in_the_report_are_named(getkey):
    for arguments, message in [
        ({"num_samples": 0}, "pretraining_report.num_samples"),
        ({"input_std": -1.0}, "pretraining_report.input_std"),
    ]:
        with pytest.raises(ValueError, match=message):
            l2o.pretraining_report(Descent(jnp.float32(0.1)), key=getkey(), **arguments)
    with pytest.raises(ValueError, match="FromOptax has no `learning_rate`"):
        l2o.pretraining_report(FromOptax(optax.sgd(0.1)), key=getkey())


# The losses as a file and as a figure.


def test_losses_are_read_as_written_and_drawn(getkey, tmp_path):
    batch = Descent(jnp.array([0.1, 0.3]))
    for optimizer, restarts in ((batch, 2), (l2o.select_restart(batch, 0), None)):
        solution = l2o.pretrain(optimizer, restarts=restarts, key=getkey(), **{**TINY, "num_samples": 404})
        solution.write_losses(tmp_path / "losses.csv")
        losses = l2o.plots.read_pretraining(tmp_path / "losses.csv")
        np.testing.assert_array_equal(losses.astype(np.float32), solution.losses)
        *thin, bold = l2o.plots.plot_pretraining(losses).axes[0].lines
        assert len(thin) == (restarts or 1)
        # 101 updates: every point of the bold line is the median of two neighbors.
        medians = np.median(np.atleast_2d(losses), axis=0)
        np.testing.assert_allclose(np.asarray(bold.get_ydata()), (medians[1:] + medians[:-1]) / 2)
        np.testing.assert_allclose(np.asarray(bold.get_xdata()), np.arange(1.5, 101))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "losses.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no file of a pretraining"):
        l2o.plots.read_pretraining(tmp_path / "losses.csv")
