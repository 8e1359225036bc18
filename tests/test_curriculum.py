"""Training on horizons one after the other."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import ScaledGradient, stop_at
from test_snapshots import MARCH, family, rates

import l2o_eqx
from l2o_eqx.objectives import Quadratic
from l2o_eqx.strategies import EveryWindow

# No better meta-optimizer than one that passes the best rate: validations stagnate at a known place.
CURRICULUM = l2o_eqx.Curriculum((2, 4, 8), every=1, patience=2, num_objectives=4)


def train(optimizer: ScaledGradient, bowls, **settings: Any):
    kwargs = {"curriculum": CURRICULUM, "super_epochs": 30, "key": jr.key(0), **settings}
    return l2o_eqx.train_curriculum(optimizer, bowls, EveryWindow(2), meta_optimizer=MARCH, **kwargs)


def test_it_goes_on_when_the_next_horizon_no_longer_improves():
    """Every horizon ends `patience` validations after its best, and the next one begins from that best."""
    bowls = family()
    solution = train(rates(0.0), bowls)
    assert solution.result == "completed"
    assert [stage.horizon for stage in solution.stages] == [2, 4, 8]
    end = 0
    for i, stage in enumerate(solution.stages):
        best, done = stage.solution.best, int(stage.solution.state.super_epoch)
        assert best is not None and done == int(best.super_epoch) + 2
        assert stage.solution.metrics["final_loss"].shape == (done - end,)
        # Judged on the next horizon, the last one on itself.
        validation = l2o_eqx.Validation(bowls, (4, 8, 8)[i], 4, every=1, key=jr.fold_in(jr.key(0), 2**31 - 2))
        np.testing.assert_array_equal(validation.score(best.optimizer), best.score)
        if i:
            # On the same bowls no rate is better than the best so far: nothing but patience is spent.
            assert done == end + 2 and int(best.super_epoch) == end
        end = done
    assert end < 30


@pytest.mark.parametrize("restarts", [None, 2])
def test_it_goes_on_from_every_state_as_if_it_had_not_ended(restarts):
    """In the middle of a horizon, at its end, and at the very end."""
    optimizer, bowls, states = rates(*(0.0, 0.25)[: restarts or 1]), family(), []
    settings: dict[str, Any] = {"restarts": restarts}
    whole = train(optimizer, bowls, callbacks=[lambda p: states.append(p.state)], **settings)
    assert len(states) == int(whole.state.super_epoch)
    ends = np.cumsum([stage.solution.metrics["final_loss"].shape[0] for stage in whole.stages]).tolist()
    for done in sorted({1, ends[0] - 1, ends[0], ends[0] + 1, ends[1], ends[2]}):
        found = train(optimizer, bowls, state=states[done - 1], **settings)
        assert eqx.tree_equal(found.optimizer, whole.optimizer) and eqx.tree_equal(found.best, whole.best)
        known, of_whole = (
            [row for stage in one.stages for row in stage.solution.metrics.get("final_loss", [])]
            for one in (found, whole)
        )
        np.testing.assert_array_equal([*of_whole[:done], *known], of_whole)
    # The state of a solution says which horizon it is of, as those of checkpoints do.
    ended = train(optimizer, bowls, callbacks=[stop_at(ends[0] + 1)], **settings)
    assert [stage.horizon for stage in ended.stages] == [2, 4] and ended.result == "stopped"
    assert eqx.tree_equal(train(optimizer, bowls, state=ended.state, **settings).optimizer, whole.optimizer)
    with pytest.raises(l2o_eqx.ArgumentError, match="another `key`"):
        train(optimizer, bowls, state=states[0], key=jr.key(5), **settings)


def test_each_horizon_compiles_once():
    """Three trainings, which trace the loss for the steps and the first losses, and two validations."""
    bowls = family()
    train(rates(0.0), bowls)
    assert len(bowls.traces) == 3 * 2 + 2


def test_restarts_go_on_together_each_from_its_own_best():
    bowls = family()
    solution = train(rates(0.0, 0.25), bowls, restarts=2)
    first = solution.stages[0].solution.best
    assert first is not None
    epochs = np.asarray(first.super_epoch)
    assert epochs[0] > epochs[1] and int(solution.stages[0].solution.state.super_epoch) == epochs[0] + 2


def test_limits_and_wishes_end_it():
    bowls = family()
    short = train(rates(0.0), bowls, super_epochs=1)
    assert short.result == "completed" and len(short.stages) == 1
    stopped = train(rates(0.0), bowls, callbacks=[stop_at(1)])
    assert stopped.result == "stopped" and len(stopped.stages) == 1


@pytest.mark.parametrize(
    "settings, message",
    [({"horizons": ()}, "increase"), ({"horizons": (4, 2)}, "increase"), ({"patience": 0}, "patience=0")],
)
def test_errors_name_the_argument(settings, message):
    with pytest.raises(ValueError, match=message):
        l2o_eqx.Curriculum(**{"horizons": (2, 4), **settings})


# Imitation.


class Rate(l2o_eqx.optimizers.AbstractOptimizer):
    """Gradient descent at a learned rate."""

    rate: jax.Array

    def init(self, params):
        return None

    def update(self, grads, state, params, *, value=None, key=None):
        return jax.tree.map(lambda g: -self.rate * g, grads), state


def test_imitation_of_gradient_descent_is_exact():
    """The error of a rate r is (r/0.1 − 1)², whatever the gradients: the first is known, the last is zero."""
    solution: Any = l2o_eqx.imitate(
        Rate(jnp.asarray(0.15)),
        optax.sgd(0.1),
        Quadratic(3),
        num_steps=6,
        window=3,
        super_epochs=30,
        num_objectives=2,
        meta_optimizer=optax.sgd(2e-3),
        key=jr.key(0),
    )
    assert solution.losses.shape == (60,)
    np.testing.assert_allclose(solution.losses[0], 0.25, rtol=1e-4)
    np.testing.assert_allclose(solution.optimizer.rate, 0.1, rtol=1e-4)


def test_an_imitator_of_adam_starts_as_well_as_adam():
    """The error falls, and with it the loss that the optimizer reaches: near Adam's, far from the start's."""
    kwargs: Any = {"num_steps": 20, "window": 10, "num_objectives": 8, "super_epochs": 80, "restarts": 2}
    preprocessor = l2o_eqx.preprocessors.AdamLike()
    make = lambda key: l2o_eqx.optimizers.CoordinatewiseLSTM((6,), preprocessor, 0.1, key=key)  # noqa: E731
    optimizer = jax.tree.map(
        lambda *x: jnp.stack(x) if hasattr(x[0], "shape") else x[0], *map(make, jr.split(jr.key(0)))
    )
    bowls, adam = Quadratic(4), optax.adam(0.1)
    meta_optimizer = optax.adam(1e-2)
    solution = l2o_eqx.imitate(optimizer, adam, bowls, meta_optimizer=meta_optimizer, key=jr.key(1), **kwargs)
    assert solution.losses.shape == (2, 160)
    assert np.all(solution.losses[:, -10:].mean(-1) < 0.2) and np.all(solution.losses[:, 0] > 0.5)

    def median(who, restarts=None):
        run = l2o_eqx.evaluate(who, bowls, num_steps=20, num_objectives=32, restarts=restarts, key=jr.key(2))
        return np.median(run.final_losses, axis=-1)

    assert np.all(median(solution.optimizer, 2) < 1.3 * median(adam))


def test_a_baseline_that_stands_still_does_not_count():
    solution = l2o_eqx.imitate(
        Rate(jnp.asarray(0.1)),
        optax.sgd(0.0),
        Quadratic(2),
        num_steps=4,
        window=2,
        super_epochs=2,
        key=jr.key(0),
    )
    np.testing.assert_array_equal(solution.losses, 0.0)


@pytest.mark.parametrize("settings, message", [({"window": 0}, "window=0"), ({"window": 9}, "longer than")])
def test_mistakes_in_imitation(settings, message):
    with pytest.raises(ValueError, match=message):
        l2o_eqx.imitate(
            Rate(jnp.asarray(0.1)), optax.sgd(0.1), Quadratic(2), num_steps=8, key=jr.key(0), **settings
        )
