"""Presets of `l2o train`: what settings are if they are not given, and what files of before mean."""

import functools
import json
import tomllib

import jax
import jax.random as jr
import numpy as np
import pytest
from l2o_cli._build import build
from l2o_cli._errors import UsageError
from l2o_cli._estimator import IN_SHORT
from l2o_cli._kinds import DIGIT_KINDS, load
from l2o_cli._presets import OTHER_OBJECTIVES, PRESETS, kinds_of_line
from l2o_cli._resolve import (
    merge,
    nested,
    plain,
    read_assignments,
    resolve,
    to_toml,
    with_names_of_today,
)
from l2o_cli._settings import options
from l2o_cli._tables import TRAINERS
from test_cli import _in_an_empty_folder, l2o_cli  # noqa: F401

import l2o_eqx as l2o
from l2o_eqx.data import Characters
from l2o_eqx.objectives import params_shapes
from l2o_eqx.objectives._mixture import families_of


@pytest.fixture(autouse=True)
def characters(monkeypatch):
    """In the place of Omniglot's, which are not on every machine."""
    found = Characters(np.zeros((1623 * 6, 28, 28), np.uint8), np.repeat(np.arange(1623), 6))
    monkeypatch.setattr("l2o_eqx.objectives._few_shot_images.load_omniglot", lambda data_dir: found)


CASES = [(preset, objective) for preset, lines in PRESETS.items() for objective in lines]
EVERY = pytest.mark.parametrize(("preset", "objective"), CASES)


def settings(preset, objective):
    data = {"data": "embedded"} if objective in DIGIT_KINDS else {}
    kinds = {OTHER_OBJECTIVES: "rosenbrock", "mixture": "quadratic,booth"}
    # Some presets say themselves what they are for.
    own = {} if "objective.kind" in PRESETS[preset][objective] else {"kind": kinds.get(objective, objective)}
    return {"preset": preset, "objective": {**own, **data}}


def in_short(estimator):
    """What the presets say of an estimator."""
    clip = None
    if estimator["kind"] == "clipped-per-objective":
        clip, estimator = estimator["max_norm"], estimator["inner"]
    return {
        "order": "first" if estimator["constants"] else "second",
        "activations": "keep" if estimator["kind"] == "backprop" else "auto",
        "objective_clip": clip,
    }


def at(config, name):
    return functools.reduce(getattr, name.split("."), config)


@EVERY
def test_presets_build_and_survive_toml(preset, objective):
    parts = build(resolve([settings(preset, objective)]))
    assert parts.config.preset == preset
    again = resolve([tomllib.loads(to_toml(parts.config))])
    assert again == parts.config == build(again).config
    optimizer = parts.make_optimizer(jr.key(0))
    maker = load("optimizers", parts.config.optimizer.kind)
    assert type(optimizer) is (maker if isinstance(maker, type) else maker.__annotations__["return"])
    for family in families_of(parts.family).values():
        params = params_shapes(family)
        jax.eval_shape(lambda params: optimizer.init_for(params, max(parts.lengths)), params)


@EVERY
def test_every_line_of_a_preset_counts(preset, objective):
    """With the preset's own kinds, or with others that have the setting; never with a name of nothing."""
    own = resolve([settings(preset, objective)])
    for line, value in PRESETS[preset][objective].items():
        only, name = kinds_of_line(line)
        path = tuple(name.split("."))
        layer = settings(preset, objective)
        if {*only} & {*TRAINERS}:
            layer = merge(layer, {"trainer": {"kind": only[0]}})
        for table, kinds in options()[path].owners.items():
            kind = only[0] if only and len(table) == 1 else objective if objective in kinds else kinds[0]
            assert kind in kinds, name
            layer = merge(layer, nested((*table, "kind"), kind))
        config = resolve([layer])
        if path[0] == "strategy" and path[1] in IN_SHORT:
            assert in_short(config.strategy.estimator)[path[1]] == value, name
            continue
        assert at(config, name) == value, name
        if path[-1] == "kind" and len(path) == 2:
            assert at(own, name) == value, name


@pytest.mark.parametrize(
    ("objective", "normalization"),
    [
        ("quadratic", "global"),
        ("scaled", "global"),
        ({"kind": "log", "family": "quadratic"}, "global"),
        ({"kind": "log", "family": "booth"}, "clip"),
        ({"kind": "log", "family": {"kind": "sum", "family": {"kind": "booth"}}}, "clip"),
    ],
)
def test_families_around_others_have_the_presets_of_the_innermost(objective, normalization):
    assert resolve([{"objective": objective}]).meta.normalization == normalization
    if objective != "quadratic":
        thesis = resolve([{"objective": objective, "preset": "thesis"}])
        assert thesis.meta == resolve([{"preset": "thesis"}]).meta


def test_presets_say_all_that_has_no_default_for_every_kind():
    """Whatever kinds are chosen, no option must be given: one optimizer, strategy and weighting at a time."""
    for preset, objective in CASES:
        for table in ("optimizer", "strategy", "weighting"):
            for kind in options()[table, "kind"].choices:
                layer = merge(settings(preset, objective), nested((table, "kind"), kind))
                assert at(resolve([layer]), f"{table}.kind") == kind


# What the defaults were before there were presets, as a run's config.toml had them.
FORMER = """
format = 1
seed = 0
[objective]
kind = "quadratic"
dim = 16
squared = true
theta_std = 1.0
[optimizer]
hidden_sizes = [20, 20]
learning_rate = 0.001
linear_readout = false
kind = "coordinatewise-lstm"
[optimizer.preprocessor]
kind = "identity"
[optimizer.output]
kind = "sum"
[strategy]
order = "first"
detach_state = false
activations = "auto"
kind = "every-window"
window = 16
include_final_loss = false
remainder = "skip"
[weighting]
kind = "constant"
[meta]
learning_rate = 0.001
normalization = "tensor"
norm_floor = 0.0
clip_norm = 1.0
b1 = 0.9
b2 = 0.999
eps = 1e-07
warmup_updates = 0
decay = "none"
final_share = 0.0
num_steps = 320
super_epochs = 50
num_objectives = 64
restarts = 1
[pretraining]
enabled = false
loss = "sign-weighted"
omega = 2.0
input_std = 0.001
num_steps = 16
batch_size = 128
num_samples = 200000
carry_state = false
learning_rate = 0.001
eps = 1e-07
[validation]
every = 0
num_objectives = 16
[evaluation]
num_objectives = 64
num_tuning_objectives = 16
tuning = "auto"
last = 1
"""
FORMER_MNIST = {
    "objective": {
        "kind": "mnist",
        "hidden_sizes": [32],
        "conv_channels": [],
        "activation": "sigmoid",
        "output": "softmax",
        "batch_size": 128,
        "num_examples": 48000,
        "data": "auto",
    },
    "optimizer": {"learning_rate": 0.01, "preprocessor": {"kind": "log-sign", "p": 10.0}},
    "meta": {"num_steps": 375, "super_epochs": 10, "num_objectives": 1},
    "evaluation": {"num_objectives": 32, "num_tuning_objectives": 4, "last": 20},
}
# As the first version wrote it: without the tables, and without the settings, that came later.
FIRST = """
format = 1
seed = 0
[objective]
kind = "quadratic"
[optimizer]
kind = "coordinatewise-lstm"
hidden_sizes = [20, 20]
learning_rate = 0.001
linear_readout = false
[optimizer.preprocessor]
kind = "identity"
[strategy]
kind = "every-window"
window = 16
order = "first"
lookahead = true
[weighting]
kind = "constant"
[meta]
learning_rate = 0.001
normalization = "tensor"
num_steps = 320
super_epochs = 50
num_objectives = 64
restarts = 1
[evaluation]
num_objectives = 64
num_tuning_objectives = 16
"""


def former(objective):
    table = tomllib.loads(FORMER)
    return table if objective == "quadratic" else merge(table, FORMER_MNIST)


@pytest.mark.parametrize("objective", ["quadratic", "mnist"])
def test_the_thesis_preset_is_what_the_defaults_were(objective, monkeypatch):
    """Every setting that there was, through the command; and what came since is off."""
    seen = []
    monkeypatch.setattr("l2o_cli._train.run", lambda config, *rest: seen.append(config))
    l2o_cli("train", "--objective", objective, "--preset", "thesis")
    (config,) = seen
    written = plain(config)
    # The estimator is written in full today.
    assert written["strategy"].pop("estimator") == {"kind": "auto", "constants": ["grads", "params", "value"]}
    before = with_names_of_today(former(objective))
    for name in ("order", "detach_state", "activations"):
        del before["strategy"][name]
    assert merge(written, {**before, "preset": "thesis"}) == written
    later = {("meta", "average"), ("meta", "drop_norm")}
    assert {path: at(config, ".".join(path)) for path in later} == dict.fromkeys(later)


@pytest.mark.parametrize("objective", ["quadratic", "mnist"])
def test_files_of_before_there_were_presets_mean_the_thesis(objective):
    """Whole ones as well as those of earlier versions, which have fewer settings."""
    thesis = resolve([{"preset": "thesis", "objective": {"kind": objective}}])
    assert resolve([former(objective)]) == thesis
    assert resolve([{"format": 1, "objective": {"kind": objective}}]) == thesis
    # An option over such a file changes that setting alone; another preset would have no say and is refused.
    over = resolve([former(objective), *read_assignments(["meta.super_epochs=7"])])
    assert over.meta.super_epochs == 7 and over.preset == "thesis" and over.optimizer == thesis.optimizer
    with pytest.raises(UsageError, match="'best', but the file has all settings"):
        resolve([former(objective), {"preset": "best"}])


@pytest.mark.parametrize(
    "old, path, today",
    [
        ("[optimizer]\npreprocessor = {kind = 'two-feature'}", "optimizer.preprocessor.kind", "log-and-sign"),
        ("[optimizer.preprocessor]\nkind = 'log-sign'", "optimizer.preprocessor.kind", "signed-log"),
        ("[meta]\nnormalization = 'block'", "meta.normalization", "part"),
        ("[pretraining]\nenabled = true\nlearning_rate = 0.25", "pretraining.meta_learning_rate", 0.25),
    ],
)
def test_names_of_before_in_a_file(old, path, today):
    config = resolve([{"preset": "thesis", **tomllib.loads(old)}])
    for name in path.split("."):
        config = getattr(config, name)
    assert config == today


def test_options_of_before():
    given = "--preprocessor log-sign --normalization block --pretrain-learning-rate 0.25 --pretrain"
    small = "--preset thesis --dim 2 --num-steps 4 --window 2 --super-epochs 1 --num-objectives 1"
    pretraining = "--pretrain-samples 8 --pretrain-batch-size 4 --learning-rates 0.1"
    l2o_cli("train", *f"{given} {small} {pretraining} --eval-objectives 1 --hidden-sizes 2 --out run".split())
    with open("run/config.toml", "rb") as file:
        config = tomllib.load(file)
    assert config["optimizer"]["preprocessor"]["kind"] == "signed-log"
    assert config["meta"]["normalization"] == "part"
    assert config["pretraining"]["meta_learning_rate"] == 0.25


def test_a_file_of_the_first_version_and_its_old_name():
    config = resolve([tomllib.loads(FIRST)])
    thesis = resolve([{"preset": "thesis"}])
    assert config.strategy.kind == "every-window" and config.strategy.include_final_loss
    assert config.but(strategy=config.strategy.but(include_final_loss=False)) == thesis
    assert config.optimizer == thesis.optimizer and config.meta == thesis.meta


def test_an_optimizer_of_before_is_evaluated_with_its_settings():
    """Its file has them under their old names."""
    optimizer = l2o.optimizers.CoordinatewiseLSTM((2,), key=jr.key(0))
    l2o.save("old.safetensors", optimizer, metadata={"config": former("quadratic")})
    options = "--dim 2 --steps 3 --objectives 2 --no-baselines --json"
    facts = json.loads(l2o_cli("evaluate", "old.safetensors", *options.split()).stdout)
    assert facts["objective"] == "quadratic" and facts["seed"] == 1 and len(facts["summary"]) == 1


def test_a_partial_file_without_a_format_means_the_best():
    file = {"meta": {"super_epochs": 70}}
    config = resolve([file])
    assert config.preset == "best" and config.meta.super_epochs == 70
    assert config.optimizer == resolve([]).optimizer != resolve([{"format": 1, **file}]).optimizer
    with pytest.raises(UsageError, match="'--preset'.*'bestt'; did you mean 'best'"):
        resolve([{"preset": "bestt"}])


def test_a_short_training_has_a_short_warm_up():
    """That of the preset; one that is given is taken at its word, or refused."""
    few = ["meta.super_epochs=1", "meta.num_steps=20"]
    assert build(resolve(read_assignments(few))).config.meta.warmup_updates == 0
    assert resolve(read_assignments(["meta.super_epochs=30"])).meta.warmup_updates == 6
    assert resolve([]).meta.warmup_updates == PRESETS["best"]["quadratic"]["meta.warmup_updates"]
    given = ["meta.super_epochs=30", "meta.warmup_updates=25"]
    assert resolve(read_assignments(given)).meta.warmup_updates == 25
    with pytest.raises(UsageError, match="must be less than the 1 meta-updates"):
        build(resolve(read_assignments([*few, "meta.warmup_updates=1"])))


def test_several_lengths():
    """Where one length is needed it is the longest; decay counts what is drawn on average."""
    lengths = read_assignments(["meta.num_steps=[20, 60, 100]", "meta.super_epochs=10"])
    parts = build(resolve(lengths))
    assert parts.lengths == (20, 60, 100) and parts.evaluation_steps == 100
    assert parts.config.meta.warmup_updates == 2
    assert build(resolve([tomllib.loads(to_toml(parts.config))])).lengths == parts.lengths
    assert build(resolve(read_assignments(["meta.num_steps=40"]))).lengths == (40,)
    with pytest.raises(UsageError, match="10 does not fill|window"):
        build(resolve(read_assignments(["meta.num_steps=[100, 10]"])))


def test_a_preset_with_objectives_of_its_own():
    """Digits of 8x8 pixels on random scales; another objective may be asked for; a short word over PES."""
    own = resolve([{"preset": "celo2", "objective": {"data": "embedded"}}])
    assert own.objective.kind == "scaled" and own.objective.family.image_size == 8
    assert own.strategy.estimator == {"kind": "pes", "std": 0.01, "num_pairs": 8}
    plain_digits = resolve([{"preset": "celo2", "objective": "mnist"}])
    assert plain_digits.objective.kind == "mnist" and plain_digits.objective.image_size == 8
    assert resolve([{"preset": "celo2", "objective": "quadratic"}]).meta == own.meta
    short = resolve([{"preset": "celo2", "strategy": {"order": "second"}}])
    assert short.strategy.estimator == {"kind": "auto", "constants": frozenset()}


def test_celo2_from_the_shell(monkeypatch):
    """Its preset in miniature, with two lengths: the file that is kept holds it."""
    monkeypatch.setattr("l2o_eqx._baselines.BASELINES", {})
    digits = "--data embedded --image-size 3 --network-sizes 2 --batch-size 4"
    small = "--num-steps 4,8 --window 4 --super-epochs 2 --num-objectives 1 --num-pairs 1 --hidden-sizes 2"
    l2o_cli(
        "train",
        "--preset",
        "celo2",
        *f"{digits} {small} --eval-objectives 1 --last-steps 1".split(),
        "--out",
        "out",
    )
    trained = l2o.load("out/optimizer.safetensors")
    assert isinstance(trained, l2o.optimizers.Celo2) and l2o.count_meta_parameters(trained) == 71
    config = l2o.load_metadata("out/optimizer.safetensors")["config"]
    assert config["meta"]["num_steps"] == [4, 8] and config["objective"]["family"]["image_size"] == 3


@pytest.mark.parametrize("objective", ["quadratic", "mnist"])
def test_the_default_trains(objective, monkeypatch):
    """In miniature, with all parts of the preset `best`: the file that is kept holds its optimizer."""
    monkeypatch.setattr("l2o_eqx._baselines.BASELINES", {})
    small = "--num-steps 6 --window 3 --super-epochs 2 --num-objectives 2 --eval-objectives 2 --last-steps 1"
    own = {
        "quadratic": "--dim 2 --momentum-size 3",
        "mnist": "--data embedded --network-sizes 2 --batch-size 4 --mlp-sizes 3",
    }
    options = [*small.split(), *own[objective].split()]
    l2o_cli("train", "--objective", objective, *options, "--out", "out", "--quiet")
    kind = {"quadratic": l2o.optimizers.LearnedMomentum, "mnist": l2o.optimizers.AdamMLP}[objective]
    assert isinstance(l2o.load("out/optimizer.safetensors"), kind)
    metadata = l2o.load_metadata("out/optimizer.safetensors")
    assert metadata["config"]["preset"] == "best"
    assert in_short(metadata["config"]["strategy"]["estimator"])["order"] == "second"


def test_another_preset_over_a_whole_file_is_refused():
    """It would change none of the file's settings."""
    whole = tomllib.loads(to_toml(resolve([{"preset": "thesis"}])))
    assert resolve([whole, {"preset": "thesis"}]) == resolve([whole])
    with pytest.raises(UsageError, match="'best', but the file has all settings .* 'thesis'"):
        resolve([whole, {"preset": "best"}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--order", "first"],
            "option '--order' (strategy.order): `Auto(constants=...)`: `BlackBoxRNN` sees",
        ),
        (["--num-steps", "40"], "option '--horizon' (objective.horizon): got 30, must be at least the 40"),
        (["--estimator", "replay"], "`Replay`, which is of first order: `BlackBoxRNN` sees nothing"),
    ],
)
def test_a_black_box_is_not_trained_on_nothing(settings, message):
    """By the short name of its family, too."""
    run = l2o_cli("train", "--objective", "gp", "--num-features", "8", *settings, "--out", "out", code=2)
    assert message in run.stderr


@pytest.mark.parametrize("table", ["gp", {"kind": "gp"}, {"kind": "regret", "family": "gp"}])
def test_short_names_are_those_of_the_library(table):
    config = resolve([{"objective": table}])
    assert "gaussian-process" in (config.objective.kind, config.objective.get("family", {}).get("kind"))
    assert (
        config.optimizer.kind == "black-box-rnn" and config.strategy.estimator.inner.constants == frozenset()
    )
    assert config.evaluation.best_so_far and config.meta.num_steps == 30
