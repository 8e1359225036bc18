"""The library's objects out of a configuration: the only place where kinds become classes.

Importing this module starts JAX, so that commands import it when they run.
"""

import contextlib
import dataclasses
import functools
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import optax
from jaxtyping import PRNGKeyArray

import l2o_eqx as l2o
from l2o_eqx import data, objectives, optimizers, strategies, weightings
from l2o_eqx.objectives._episodes import HeldOutClasses
from l2o_eqx.objectives._mixture import families_of

from ._errors import UsageError
from ._kinds import DIGIT_KINDS, LIBRARY, NONE, load, plugins_in, signature
from ._memory import refuse_too_large, refuse_too_many
from ._mixture import MIXTURE, name_of
from ._resolve import Table, resolve
from ._settings import label
from ._signatures import GROUPS, Parameter
from ._tables import SEARCH, settings

# Far from the small numbers that splitting the seed's key amounts to, and from that of the pretraining.
_VALIDATION, _START = 1001, 1002


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a configuration describes, ready for the verbs.

    **Arguments:**

    - `config`: as given, but with all resolved that was left to the library or the machine.
    - `data`: what is known of the data set; `None` if there is none.
    """

    config: Table
    data: dict[str, Any] | None
    family: objectives.AbstractObjectiveFamily
    strategy: strategies.AbstractUpdateStrategy
    weighting: weightings.AbstractWeighting
    meta_optimizer: optax.GradientTransformation
    validation: l2o.Validation | None
    make_optimizer: Callable[[PRNGKeyArray], optimizers.AbstractOptimizer]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of super epochs, one or several."""
        return _lengths(self.config.meta)

    @property
    def evaluation_steps(self) -> int:
        """How long comparisons are: as the longest super epoch if nothing is said."""
        return self.config.evaluation.num_steps or max(self.lengths)

    @property
    def training(self) -> dict[str, Any]:
        """What `l2o_eqx.meta_train` is told of the settings, beside optimizer, family and strategy."""
        meta = self.config.meta
        return {
            "weighting": self.weighting,
            "meta_optimizer": self.meta_optimizer,
            "validation": self.validation,
            **{name: meta[name] for name in ("num_steps", "super_epochs", "num_objectives")},
            **{name: meta[name] for name in ("average", "per_call", "debug_nans")},
        }

    @property
    def searching(self) -> dict[str, Any]:
        """What `l2o_eqx.policy_search` is told of the settings, beside optimizer and family."""
        meta = self.config.meta
        return {
            "weighting": self.weighting,
            "meta_optimizer": self.meta_optimizer,
            "validation": self.validation,
            "num_steps": self.lengths[0],
            **{name: meta[name] for name in ("super_epochs", "num_objectives")},
            **{name: value for name, value in self.config.trainer.items() if name != "kind"},
        }

    @property
    def comparing(self) -> dict[str, Any]:
        """What `l2o_eqx.compare` and a card are told of the settings."""
        settings, num_steps = self.config.evaluation, self.evaluation_steps
        names = ("num_objectives", "num_tuning_objectives", "tuning", "best_so_far")
        return {
            "num_steps": num_steps,
            "learning_rates": settings.learning_rates or l2o.LEARNING_RATES,
            "last": min(settings.last, num_steps),
            **{name: settings[name] for name in names},
        }


def _lengths(meta: Table) -> tuple[int, ...]:
    return meta.num_steps if isinstance(meta.num_steps, tuple) else (meta.num_steps,)


def build(given: Table) -> Parts:
    """Builds all parts and checks that they fit; data sets are loaded here.

    **Arguments:**

    - `given`: of `resolve`.

    **Raises:** `UsageError` for values that only the library can judge.
    """
    objective, digits = _with_digits(given.objective)
    key = jr.key(given.seed)
    family = _make_family(objective, ("objective",), _Context(key, digits=digits))
    meta = _with_num_steps(given.meta, name_of(objective), family)
    _check_horizon(objective, meta)
    strategy = _make("strategies", given.strategy, ("strategy",), _Context(key))
    total = _count_updates(given, strategy, meta, objective)
    weighting = _make("weightings", given.weighting, ("weighting",), _Context(key))
    rates = given.evaluation.learning_rates or l2o.LEARNING_RATES
    _check_names(given.evaluation.against)
    config = given.but(objective=objective, meta=meta, evaluation=given.evaluation.but(learning_rates=rates))

    def make_optimizer(key: PRNGKeyArray) -> optimizers.AbstractOptimizer:
        return _make("optimizers", given.optimizer, ("optimizer",), _Context(key, family=family))

    _check_own(config, family, make_optimizer)
    _check_memory(config, family, make_optimizer)
    _check_pretraining(config, make_optimizer)
    return Parts(
        config,
        None if digits is None else _described(digits, family),
        family,
        strategy,
        weighting,
        _make_meta_optimizer(meta, total),
        _make_validation(config, family, digits),
        make_optimizer,
    )


def _check_own(config: Table, family: Any, make_optimizer: Callable[[PRNGKeyArray], Any]) -> None:
    # A step with parts of the user's own, traced, before there is a folder.
    own = [path for path, *_ in plugins_in(config) if path[0] in ("objective", "optimizer")]
    if not own:
        return

    def take_step(key: PRNGKeyArray, family: Any) -> Any:
        optimizer, objective = make_optimizer(key), family.sample(key)
        params = optimizer.initial_params(objective.init(key))
        return l2o.unroll(optimizer, objective, params, optimizer.init_for(params, 1), 1, key=key).losses

    with blaming(own[0], {}):
        for one in families_of(family).values():
            l2o.objectives.params_shapes(one)
            eqx.filter_eval_shape(take_step, jr.key(config.seed), one)


def _check_memory(config: Table, family: Any, make_optimizer: Callable[[PRNGKeyArray], Any]) -> None:
    validated = config.validation.num_objectives if config.validation.every else 0
    compared = config.evaluation.num_objectives + config.evaluation.num_tuning_objectives
    count = max(config.meta.num_objectives, compared, validated)
    for one in families_of(family).values():

        def draw(key: PRNGKeyArray, family: Any = one) -> Any:
            objective = family.sample(key)
            return objective, objective.init(key)

        refuse_too_large(("objective",), f"a batch of {count:,} objectives", draw, count)
    # Beside the optimizer there are gradients and moments.
    copies = 4 * config.meta.restarts
    refuse_too_large(("optimizer",), "a training of the optimizer", make_optimizer, copies)


@contextlib.contextmanager
def blaming(
    path: tuple[str, ...],
    table: Mapping[str, Any],
    defaults: Mapping[str, Parameter] | None = None,
    otherwise: tuple[str, ...] | None = None,
) -> Iterator[None]:
    """Turns the library's `ValueError` into one about a setting.

    **Arguments:**

    - `path`: of the table; `table`: its values.
    - `defaults`: the parameters, to tell what was changed.
    - `otherwise`: blamed if the message names no setting of the table.
    """
    try:
        yield
    except ValueError as error:
        named = getattr(error, "argument", None) or ""
        # The library's errors say which; a plug-in's may write `name=`, as the library's do.
        mentioned = [name for name in re.findall(r"(\w+)=", str(error)) if name in table]
        changed = [n for n in mentioned if not defaults or table[n] != defaults[n].default]
        name = next(iter([named] if named in table else changed or mentioned), None)
        blamed = (*path, name) if name else otherwise or path
        raise UsageError(f"{label(blamed)}: {error}") from None


@dataclasses.dataclass(frozen=True)
class _Context:
    # What constructors get beside their settings.
    key: PRNGKeyArray
    family: objectives.AbstractObjectiveFamily | None = None
    digits: data.Digits | None = None

    @functools.cached_property
    def params(self) -> Any:
        # As they are drawn for a run, for those that learn where to begin.
        if self.family is None:
            return None
        key = jr.fold_in(self.key, _START)
        return self.family.sample(key).init(key)


def _make(group: str, table: Table, path: tuple[str, ...], context: _Context) -> Any:
    constructor = load(group, table.kind)
    known = signature(group, table.kind).parameters
    arguments: dict[str, Any] = {}
    for name, p in known.items():
        if p.type.name == "key":
            arguments[name] = context.key
        elif p.type.name == "params":
            arguments[name] = context.params
        elif p.type.name == "part":
            arguments[name] = _make_part(p, table[name], (*path, name), context)
        elif p.type.name == "function":
            folder = importlib.import_module(f"{LIBRARY}.{group}")
            arguments[name] = getattr(folder, p.type.prefix + table[name])
        # A default that is no plain value stays the library's.
        elif p.type.name != "unknown" and (table[name] is not None or p.default is None):
            arguments[name] = table[name]
    if group == "objectives" and table.kind in DIGIT_KINDS:
        arguments = {name: x for name, x in arguments.items() if name not in _DIGITS}
        arguments["digits"] = context.digits
    if group == "objectives" and "dim" in table:
        refuse_too_many(path, table["dim"])
    with blaming(path, table, known):
        made = getattr(constructor, "make", constructor)(**arguments)
    abstract = getattr(getattr(l2o, group), GROUPS[group])
    if not isinstance(made, abstract):
        raise UsageError(
            f"{label((*path, 'kind'))}: {table.kind!r} has returned a {type(made).__name__}, which is no "
            f"l2o_eqx.{group}.{GROUPS[group]}"
        )
    return made


def _make_family(table: Table, path: tuple[str, ...], context: _Context) -> Any:
    if table.kind != MIXTURE:
        return _make("objectives", table, path, context)
    made = {
        name: _make("objectives", one, (*path, "families", name), context)
        for name, one in table.families.items()
    }
    with blaming(path, table):
        return objectives.Mixture(made, table.weights)


def _make_part(p: Parameter, table: Table, path: tuple[str, ...], context: _Context) -> Any:
    if table.kind == NONE:
        return None
    if not p.type.maker:
        return _make(p.type.group, table, path, context)

    def make(key: PRNGKeyArray) -> Any:
        return _make(p.type.group, table, path, dataclasses.replace(context, key=key))

    return make


# Digits are loaded before a family is made of them, for the run to say which they are.
_DIGITS = ("data", "data_dir", "data_sha256")


def _with_digits(table: Table) -> tuple[Table, data.Digits | None]:
    if table.get("kind") not in DIGIT_KINDS:
        # Of a wrapper, or of a mixture, whose families are a table without a kind.
        inner = {n: _with_digits(Table(x)) for n, x in table.items() if isinstance(x, dict)}
        found = {digits.sha256: digits for _, digits in inner.values() if digits is not None}
        if len(found) > 1:
            raise UsageError(
                f"{label(('objective', 'data'))}: all parts of an objective have the same digits"
            )
        return table.but(**{n: x for n, (x, _) in inner.items()}), next(iter(found.values()), None)
    name = "data" if table.data_dir is None else "data_dir"
    with blaming(("objective",), {}, otherwise=("objective", name)):
        digits = data.load_mnist(table.data, table.data_dir)
    if table.data_sha256 not in (None, digits.sha256):
        raise UsageError(
            f"{label(('objective', 'data_sha256'))}: {digits.describe()} have the sha256 "
            f"{digits.sha256}, not {table.data_sha256}"
        )
    found = "embedded" if "embedded" in digits.source else "tfds"
    folder = (table.data_dir or os.environ.get("TFDS_DATA_DIR")) if found == "tfds" else None
    return table.but(data=found, data_dir=folder, data_sha256=digits.sha256), digits


def _described(digits: data.Digits, family: Any) -> dict[str, Any]:
    def is_data(x: Any) -> bool:
        return isinstance(x, objectives.FromModel | objectives.Episodes | HeldOutClasses)

    counts = [x.num_examples for x in jax.tree.leaves(family, is_leaf=is_data) if is_data(x)]
    used = f"{digits.describe()}, of which {max(counts):,} are used"
    return {"description": used, "source": digits.source, "sha256": digits.sha256}


def _with_num_steps(meta: Table, objective: str, family: objectives.AbstractObjectiveFamily) -> Table:
    # Steps say the same as epochs, without the data: a run's config.toml has the steps alone.
    if meta.num_epochs is None:
        return meta
    steps_per_epoch = getattr(family, "steps_per_epoch", None)
    if steps_per_epoch is None:
        raise UsageError(
            f"{label(('meta', 'num_epochs'))}: the objective {objective!r} has no data and so no epochs; "
            f"use {label(('meta', 'num_steps'))}"
        )
    return meta.but(num_steps=meta.num_epochs * steps_per_epoch, num_epochs=None)


def _count_updates(given: Table, strategy: Any, meta: Table, objective: Table) -> int:
    """How many updates of the optimizer there are going to be."""
    if given.trainer.kind == SEARCH:
        _check_search(objective, meta)
        return meta.super_epochs * given.trainer.inner_iterations * given.trainer.fit_updates
    length = "num_steps" if given.meta.num_epochs is None else "num_epochs"
    with blaming(("strategy",), given.strategy, otherwise=("meta", length)):
        updates = [strategy.num_updates(length) for length in _lengths(meta)]
    # Of several lengths each is drawn as often as any other, more or less.
    return round(meta.super_epochs * sum(updates) / len(updates))


def _check_search(objective: Table, meta: Table) -> None:
    if objective.kind == MIXTURE:
        raise UsageError(
            f"{label(('objective', 'kind'))}: policies are searched on one family at a time, "
            "got several; --trainer meta-gradient takes them"
        )
    if len(_lengths(meta)) > 1:
        raise UsageError(
            f"{label(('meta', 'num_steps'))}: got {len(_lengths(meta))} lengths, but --trainer {SEARCH} "
            "takes one"
        )


def _check_horizon(objective: Table, meta: Table) -> None:
    # The posterior of a Gaussian process has place for so many points.
    improves = objective.get("outer_loss", "loss") != "loss"
    longest = max(_lengths(meta))
    if improves and objective.get("horizon", longest) < longest:
        raise UsageError(
            f"{label(('objective', 'horizon'))}: got {objective.horizon}, must be at least the "
            f"{longest} steps of a super epoch, for the improvement that is expected of each"
        )


def _check_pretraining(config: Table, make_optimizer: Callable[[PRNGKeyArray], Any]) -> None:
    table = config.pretraining
    if not table.enabled:
        return
    if table.num_samples < table.batch_size:
        raise UsageError(
            f"{label(('pretraining', 'num_samples'))}: got {table.num_samples}, must be at least "
            f"{table.batch_size}, one batch"
        )
    optimizer = eqx.filter_eval_shape(make_optimizer, jr.key(0))
    parts = getattr(optimizer, "optimizers", {"all": optimizer})
    if not all(hasattr(part, "learning_rate") for part in parts.values()):
        raise UsageError(
            f"{label(('pretraining', 'enabled'))}: teaches an optimizer to start as gradient descent, but "
            f"{config.optimizer.kind!r} starts as something better; --preset thesis has one that can be "
            "taught"
        )


def _make_meta_optimizer(meta: Table, total: int) -> optax.GradientTransformation:
    if meta.warmup_updates >= total:
        raise UsageError(
            f"{label(('meta', 'warmup_updates'))}: got {meta.warmup_updates}, must be less than the {total} "
            "meta-updates of the training"
        )
    taken = {name: meta[name] for name, s in settings("meta").items() if s.verb == "default_meta_optimizer"}
    with blaming(("meta",), meta):
        return l2o.default_meta_optimizer(**taken, total_updates=total if meta.decay == "cosine" else None)


def _check_names(names: tuple[str, ...] | None) -> None:
    known = {name.lower(): name for name in l2o.BASELINES}
    for name in names or ():
        if name.lower() not in known:
            possible = ", ".join(known.values())
            raise UsageError(f"{label(('evaluation', 'against'))}: got {name!r}; there are {possible}")


def baselines_of(family: Any, parts: Parts, optimizer: Any) -> dict[str, Any]:
    """What to compare an optimizer with on a family: all that fit, or those that the settings name."""
    return asked_for(parts, l2o.baselines_for(family, optimizer))


def asked_for(parts: Parts, baselines: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the baselines that the settings name; all if they name none."""
    names = parts.config.evaluation.against
    wanted = None if names is None else {name.lower() for name in names}
    return {name: one for name, one in baselines.items() if wanted is None or name.lower() in wanted}


def _validated_on(config: Table, family: Any, digits: data.Digits | None) -> Any:
    # Named like an objective, with its default settings.
    name = config.validation.objective
    if name is None:
        return family
    path = ("validation", "objective")
    try:
        table = resolve([{"objective": {"kind": name}, "preset": config.preset}]).objective
    except UsageError as error:
        raise UsageError(f"{label(path)}: {error.format_message()}") from None
    table, own = _with_digits(table)
    return _make_family(table, path, _Context(jr.key(config.seed), digits=digits if own is None else own))


def _make_validation(config: Table, family: Any, digits: data.Digits | None) -> l2o.Validation | None:
    # Its draws depend on the seed alone.
    table = config.validation
    if not table.every:
        return None
    key = jr.fold_in(jr.key(config.seed), _VALIDATION)
    steps = table.num_steps or max(_lengths(config.meta))
    last = table.last or min(config.evaluation.last, steps)
    family = _validated_on(config, family, digits)
    with blaming(("validation",), table):
        return l2o.Validation(family, steps, table.num_objectives, table.every, last, table.eps, key=key)
