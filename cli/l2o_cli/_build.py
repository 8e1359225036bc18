"""The library's objects out of a configuration: the only place where kinds become classes.

Importing this module starts JAX, so that commands import it when they run.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import PRNGKeyArray

import l2o_eqx as l2o
from l2o_eqx import data, estimators, objectives, optimizers, outputs, preprocessors, strategies, weightings

from . import _config as config
from ._build_meta import make_meta_optimizer, make_validation
from ._errors import UsageError, blaming, label

GROUPS = {
    "layer": optimizers.by_layer,
    "leaf": optimizers.by_leaf,
    "rank": optimizers.by_rank,
    "shape": optimizers.by_shape,
    "kind": optimizers.by_kind,
}


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a configuration describes, ready for the verbs.

    **Arguments:**

    - `config`: as given, but with all resolved that was left to the library or the machine.
    - `data`: what is known of the data set; `None` if there is none.
    """

    config: config.RunConfig
    data: dict[str, Any] | None
    family: objectives.AbstractObjectiveFamily
    strategy: strategies.AbstractUpdateStrategy
    weighting: weightings.AbstractWeighting
    meta_optimizer: optax.GradientTransformation
    validation: l2o.Validation | None
    make_optimizer: Callable[[PRNGKeyArray], optimizers.AbstractOptimizer]


def build(given: config.RunConfig) -> Parts:
    """Builds all parts and checks that they fit; data sets are loaded here.

    **Arguments:**

    - `given`: a checked configuration.

    **Raises:** `UsageError` for values that only the library can judge.
    """
    objective, family, used = make_family(given.objective)
    meta = _with_num_steps(given.meta, given.objective.kind, family)
    with blaming(*_blamed_for_strategy(given)):
        strategy = make_strategy(given.strategy)
        strategy.num_updates(meta.num_steps)
    pretraining = given.pretraining
    if pretraining.enabled and pretraining.num_samples < pretraining.batch_size:
        raise UsageError(
            f"{label(('pretraining', 'num_samples'))}: got {pretraining.num_samples}, must be at least "
            f"{pretraining.batch_size}, one batch"
        )
    if pretraining.enabled and "learning_rate" not in type(given.optimizer).model_fields:
        raise UsageError(
            f"{label(('pretraining', 'enabled'))}: teaches an optimizer to start as gradient descent, but "
            f"{given.optimizer.kind!r} starts as something better; --preset thesis has one that can be taught"
        )
    match given.optimizer:
        case config.CoordinatewiseLSTM() | config.PerLayer() as table:
            if table.linear_readout and table.output.kind != "sum":
                raise UsageError(
                    f"{label(('optimizer', 'linear_readout'))}: is for the output 'sum'; "
                    f"{table.output.kind!r} has a read-out of its own"
                )
    rates = given.evaluation.learning_rates or l2o.LEARNING_RATES
    evaluation = given.evaluation.model_copy(update={"learning_rates": rates})
    resolved = given.model_copy(update={"objective": objective, "meta": meta, "evaluation": evaluation})
    return Parts(
        resolved,
        used,
        family,
        strategy,
        make_weighting(given.weighting),
        make_meta_optimizer(meta, strategy),
        make_validation(resolved, family),
        optimizer_maker(given.optimizer, family),
    )


def _with_num_steps(
    meta: config.Meta, objective: str, family: objectives.AbstractObjectiveFamily
) -> config.Meta:
    # Steps say the same as epochs, without the data: a run's config.toml has the steps alone.
    if meta.num_epochs is None:
        return meta
    if not isinstance(family, objectives.FromModel):
        steps = label(("meta", "num_steps"))
        raise UsageError(
            f"{label(('meta', 'num_epochs'))}: the objective {objective!r} has no data and so no epochs; "
            f"use {steps}"
        )
    num_steps = meta.num_epochs * family.steps_per_epoch
    return meta.model_copy(update={"num_steps": num_steps, "num_epochs": None})


def _blamed_for_strategy(given: config.RunConfig) -> tuple[str, str]:
    table = given.strategy
    recorded = isinstance(table, config.EveryStep) and table.gradient == "recorded"
    if recorded and table.activations == "keep":
        return "strategy", "activations"
    if isinstance(table, config.OncePerSuperEpoch):
        return "meta", "num_steps" if given.meta.num_epochs is None else "num_epochs"
    if recorded and table.order == "second":
        return "strategy", "gradient"
    return "strategy", "window"


def make_family(
    objective: Any,
) -> tuple[Any, objectives.AbstractObjectiveFamily, dict[str, Any] | None]:
    """The family, with the table as it was resolved and a description of the data.

    **Arguments:**

    - `objective`: the table `objective`.
    """
    match objective:
        case config.Quadratic():
            family = objectives.Quadratic(objective.dim, objective.squared, objective.theta_std)
            return objective, family, None
        case config.Mnist():
            return _make_mnist(objective)
        case _:
            raise AssertionError(objective)


def optimizer_maker(
    table: Any, family: objectives.AbstractObjectiveFamily
) -> Callable[[PRNGKeyArray], optimizers.AbstractOptimizer]:
    """A function from a key to an untrained optimizer.

    **Arguments:**

    - `table`: the table `optimizer`.
    - `family`: gives the shapes of the params to optimizers that have a part per layer.
    """

    def lstm(key: PRNGKeyArray) -> optimizers.CoordinatewiseLSTM:
        return optimizers.CoordinatewiseLSTM(
            table.hidden_sizes,
            make_preprocessor(table.preprocessor),
            table.learning_rate,
            linear_readout=table.linear_readout,
            output=make_output(table.output),
            key=key,
        )

    match table:
        case config.CoordinatewiseLSTM():
            return lstm
        case config.PerLayer():
            params = objectives.params_shapes(family)
            label = GROUPS[table.groups]
            return lambda key: optimizers.PerLayer.make(lstm, params, label=label, key=key)
        case config.Hierarchical():
            return lambda key: optimizers.Hierarchical(
                table.coordinate_size,
                table.tensor_size,
                table.global_size,
                make_preprocessor(table.preprocessor),
                table.learning_rate,
                output=make_output(table.output),
                key=key,
            )
        case config.AdamMLP():
            return lambda key: optimizers.AdamMLP(
                table.mlp_sizes, table.start_rate, matrices=table.matrices, decay=table.decay, key=key
            )
        case config.LearnedMomentum():
            return lambda key: optimizers.LearnedMomentum(
                table.momentum_size,
                per=table.per,
                first_move=table.first_move,
                first_step=table.first_step,
                key=key,
            )
        case config.SubspaceRNN():
            return lambda key: optimizers.SubspaceRNN(
                table.subspace_size,
                per=table.per,
                first_move=table.first_move,
                first_step=table.first_step,
                key=key,
            )
        case _:
            raise AssertionError(table)


def make_preprocessor(table: Any) -> preprocessors.AbstractPreprocessor:
    """The preprocessor of the table `optimizer.preprocessor`."""
    match table:
        case config.Identity():
            return preprocessors.Identity()
        case config.LogSign():
            return preprocessors.LogSign(table.p)
        case config.TwoFeature():
            return preprocessors.TwoFeature(table.p)
        case config.AdamLike():
            return preprocessors.AdamLike(table.b1, table.b2, table.eps)
        case _:
            raise AssertionError(table)


def make_output(table: Any) -> outputs.AbstractOutput | None:
    """The output of the table `optimizer.output`; `None` for the sum."""
    match table:
        case config.SumOutput():
            return None
        case config.CurvatureOutput():
            return outputs.CurvatureOutput(table.rate, table.momentum, table.first_step)
        case config.MomentumOutput():
            return outputs.MomentumOutput(table.rate, table.momentum)
        case config.AdamOutput():
            with blaming("optimizer", "output", "decays"):
                return outputs.AdamOutput(table.rate, table.decays, table.b2, table.eps)
        case _:
            raise AssertionError(table)


def make_strategy(table: Any) -> strategies.AbstractUpdateStrategy:
    """The update strategy of the table `strategy`."""
    match table:
        case config.EveryWindow():
            return strategies.EveryWindow(
                table.window, make_estimator(table), table.include_final_loss, table.remainder
            )
        case config.OncePerSuperEpoch():
            return strategies.OncePerSuperEpoch(make_estimator(table), table.include_final_loss)
        case config.EveryStep():
            return strategies.EveryStep(table.window, make_estimator(table))
        case _:
            raise AssertionError(table)


def make_estimator(table: Any) -> estimators.AbstractEstimator:
    """The estimator that the table `strategy` describes by four settings, of which some exclude each other.

    **Raises:** `ValueError` where they do.
    """
    estimator = _recorded(table) if getattr(table, "gradient", None) == "recorded" else _replayed(table)
    if table.objective_clip is None:
        return estimator
    return estimators.ClippedPerObjective(estimator, table.objective_clip)


def _recorded(table: config.EveryStep) -> estimators.AbstractEstimator:
    if table.order == "second":
        raise ValueError("a recorded gradient has no second derivatives: take order='first'")
    if table.activations == "keep":
        raise ValueError(
            "a record is of gradients, not of activations: take gradient='replayed' or "
            "activations='recompute'"
        )
    return estimators.Recorded(table.detach_state)


def _replayed(table: Any) -> estimators.AbstractEstimator:
    first = table.order == "first"
    constants = estimators.FIRST_ORDER if first else frozenset()
    constants |= {"state"} if table.detach_state else set()
    match table.activations:
        case "keep":
            return estimators.Backprop(constants)
        case "recompute" if first:
            return estimators.Replay(table.detach_state)
        case "recompute":
            return estimators.Backprop(constants, recompute=True)
        case _:
            return estimators.Auto(constants)


def make_weighting(table: Any) -> weightings.AbstractWeighting:
    """The weighting of the table `weighting`."""
    match table:
        case config.Constant():
            return weightings.Constant()
        case config.Linear():
            return weightings.Linear(table.beta, table.counting, table.first)
        case config.Exponential():
            return weightings.Exponential(table.gamma, table.counting, table.first)
        case config.FinalOnly():
            return weightings.FinalOnly(table.counting)
        case config.LogMean():
            return weightings.LogMean(table.eps, table.relative, table.power)
        case _:
            raise AssertionError(table)


def _make_mnist(
    table: config.Mnist,
) -> tuple[config.Mnist, objectives.AbstractObjectiveFamily, dict[str, Any]]:
    with blaming("objective", "data" if table.data_dir is None else "data_dir"):
        digits = data.load_mnist(table.data, table.data_dir)
    if table.data_sha256 not in (None, digits.sha256):
        raise UsageError(
            f"{label(('objective', 'data_sha256'))}: {digits.describe()} have the sha256 "
            f"{digits.sha256}, not {table.data_sha256}"
        )
    with blaming("objective", "batch_size"):
        family = objectives.MNIST(
            table.hidden_sizes,
            table.activation,
            table.batch_size,
            conv_channels=table.conv_channels,
            output=table.output,
            num_examples=table.num_examples,
            digits=digits,
        )
    found = "embedded" if "embedded" in digits.source else "tfds"
    folder = (table.data_dir or os.environ.get("TFDS_DATA_DIR")) if found == "tfds" else None
    resolved = table.model_copy(update={"data": found, "data_dir": folder, "data_sha256": digits.sha256})
    used = f"{digits.describe()}, of which {family.num_examples:,} are used"
    description = {"description": used, "source": digits.source, "sha256": digits.sha256}
    return resolved, family, description
