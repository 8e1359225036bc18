"""Several families in one training."""

from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import LEARNED, CountedFamily, Traces

import l2o_eqx
from l2o_eqx.objectives import Booth, Mixture, Quadratic, Rosenbrock
from l2o_eqx.optimizers import PerLayer, by_leaf
from l2o_eqx.strategies import EveryWindow

KEY = jr.key(3)


def three(**weights):
    families = {"a": Quadratic(2), "b": Quadratic(3), "c": Booth()}
    return Mixture(families, weights or None)


def train(family, optimizer=None, super_epochs=6, **settings: Any):
    optimizer = LEARNED["lstm_identity"](jr.key(0)) if optimizer is None else optimizer
    settings = {"num_steps": 6, "num_objectives": 2, "key": KEY} | settings
    return l2o_eqx.meta_train(optimizer, family, EveryWindow(3), super_epochs=super_epochs, **settings)


def test_turns_keep_to_the_weights_all_along():
    mixture = three(a=1.0, b=2.0, c=5.0)
    np.testing.assert_allclose(mixture.shares, [1 / 8, 2 / 8, 5 / 8])
    turns = mixture.turns(400, KEY)
    for count in range(1, 401):
        so_far = Counter(turns[:count])
        for name, share in zip(mixture.families, mixture.shares, strict=True):
            assert abs(so_far[name] - share * count) < 3
    assert mixture.turns(150, KEY) == turns[:150]
    assert mixture.turns(400, jr.key(4)) != turns


def test_a_training_is_that_of_the_families_in_turn():
    """Each super epoch is the one that a training on its family alone would go on with."""
    mixture = three()
    whole = train(mixture, super_epochs=5)
    turns = [name for name in whole.metrics if "/" in name]
    assert len(turns) == 9
    state = None
    for done in range(5):
        (name,) = [n for n in mixture.families if np.isfinite(whole.metrics[f"meta_loss/{n}"][done])]
        alone = train(mixture.families[name], super_epochs=done + 1, state=state)
        state = alone.state
        for metric in ("meta_loss", "mean_loss", "final_loss"):
            assert alone.metrics[metric][0] == whole.metrics[metric][done]
            assert whole.metrics[f"{metric}/{name}"][done] == whole.metrics[metric][done]
    # What is remembered of the way there is of families in turn, and of one alone; the rest is the same.
    assert state is not None and eqx.tree_equal(whole.state.alone(), state.alone())
    # Every row has the numbers of one family alone.
    finite = [np.isfinite(whole.metrics[f"final_loss/{n}"]) for n in mixture.families]
    np.testing.assert_array_equal(np.sum(finite, axis=0), np.ones(5))


def test_it_goes_on_and_tells_whose_turn_it_was():
    mixture, seen = three(), []
    whole = train(mixture, callbacks=[lambda progress: seen.append(progress.family)])
    again = train(mixture, state=train(mixture, super_epochs=2).state)
    assert eqx.tree_equal(whole.state, again.state)
    turns = seen[1:] if seen[0] == "" else seen
    assert {*turns} == {"a", "b", "c"}
    for done, name in enumerate(turns):
        assert np.isfinite(whole.metrics[f"final_loss/{name}"][done])


def test_each_family_is_compiled_once():
    families = {name: CountedFamily(Traces()) for name in "xy"}
    counts = []
    train(
        Mixture(families),
        super_epochs=8,
        callbacks=[lambda progress: counts.append([len(f.traces) for f in families.values()])],
    )
    # Once each has had its turn, nothing is traced again.
    assert min(counts[-1]) > 0
    first = next(i for i, count in enumerate(counts) if min(count) > 0)
    assert counts[first] == counts[-1] and first < 6


def test_restarts_and_failed_objectives():
    """Restarts are trainings of their own; a failed objective tells which family draws it again."""

    class Failing(Quadratic):
        def sample(self, key):
            objective = super().sample(key)
            return eqx.tree_at(lambda f: f.matrix, objective, objective.matrix * jnp.nan)

    optimizers = [LEARNED["lstm_identity"](jr.key(i)) for i in range(2)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *optimizers)
    mixture = Mixture({"good": Booth(), "bad": Failing(2)})
    with pytest.warns(l2o_eqx.SkippedUpdatesWarning, match="first super epoch, on 'bad', was finite"):
        solution = train(mixture, batch, super_epochs=4, restarts=2)
    assert solution.metrics["final_loss/good"].shape == (4, 2)
    assert solution.failed and {failed.family for failed in solution.failed} == {"bad"}
    assert {failed.restart for failed in solution.failed} == {0, 1}


def test_validation_on_families_that_are_not_trained_on():
    mixture = Mixture({"a": Booth(), "b": Rosenbrock(2)}, {"a": 1.0, "b": 3.0})
    validation = l2o_eqx.Validation(mixture, 5, 4, every=2, key=jr.key(1))
    best = train(Quadratic(2), super_epochs=2, validation=validation).best
    assert best is not None
    scores = [
        l2o_eqx.Validation(family, 5, 4, key=jr.key(1)).score(best.optimizer)
        for family in mixture.families.values()
    ]
    np.testing.assert_allclose(best.score, scores[0] ** 0.25 * scores[1] ** 0.75, rtol=1e-5)


def test_relative_scores():
    """With ε, a score is the geometric mean of f/f_1 + ε: the same for c·f, and no better below ε."""
    family, optimizer = Quadratic(2), LEARNED["lstm_identity"](jr.key(0))
    relative = l2o_eqx.Validation(family, 5, 4, eps=0.5, key=jr.key(1))
    losses = np.asarray(
        l2o_eqx.evaluate(optimizer, family, num_steps=5, num_objectives=4, key=jr.key(1)).losses
    )
    expected = np.exp(np.mean(np.log(losses[:, -1] / losses[:, 0] + 0.5)))
    np.testing.assert_allclose(relative.score(optimizer), expected, rtol=1e-5)


def test_zero_gradients_are_told_once_every_family_had_its_turn():
    """An optimizer with a part per leaf: a family without that leaf says nothing about its part."""
    parts = {name: LEARNED["lstm_identity"](jr.key(i)) for i, name in enumerate(("params", "0", "1"))}
    optimizer = PerLayer(parts, by_leaf)
    from l2o_eqx.objectives import Sum

    mixture = Mixture({"one": Quadratic(2), "two": Sum(Quadratic(2), Quadratic(3))})
    solution = train(mixture, optimizer, super_epochs=6)
    assert solution.without_gradient == ()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Mixture({}), "at least one family"),
        (lambda: Mixture({"a": three()}), "none that is a mixture"),
        (lambda: three(a=1.0), "above zero for each of a, b, c"),
        (lambda: three(a=1.0, b=0.0, c=1.0), "'b': 0.0"),
        (lambda: three().sample(KEY), "take one of its `families`, a, b, c"),
        (lambda: l2o_eqx.count_coordinates(three()), "different shapes"),
        (lambda: l2o_eqx.Validation(three(), 5, eps=-1.0, key=KEY), "eps=-1.0"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
