import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from helpers import sparing
from l2o_cli._app import COMMANDS, app
from l2o_cli._build import build
from l2o_cli._folder import make_folder
from l2o_cli._interrupt import run_interruptibly
from l2o_cli._kinds import signature
from l2o_cli._resolve import read_assignments, resolve, to_toml
from l2o_cli._settings import in_short, options
from l2o_cli._train import _intention
from typer.testing import CliRunner

import l2o_eqx as l2o

TINY = [
    "--preset",
    "thesis",
    "--dim",
    "2",
    "--num-steps",
    "6",
    "--window",
    "3",
    "--super-epochs",
    "2",
    "--num-objectives",
    "2",
    "--eval-objectives",
    "2",
    "--tuning-objectives",
    "2",
    "--hidden-sizes",
    "3",
    "--learning-rates",
    "0.01,0.1",
]
TINY_MNIST = [
    "--objective",
    "mnist",
    "--data",
    "embedded",
    "--network-sizes",
    "2",
    "--batch-size",
    "4",
    "--steps",
    "5",
    "--objectives",
    "2",
    "--tuning-objectives",
    "1",
    "--learning-rates",
    "0.1",
]


ALL_BASELINES = l2o.BASELINES


@pytest.fixture(autouse=True, scope="module")
def _few_baselines():
    """Each takes a second or two to compile; test_compare.py runs all."""
    few = {name: ALL_BASELINES[name] for name in ("SGD", "Adam", "L-BFGS")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("l2o_eqx._baselines.BASELINES", few)
        yield


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def l2o_cli(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def start(*arguments):
    command = [sys.executable, "-c", "import l2o_cli; l2o_cli.main()", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and what it printed. Tests that write into it copy it first."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    return folder, l2o_cli("train", *TINY, "--out", folder).output


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


# Help and version.


def test_help_imports_nothing_heavy_and_names_all_commands():
    code = (
        "import sys, l2o_cli\n"
        "try: l2o_cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'matplotlib', 'equinox', 'optax', 'l2o_eqx'} & {*sys.modules}\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, encoding="utf-8"
    )
    assert "HEAVY []" in done.stdout, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_begins_as_in_the_list(name):
    output = " ".join(l2o_cli(name, "--help").output.split())
    assert COMMANDS[name] in output


def test_version():
    assert l2o_cli("--version").output == f"l2o-eqx {l2o.__version__}\n"


# The configuration.


def test_every_setting_has_an_option_of_its_own_that_the_help_explains():
    output = l2o_cli("train", "--help-all").output
    names = [option.name for option in options().values()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [name for name in names if f"{name} " not in output] == []
    assert [name for name, option in options().items() if not option.help] == []


# A value other than the default for every setting, and the kinds it needs.
VALUES = {
    "preset": ("andrychowicz", "andrychowicz"),
    "seed": ("7", 7),
    "objective.kind": ("mnist", "mnist"),
    "objective.dim": ("3", 3),
    "objective.squared": (None, False),
    "objective.theta_std": ("0.05", 0.05),
    "objective.hidden_sizes": ("5,6", (5, 6)),
    "objective.conv_channels": ("4,4", (4, 4)),
    "objective.activation": ("tanh", "tanh"),
    "objective.output": ("sigmoid", "sigmoid"),
    "objective.batch_size": ("9", 9),
    "objective.num_examples": ("99", 99),
    "objective.data": ("embedded", "embedded"),
    "objective.data_dir": ("here", "here"),
    "objective.data_sha256": ("abc", "abc"),
    "optimizer.kind": ("coordinatewise-lstm", "coordinatewise-lstm"),
    "optimizer.hidden_sizes": ("7", (7,)),
    "optimizer.groups": ("rank", "rank"),
    "optimizer.coordinate_size": ("7", 7),
    "optimizer.tensor_size": ("7", 7),
    "optimizer.global_size": ("7", 7),
    "optimizer.learning_rate": ("0.5", 0.5),
    "optimizer.linear_readout": ("", True),
    "optimizer.mlp_sizes": ("7", (7,)),
    "optimizer.start_rate": ("0.5", 0.5),
    "optimizer.matrices": ("", True),
    "optimizer.decay": ("cosine", "cosine"),
    "optimizer.horizon_power": ("0.5", 0.5),
    "optimizer.first_rates": ("0.001,0.1", (0.001, 0.1)),
    "optimizer.attention": ("", True),
    "optimizer.per": ("tree", "tree"),
    "optimizer.first_move": ("0.5", 0.5),
    "optimizer.first_step": ("relative", "relative"),
    "optimizer.momentum_size": ("7", 7),
    "optimizer.subspace_size": ("7", 7),
    "optimizer.preprocessor.kind": ("log-and-sign", "log-and-sign"),
    "optimizer.preprocessor.p": ("7", 7.0),
    "optimizer.preprocessor.b1": ("0.8", 0.8),
    "optimizer.preprocessor.b2": ("0.8", 0.8),
    "optimizer.preprocessor.eps": ("0.1", 0.1),
    "optimizer.output.kind": ("adam", "adam"),
    "optimizer.output.rate": ("0.5", 0.5),
    "optimizer.output.momentum": ("0.5", 0.5),
    "optimizer.output.first_step": ("0.5", 0.5),
    "optimizer.output.decays": ("0.8,0.9", (0.8, 0.9)),
    "optimizer.output.b2": ("0.8", 0.8),
    "optimizer.output.eps": ("0.1", 0.1),
    "strategy.kind": ("once-per-super-epoch", "once-per-super-epoch"),
    "strategy.window": ("5", 5),
    "strategy.order": ("first", "first"),
    "strategy.detach_state": ("", True),
    "strategy.include_final_loss": (None, False),
    "strategy.activations": ("keep", "keep"),
    "strategy.objective_clip": ("0.5", 0.5),
    "strategy.remainder": ("train", "train"),
    "strategy.gradient": ("recorded", "recorded"),
    "weighting.kind": ("final-only", "final-only"),
    "weighting.beta": ("2", 2.0),
    "weighting.counting": ("super_epoch", "super_epoch"),
    "weighting.first": ("0", 0),
    "weighting.gamma": ("1.5", 1.5),
    "weighting.eps": ("1e-6", 1e-6),
    "weighting.relative": ("", True),
    "weighting.power": ("2", 2.0),
    "meta.learning_rate": ("0.01", 0.01),
    "meta.normalization": ("none", "none"),
    "meta.norm_floor": ("1e-6", 1e-6),
    "meta.clip_norm": ("2", 2.0),
    "meta.drop_norm": ("3", 3.0),
    "meta.retreat_after": ("7", 7),
    "meta.b1": ("0.8", 0.8),
    "meta.b2": ("0.95", 0.95),
    "meta.eps": ("1e-9", 1e-9),
    "meta.warmup_updates": ("7", 7),
    "meta.decay": ("none", "none"),
    "meta.final_share": ("0.1", 0.1),
    "meta.average": ("0.25", 0.25),
    "validation.every": ("5", 5),
    "validation.num_objectives": ("7", 7),
    "validation.num_steps": ("77", 77),
    "validation.last": ("7", 7),
    "meta.num_steps": ("48,96", (48, 96)),
    "meta.num_epochs": ("7", 7),
    "meta.super_epochs": ("77", 77),
    "meta.num_objectives": ("77", 77),
    "meta.restarts": ("3", 3),
    "pretraining.enabled": ("", True),
    "pretraining.loss": ("squared", "squared"),
    "pretraining.omega": ("3", 3.0),
    "pretraining.input_std": ("0.1", 0.1),
    "pretraining.num_steps": ("3", 3),
    "pretraining.batch_size": ("7", 7),
    "pretraining.num_samples": ("777", 777),
    "pretraining.carry_state": ("", True),
    "pretraining.meta_learning_rate": ("0.01", 0.01),
    "pretraining.eps": ("1e-12", 1e-12),
    "evaluation.num_objectives": ("7", 7),
    "evaluation.num_tuning_objectives": ("7", 7),
    "evaluation.num_steps": ("7", 7),
    "evaluation.learning_rates": ("0.2,0.1", (0.1, 0.2)),
    "evaluation.tuning": ("staged", "staged"),
    "evaluation.last": ("3", 3),
}


# Those of later versions, which nobody relies on under a name of their own.
VALUES |= {
    "objective.family.kind": ("mnist", "mnist"),
    "objective.other.kind": ("booth", "booth"),
    "objective.condition": ("7", 7.0),
    "objective.centered": ("", True),
    "objective.floor": ("0.1", 0.1),
    "objective.steepness": ("7", 7),
    "objective.log_floor": ("0.1", 0.1),
    "objective.num_features": ("7", 7),
    "objective.l2": ("0.1", 0.1),
    "objective.noise_std": ("0.5", 0.5),
    "objective.norm_power": ("3", 3.0),
    "objective.num_directions": ("9", 9),
    "objective.zeros": ("0.5", 0.5),
    "objective.num_clusters": ("3", 3),
    "objective.loss": ("2", 2.0),
    "objective.params": ("2", 2.0),
    "objective.low": ("0.5", 0.5),
    "objective.high": ("5", 5.0),
    "objective.pointwise": ("0.5,2", (0.5, 2.0)),
    "objective.length_scale": ("0.3,0.5", (0.3, 0.5)),
    "objective.outer_loss": ("expected_improvement", "expected_improvement"),
    "objective.horizon": ("7", 7),
    "optimizer.workers": ("7", 7),
    "optimizer.into_box": ("tanh", "tanh"),
    "weighting.mean_weight": ("0.5", 0.5),
    "evaluation.best_so_far": ("", True),
    "objective.num_ways": ("3", 3),
    "objective.num_support": ("7", 7),
    "objective.num_query": ("7", 7),
    "objective.classes": ("3,4,5", (3, 4, 5)),
    "objective.rotations": (None, False),
    "objective.held_out": ("", True),
    "objective.amplitude": ("1,2", (1.0, 2.0)),
    "objective.phase": ("0,1", (0.0, 1.0)),
    "objective.interval": ("0,1", (0.0, 1.0)),
    "optimizer.hidden_size": ("7", 7),
    "optimizer.num_steps": ("7", 7),
    "optimizer.momentum": ("0.5", 0.5),
    "optimizer.gates": ("0.1,0.2", (0.1, 0.2)),
    "optimizer.factor": ("2", 2.0),
    "optimizer.make_optimizer.kind": ("adam-mlp", "adam-mlp"),
    "optimizer.label": ("rank", "rank"),
    "optimizer.inner.kind": ("adam-mlp", "adam-mlp"),
    "optimizer.inner.learning_rate": ("0.5", 0.5),
    "optimizer.inner.weight_decay": ("0.5", 0.5),
    "optimizer.weight_decay": ("0.5", 0.5),
    "optimizer.vector_rate": ("7", 7.0),
    "optimizer.magnitude": ("0.5", 0.5),
    "optimizer.orthogonalize": ("", True),
    "optimizer.start": ("random", "random"),
    "objective.image_size": ("7", 7),
    "optimizer.output.start": ("0.5", 0.5),
    "optimizer.max_delta": ("0.5", 0.5),
    "optimizer.fallback.kind": ("gradient-descent", "gradient-descent"),
    "optimizer.memory": ("7", 7),
    "validation.eps": ("0.5", 0.5),
    "validation.objective": ("booth", "booth"),
    "evaluation.against": ("Adam,SGD", ("Adam", "SGD")),
    "objective.outer": ("training", "training"),
    "objective.outer_batch_size": ("7", 7),
    "strategy.random_phase": ("", True),
    "strategy.sizes": ("7", 7),
    "strategy.least": ("0.5", 0.5),
    "optimizer.rates": ("leaf", "leaf"),
    "optimizer.terms": ("g,cos*u", ("g", "cos*u")),
    "optimizer.coefficients": ("-0.1,0.5", (-0.1, 0.5)),
    "optimizer.num_rates": ("7", 7),
    "optimizer.moving": ("head", "head"),
    "weighting.weights": ("0,0.5,0.5", (0.0, 0.5, 0.5)),
    "meta.per_call": ("7", 7),
    "meta.debug_nans": ("", True),
    "evaluation.joint": (None, False),
    "strategy.estimator.kind": ("es", "es"),
    "strategy.estimator.constants": ("state", frozenset({"state"})),
    "strategy.estimator.recompute": ("", True),
    "strategy.estimator.detach_state": ("", True),
    "strategy.estimator.inner.kind": ("es", "es"),
    "strategy.estimator.max_norm": ("0.5", 0.5),
    "strategy.estimator.std": ("0.5", 0.5),
    "strategy.estimator.num_pairs": ("7", 7),
    "strategy.estimator.ranked": ("", True),
    "strategy.estimator.num_tangents": ("7", 7),
    "strategy.estimator.max_numbers": ("7", 7),
    "trainer.kind": ("guided-policy-search", "guided-policy-search"),
    "trainer.method": ("badmm", "badmm"),
    "trainer.num_samples": ("7", 7),
    "trainer.inner_iterations": ("7", 7),
    "trainer.structure": ("diagonal", "diagonal"),
    **{
        f"trainer.{name}": ("0.7", 0.7)
        for name in ("initial_rate", "initial_std", "kl_step", "penalty", "dual_rate")
    },
    "trainer.fit_updates": ("7", 7),
    "trainer.fit_batch": ("7", 7),
    "objective.noise": ("0.7", 0.7),
    "optimizer.history": ("7", 7),
    "optimizer.floor": ("0.7", 0.7),
    "optimizer.scale": ("0.7", 0.7),
}
# Settings of files and options of earlier versions, and where they are today.
OLD = {
    "optimizer.mlp_sizes": ("adam-mlp", "hidden_sizes"),
    "optimizer.start_rate": ("adam-mlp", "learning_rate"),
    "optimizer.momentum_size": ("learned-momentum", "hidden_size"),
    "optimizer.subspace_size": ("subspace-rnn", "hidden_size"),
    "optimizer.groups": ("per-layer", "label"),
}

# What else must be given for some options to mean something.
ALONG = {
    **{f"trainer.{name}": ["--method", "badmm"] for name in ("initial_rate", "penalty", "dual_rate")},
    "meta.clip_norm": ["--normalization", "clip"],
    "meta.final_share": ["--meta-decay", "cosine"],
    "optimizer.inner.weight_decay": ["--inner", "celo2"],
}


def _along(option):
    path, owners = option.path, option.owners.items()
    kinds = [("--" + table[-1].replace("_", "-"), kinds[-1]) for table, kinds in owners]
    pretrain = ["--pretrain"] if path[0] == "pretraining" and path[-1] != "enabled" else []
    validate = ["--validate-every", "5"] if path[0] == "validation" and path[-1] != "every" else []
    inside = [
        k for k in ("coordinatewise-lstm", "celo2") if path[-1] in signature("optimizers", k).parameters
    ]
    inner = ["--inner", inside[0]] if path[1:2] == ("inner",) and path[2] != "kind" else []
    search = ["--trainer", "guided-policy-search"] if path[0] == "trainer" and path[-1] != "kind" else []
    more = ALONG.get(".".join(path), [])
    return [*(word for pair in kinds for word in pair), *inner, *pretrain, *validate, *search, *more]


# What is said in short of an estimator has no setting of its own, see test_cli_options.py.
SETTINGS = [
    option for path, option in options().items() if path[0] != "strategy" or path[-1] not in in_short()
]


@pytest.mark.parametrize("option", SETTINGS, ids=lambda option: ".".join(option.path))
def test_every_option_reaches_its_setting(option, monkeypatch):
    text, expected = VALUES[".".join(option.path)]
    seen = []
    monkeypatch.setattr("l2o_cli._train.run", lambda config, *rest: seen.append(config))
    words = [f"--no-{option.name[2:]}"] if text is None else [option.name, text]
    l2o_cli("train", *_along(option), *filter(None, words))
    l2o_cli("train", *_along(option))
    given, default = (functools.reduce(getattr, option.path, config) for config in seen)
    assert given == expected != default


@pytest.mark.parametrize("name", OLD)
def test_old_options_and_files_keep_working(name, monkeypatch):
    """The option of an old setting sets what the setting has become, and so does a file that has it."""
    kind, today = OLD[name]
    text, expected = VALUES[name]
    seen = []
    monkeypatch.setattr("l2o_cli._train.run", lambda config, *rest: seen.append(config))
    option = "--" + name.partition(".")[2].replace("_", "-")
    l2o_cli("train", "--optimizer", kind, option, text)
    Path("old.toml").write_text(f"[optimizer]\nkind = '{kind}'\n{name.partition('.')[2]} = '{text}'\n")
    l2o_cli("train", "--config", "old.toml")
    assert [config.optimizer[today] for config in seen] == [expected, expected]


def test_later_layers_win_and_another_kind_replaces_the_table():
    file = {"preset": "thesis", "objective": {"kind": "quadratic", "dim": 5}, "meta": {"num_steps": 50}}
    config = resolve([file, *read_assignments(["meta.num_steps=60", "seed=3"]), {"seed": 4}])
    assert (config.objective.dim, config.meta.num_steps, config.seed) == (5, 60, 4)
    config = resolve([file, {"objective": {"kind": "mnist"}}])
    assert config.objective.kind == "mnist"
    assert config.optimizer.kind == "coordinatewise-lstm"
    assert config.optimizer.preprocessor.kind == "signed-log" and config.meta.num_steps == 50


def test_the_meta_learning_rate_decays_over_the_meta_updates_there_are():
    """3 super epochs of 40 steps in windows of 16 are 6 meta-updates; the last has a rate near zero."""
    options = ["meta.num_steps=40", "meta.super_epochs=3", "meta.decay=cosine", "meta.warmup_updates=1"]
    options += ["meta.learning_rate=0.5", "meta.normalization=none", "meta.eps=1e-30", "preset=thesis"]
    optimizer = build(resolve(read_assignments(options))).meta_optimizer
    phi = np.ones(1, np.float32)
    state, sizes = optimizer.init(phi), []
    for _ in range(7):
        update, state = optimizer.update(phi, state, phi)
        sizes.append(-np.asarray(update).item())
    # Adam's update on a gradient that stays is the rate.
    expected = [0.25, *(0.25 * (1 + np.cos(np.pi * np.arange(6) / 5)))]
    np.testing.assert_allclose(sizes, expected, rtol=1e-5, atol=1e-7)


def test_the_length_of_a_super_epoch_is_in_one_unit():
    """Epochs win over the preset's steps; of the layers that say either, the last one counts."""
    mnist, steps, epochs = {"objective": {"kind": "mnist"}}, {"num_steps": 50}, {"num_epochs": 2}
    assert resolve([mnist, {"meta": epochs}]).meta.num_epochs == 2
    assert resolve([mnist, {"meta": steps}, {"meta": epochs}]).meta.num_epochs == 2
    meta = resolve([mnist, {"meta": epochs}, {"meta": steps}]).meta
    assert (meta.num_steps, meta.num_epochs) == (50, None)


def test_networks_and_epochs_reach_the_library(monkeypatch):
    """Two convolutions and one dense layer; 43 digits in batches of 4 make 10 steps an epoch."""
    seen = []
    monkeypatch.setattr("l2o_cli._train.run", lambda config, *rest: seen.append(config))
    l2o_cli(
        *("train", "--objective", "mnist", "--data", "embedded", "--batch-size", 4, "--num-examples", 43),
        *(
            "--network-sizes",
            "",
            "--conv-channels",
            "2,3",
            "--network-output",
            "sigmoid",
            "--preset",
            "thesis",
        ),
        *("--optimizer", "per-layer", "--groups", "kind", "--num-epochs", 2),
    )
    parts = build(seen[0])
    family = l2o.objectives.MNIST(
        (), batch_size=4, conv_channels=(2, 3), output="sigmoid", num_examples=43, data="embedded"
    )
    assert eqx.tree_equal(parts.family, family)
    assert {*parts.make_optimizer(jr.key(0)).parts()} == {"convolution", "dense"}
    assert parts.config.meta.num_steps == 20
    # The file of the run says so in steps, and is read as the same run.
    text = to_toml(parts.config)
    assert "num_epochs" not in text
    assert build(resolve([tomllib.loads(text)])).config == parts.config


BAD = {
    "--clip-norm 2": [
        "option '--clip-norm' (meta.clip_norm)",
        "'2'",
        "'--normalization'",
        "'global'",
        "'clip'",
    ],
    "--norm-floor 1e-6 --normalization clip": ["--norm-floor", "1e-6", "'clip'", "'tensor' or 'part'"],
    "--norm-floor 1e-6 --normalization none": ["--norm-floor", "'none'", "'global'"],
    "--meta-final-share 0.1 --meta-decay none": ["--meta-final-share", "'none'", "'cosine'"],
    "--num-steps 20 --super-epochs 3 --meta-warmup 3": ["--meta-warmup", "got 3", "the 3 meta-updates"],
    "--average 1.5": ["--average", "1.5", "less than or equal to 1"],
    "--validation-objectives 9": ["--validation-objectives", "'9'", "'--validate-every'", "no validation"],
    "--num-steps 20 --validate-every 1 --validation-last 21": ["--validation-last", "last=21"],
    "--set meta.clip_norm=2": ["--clip-norm", "'2'", "'clip'"],
    "--pretrain-samples 9": ["option '--pretrain-samples' (pretraining.num_samples)", "'9'", "'--pretrain'"],
    "--no-pretrain --pretrain-carry-state": ["--pretrain-carry-state", "'true'", "'--pretrain'"],
    "--pretrain --pretrain-omega 3 --pretrain-loss squared": [
        "--pretrain-omega",
        "'3'",
        "'squared'",
        "'sign-weighted'",
    ],
    "--window 0": ["--window", "0", "2"],
    "--window 30 --num-steps 20": ["--window", "30", "20"],
    "--strategy every-step --gradient recorded --order first --activations keep": [
        "option '--gradient'",
        "activations='recompute'",
    ],
    "--strategy every-step --gradient recorded": ["option '--gradient'", "order='first'"],
    "--preset foo": ["'--preset'", "'foo'", "best, thesis, celo2, andrychowicz"],
    "--strategy every-step --gradient recorded --order second": ["option '--gradient'", "order='first'"],
    "--num-steps -3": ["--num-steps", "-3", "1"],
    "--num-steps abc": ["--num-steps", "abc", "integer"],
    "--objective mnist --num-steps 9 --num-epochs 2": ["--num-steps", "--num-epochs", "both"],
    "--num-epochs 2": ["--num-epochs", "'quadratic'", "--num-steps"],
    "--objective mnist --conv-channels 8,0": ["--conv-channels", "0", "at least one"],
    "--eval-objectives 0": ["--eval-objectives", "'0'", "1"],
    "--preset thesis --learning-rate nan": ["--learning-rate", "nan", "finite"],
    "--learning-rates 0.1,-1": ["--learning-rates", "-1", "greater than 0"],
    "--preset thesis --hidden-sizes 3,x": ["--hidden-sizes", "'x'", "integer"],
    "--preset thesis --hidden-sizes=": ["--hidden-sizes", "at least one"],
    "--seed -1": ["--seed", "-1", "0"],
    "--objective quadratc": ["--objective", "quadratc", "did you mean 'quadratic'", "mnist"],
    "--optimizer adam": ["--optimizer", "'adam'", "coordinatewise-lstm"],
    "--preprocessor identity": ["--preprocessor", "belongs to", "'coordinatewise-lstm'"],
    "--preset thesis --preprocessor foo": ["--preprocessor", "'foo'", "signed-log"],
    "--normalization foo": ["--normalization", "'foo'", "tensor, part, global, clip, none"],
    "--objective mnist --dim 3": ["--dim", "belongs to", "'quadratic'", "'mnist'"],
    "--preset thesis --p 3": ["--p", "'log-and-sign' or 'signed-log'", "'identity'"],
    "--objective mnist --data-dir nowhere": ["--data-dir", "nowhere", "embedded"],
    "--objective mnist --data embedded --batch-size 6000": ["--batch-size", "6000", "5000"],
    "--objective mnist --data embedded --data-sha256 abc": ["--data-sha256", "abc", "03dc59"],
    "--windw 3": ["--windw", "--window"],
    "--set strategy.windw=3": ["strategy.windw", "did you mean 'window'"],
    "--set meta=3": ["meta", "table"],
    "--set window": ["--set", "window", "meta.num_steps=100"],
    "--config missing.toml": ["--config", "missing.toml", "No such file"],
    "--config broken.toml": ["--config", "broken.toml", "not TOML"],
    "--config unknown.toml": ["strategy.windoww", "window"],
    "--out there": ["--out", "there", "exists"],
}


@pytest.mark.parametrize("arguments", BAD)
def test_mistakes_give_one_line_and_write_nothing(arguments, tmp_path):
    Path("broken.toml").write_text("a = [")
    Path("unknown.toml").write_text("[strategy]\nkind = 'every-window'\nwindoww = 3\n")
    Path("there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = l2o_cli("train", *arguments.split(), code=2)
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert [part for part in BAD[arguments] if part not in result.stderr] == [], result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_unknown_commands_list_the_known_ones():
    stderr = l2o_cli("trian", code=2).stderr
    assert "did you mean 'train'" in stderr and "evaluate" in stderr and stderr.count("\n") == 1


def test_folders_of_the_same_second_are_numbered(monkeypatch):
    monkeypatch.setattr("l2o_cli._folder.datetime", _FrozenTime)
    names = [make_folder(None, Path("runs"), "a-b").name for _ in range(3)]
    assert names == ["20250102-030405-a-b", "20250102-030405-a-b-2", "20250102-030405-a-b-3"]


class _FrozenTime:
    import datetime as _real

    class datetime:
        @staticmethod
        def now():
            return _FrozenTime._real.datetime(2025, 1, 2, 3, 4, 5)


# Training.


def test_training_says_what_it_does_and_keeps_everything(trained):
    folder, output = trained
    optimizer = l2o.load(folder / "optimizer.safetensors")
    # 4·3·(1 + 3 + 1) weights of one layer of three units with one feature.
    assert l2o.count_meta_parameters(optimizer) == 60
    assert "coordinatewise-lstm (60 meta-parameters) on quadratic (2 coordinates)" in output
    assert "2 super epochs x 6 steps x 2 objectives" in output and "on cpu" in output
    names = ["learned", "untrained", *l2o.baselines_for(l2o.objectives.Quadratic(2))]
    for name in (*names, "median", "beaten", "L-BFGS evaluates f", "l2o evaluate"):
        assert name in output
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["super_epoch"] for row in rows] == [1, 2]
    assert all(row["meta_loss"] > 0 and row["skipped_updates"] == 0 for row in rows)
    record = json.loads((folder / "run.json").read_text())
    assert record["result"] == "completed" and record["super_epochs_done"] == 2
    assert record["versions"]["jax"] and record["num_meta_parameters"] == 60
    comparison = json.loads((folder / "comparison.json").read_text())
    assert sorted(row["name"] for row in comparison["summary"]) == sorted(names)
    assert comparison["learning_rates_tried"] == [0.01, 0.1]
    finals = (folder / "final_losses.csv").read_text().splitlines()
    assert len(finals) == 1 + 2 * len(names)
    assert len((folder / "curves.csv").read_text().splitlines()) == 1 + 6 * len(names)
    for figure in ("curves.png", "training.png"):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")
    assert any((folder / "tensorboard").iterdir())


def test_the_kept_configuration_repeats_the_run_bit_for_bit(trained, tmp_path):
    folder, _ = trained
    again = tmp_path / "again"
    output = l2o_cli("train", "--config", folder / "config.toml", "--out", again, "--quiet").output
    assert output == ""
    for name in ("config.toml", "optimizer.safetensors", "curves.csv", "final_losses.csv"):
        assert sha256(again / name) == sha256(folder / name), name
    other = tmp_path / "other"
    l2o_cli("train", "--config", folder / "config.toml", "--seed", 1, "--out", other, "--quiet")
    assert sha256(other / "curves.csv") != sha256(folder / "curves.csv")


def test_the_comparison_is_that_of_the_library(trained):
    folder, _ = trained
    config = resolve([tomllib.loads((folder / "config.toml").read_text())])
    together = l2o.compare(
        {"learned": l2o.load(folder / "optimizer.safetensors"), "SGD": l2o.BASELINES["SGD"]},
        l2o.objectives.Quadratic(2),
        num_steps=6,
        num_objectives=2,
        num_tuning_objectives=2,
        learning_rates=(0.01, 0.1),
        key=jr.split(jr.key(config.seed), 3)[2],
    )
    curves = l2o.plots.read_curves(folder / "curves.csv")
    for name, quartiles in together.curves().items():
        np.testing.assert_allclose(curves[name], quartiles, rtol=1e-6)


def test_restarts_are_all_kept_and_compared(tmp_path, monkeypatch):
    _only_adam(monkeypatch)
    result = l2o_cli("train", *TINY, "--restarts", 3, "--out", "out", "--json")
    answer = json.loads(result.stdout)
    assert len(answer["files"]) == 3 and len(answer["restarts"]["medians"]) == 3
    assert "of the restarts have a median below that of" in result.stderr and "restarts:" in result.stderr
    optimizers = [l2o.load(tmp_path / "out" / name) for name in answer["files"]]
    weights = [np.asarray(optimizer.cells[0].weight_ih) for optimizer in optimizers]
    assert weights[0].shape == (12, 1)
    assert not np.array_equal(weights[0], weights[1])
    row = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    assert row["final_loss"] == np.median(row["restarts"]["final_loss"])
    evaluation = json.loads(l2o_cli("evaluate", "out", "--json").stdout)
    assert len(evaluation["restarts"]["medians"]) == 3


@pytest.mark.parametrize("restarts", [1, 2])
def test_the_best_by_validation_is_taken_and_the_last_kept(restarts, monkeypatch):
    """A meta-learning rate that spoils the optimizer: an early one is taken, saved, and compared."""
    _only_adam(monkeypatch)
    spoiled = ("--meta-learning-rate", 3, "--validate-every", 2, "--average", 0.3, "--restarts", restarts)
    settings = (*spoiled, "--super-epochs", 5, "--learning-rate", 0.1, "--out", "out", "--json")
    result = l2o_cli("train", *TINY, *settings)
    answer, record = json.loads(result.stdout), json.loads(Path("out/run.json").read_text())
    taken = record["taken"]
    assert answer["taken"] == taken and taken["by"] == "validation"
    epochs = np.atleast_1d(taken["super_epoch"])
    assert len(epochs) == restarts and set(epochs.tolist()) <= {0, 2, 4, 5}
    assert "the best by validation" in result.stderr
    rows = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert [row["validation_loss"] is not None for row in rows] == [False, True, False, True, True]
    name = "optimizer{}.safetensors" if restarts == 1 else "optimizers{}/restart-001.safetensors"
    best, last = (l2o.load(f"out/{name.format(which)}") for which in ("", "-last"))
    is_last = epochs[-1] == 5 and not np.atleast_1d(taken["averaged"])[-1]
    assert bool(eqx.tree_equal(best, last)) == is_last
    assert l2o.load_metadata(f"out/{name.format('')}")["taken"] == taken
    # The score of what was saved is the one that was noted, on draws that depend on the seed alone.
    validation = build(resolve([tomllib.loads(Path("out/config.toml").read_text())])).validation
    assert validation is not None
    np.testing.assert_allclose(validation.score(best), np.atleast_1d(taken["validation_loss"])[-1], rtol=1e-4)


def test_an_average_without_validation_is_taken(monkeypatch):
    _only_adam(monkeypatch)
    output = l2o_cli("train", *TINY, "--average", 1, "--out", "out").output
    assert "the mean of the optimizers of the last 2 super epochs" in output
    assert Path("out/optimizer-last.safetensors").exists()
    assert json.loads(Path("out/run.json").read_text())["taken"]["by"] == "average"


def test_json_is_the_only_thing_on_stdout(trained, tmp_path):
    folder, _ = trained
    result = l2o_cli("train", "--config", folder / "config.toml", "--out", "out", "--json", "--quiet")
    answer = json.loads(result.stdout)
    assert answer["folder"] == "out" and answer["result"] == "completed"
    assert answer["summary"] == json.loads((folder / "comparison.json").read_text())["summary"]
    assert result.stderr == ""


@pytest.mark.parametrize(
    "settings, text",
    [
        (["meta.num_steps=8"], "The last 2 steps of each super epoch fill no window and train nothing"),
        (["meta.num_steps=7"], "The last 1 step of each super epoch fills no window and trains nothing"),
        (["meta.num_steps=8", "strategy.remainder=train"], ""),
        (["meta.num_steps=7", "strategy.kind=every-step"], ""),
        (["meta.num_steps=[7, 8]"], "Up to the last 2 steps of each super epoch fill no window and train"),
    ],
)
def test_steps_that_train_nothing_are_counted(settings, text):
    parts = build(resolve([*read_assignments(["preset=thesis", "strategy.window=3", *settings])]))
    said = _intention(parts, 60, "2")
    assert text in said if text else "The last" not in said


def test_all_baselines_take_part_and_a_comparison_can_be_interrupted(monkeypatch):
    """With blocks of the meta-gradient and another weighting, for a change."""
    seen = []

    def interrupt(optimizers, *rest, **settings):
        seen.extend(optimizers)
        raise KeyboardInterrupt

    monkeypatch.setattr("l2o_eqx._baselines.BASELINES", ALL_BASELINES)
    monkeypatch.setattr("l2o_eqx.compare", interrupt)
    settings = (*TINY, "--normalization", "part", "--weighting", "linear", "--super-epochs", 1)
    output = l2o_cli("train", *settings, "--out", "out", code=130).output
    assert "The trained optimizer is in out" in output
    assert seen == ["learned", "untrained", *(name for name in ALL_BASELINES if name != "Muon")]
    assert json.loads(Path("out/run.json").read_text())["comparison"] == "interrupted"
    assert l2o.load_metadata("out/optimizer.safetensors")["config"]["weighting"]["beta"] == 1.0


@pytest.mark.parametrize("normalization", options()["meta", "normalization"].choices)
def test_every_normalization_is_one_of_the_library(normalization):
    """What each does to a meta-gradient is in test_meta_optimizers.py."""
    options = ["preset=thesis", f"meta.normalization={normalization}"]
    meta_optimizer = build(resolve(read_assignments(options))).meta_optimizer
    phi = l2o.optimizers.CoordinatewiseLSTM((1,), key=jr.key(0))
    phi = eqx.filter(phi, eqx.is_inexact_array)
    updates, _ = meta_optimizer.update(phi, meta_optimizer.init(phi), phi)
    assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))


def test_mnist_is_resolved_and_recorded(monkeypatch):
    _only_adam(monkeypatch)
    settings = ["--preset", "thesis", "--num-steps", "4", "--window", "2", "--super-epochs", "1"]
    settings += ["--hidden-sizes", "2"]
    mnist = [
        a.replace("--steps", "--eval-steps").replace("--objectives", "--eval-objectives") for a in TINY_MNIST
    ]
    mnist[mnist.index("embedded")] = "auto"
    output = l2o_cli("train", *mnist, *settings, "--out", "out").output
    assert "MNIST-5k (embedded): 5,000 training and 1,000 test digits" in output
    table = tomllib.loads(Path("out/config.toml").read_text())["objective"]
    record = json.loads(Path("out/run.json").read_text())
    assert table["data"] == "embedded" and table["data_sha256"] == record["data"]["sha256"]
    assert record["num_coordinates"] == 784 * 2 + 2 + 2 * 10 + 10


def _only_adam(monkeypatch):
    adam = {"Adam": l2o.BASELINES["Adam"]}
    monkeypatch.setattr("l2o_eqx._baselines.BASELINES", adam)


# Ctrl-C.


@pytest.mark.parametrize(
    "asked", sparing([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], but=[signal.SIGINT, signal.SIGHUP])
)
def test_the_first_interrupt_ends_the_training_in_good_order(asked, tmp_path):
    process = start("train", *TINY, "--super-epochs", 1_000_000, "--out", "out")
    # A row is written before the super epoch counts as done.
    _wait_for(tmp_path / "out" / "metrics.jsonl", process, num_lines=2)
    process.send_signal(asked)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr == ""
    assert "Stopping when this super epoch is over" in stdout and "optimizer.safetensors" in stdout
    done = len((tmp_path / "out/metrics.jsonl").read_text().splitlines())
    assert f"Stopped after {done} of 1000000 super epochs" in stdout
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["result"] == "stopped" and record["super_epochs_done"] == done
    assert l2o.count_meta_parameters(l2o.load("out/optimizer.safetensors")) == 60


def test_the_second_interrupt_does_not_wait(tmp_path):
    process = start("train", *TINY, "--num-steps", 100_000_000, "--out", "out")
    _wait_for(tmp_path / "out" / "run.json", process)
    for _ in range(2):
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and stderr == ""
    assert "untrained" in stdout
    assert json.loads((tmp_path / "out/run.json").read_text())["result"] == "stopped"


def test_an_interrupt_before_anything_has_begun_is_neither_swallowed_nor_a_traceback():
    code = (
        "import os, signal, l2o_cli, l2o_cli._app as cli\n"
        "def app():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('swallowed')\n"
        "cli.app = app\n"
        "l2o_cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_record_of_a_later_format_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "later")
    record = json.loads((run / "run.json").read_text())
    (tmp_path / "later" / "run.json").write_text(json.dumps({**record, "format": 2}))
    error = l2o_cli("resume", tmp_path / "later", code=2)
    assert "needs a newer l2o_eqx" in str(error.exception or "") + error.output


def test_two_interrupts_at_once_leave_files_that_agree(tmp_path):
    process = start("train", *TINY, "--super-epochs", 1_000_000, "--out", "out")
    _wait_for(tmp_path / "out" / "metrics.jsonl", process, num_lines=50)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr == ""
    done = len((tmp_path / "out/metrics.jsonl").read_text().splitlines())
    assert f"Stopped after {done} of 1000000 super epochs" in stdout
    assert json.loads((tmp_path / "out/run.json").read_text())["super_epochs_done"] == done
    assert l2o.load_metadata("out")["super_epochs_done"] == done
    assert (tmp_path / f"out/checkpoints/checkpoint-{done:09}.safetensors").is_file()


def _wait_for(path, process, num_lines=1):
    while not (path.exists() and path.read_bytes().count(b"\n") >= num_lines):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_interruptible_work_returns_and_raises_as_if_called():
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    assert run_interruptibly(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 / 0)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_interrupts_are_announced_once():
    stop = threading.Event()
    announced = []

    def announce():
        announced.append(1)
        stop.set()

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        return stop.wait(10)

    assert run_interruptibly(work, on_first=announce)
    assert announced == [1]


# Evaluating.


def test_evaluating_again_uses_other_draws_and_keeps_the_result(run):
    answer = json.loads(l2o_cli("evaluate", run, "--steps", 9, "--json").stdout)
    folder = Path(answer["folder"])
    assert folder.parent == run / "evaluations" and folder.name.endswith("-quadratic")
    assert answer["seed"] == 1 and answer["num_steps"] == 9 and answer["num_objectives"] == 2
    assert {p.name for p in folder.iterdir()} == {
        "comparison.json",
        "curves.csv",
        "curves.png",
        "curves_by_evaluations.csv",
        "final_losses.csv",
    }
    assert plots_lengths(folder) == {9}
    same = json.loads(l2o_cli("evaluate", run, "--seed", 0, "--json").stdout)
    # The untrained optimizer is not kept in the folder.
    trained = json.loads((run / "comparison.json").read_text())["summary"]
    assert same["summary"] == [row for row in trained if row["name"] != "untrained"]


def plots_lengths(folder):
    return {q.shape[1] for q in l2o.plots.read_curves(folder / "curves.csv").values()}


def test_a_bare_file_can_be_evaluated_on_another_objective(run, tmp_path, monkeypatch):
    _only_adam(monkeypatch)
    file = run / "optimizer.safetensors"
    before = sorted(run.rglob("*"))
    output = l2o_cli("evaluate", file, *TINY_MNIST).output
    assert "mnist" in output and "Adam" in output and "MNIST-5k" in output
    assert sorted(run.rglob("*")) == before
    l2o_cli("evaluate", file, *TINY_MNIST, "--no-baselines", "--out", "out", "--quiet")
    comparison = json.loads(Path("out/comparison.json").read_text())
    assert [row["name"] for row in comparison["summary"]] == ["learned"]


def _damage(run):
    path = run / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _foreign(run):
    (run / "optimizer.safetensors").write_text("something else")


def _not_an_optimizer(run):
    l2o.save(run / "optimizer.safetensors", {"weights": np.ones(2)})


def _without_optimizer(run):
    (run / "optimizer.safetensors").unlink()


def test_a_file_saved_from_python_is_evaluated_with_the_presets(tmp_path, run):
    file = tmp_path / "mine.safetensors"
    l2o.save(file, l2o.load(run / "optimizer.safetensors"))
    options = "--no-baselines --dim 2 --steps 5 --objectives 3 --json"
    content = json.loads(l2o_cli("evaluate", file, *options.split()).stdout)
    assert content["objective"] == "quadratic" and content["optimizer"] == "CoordinatewiseLSTM"
    assert content["num_steps"] == 5 and len(content["summary"]) == 1


def test_other_digits_drop_the_checksum_of_the_old_ones():
    used = {"objective": {"kind": "mnist", "data": "embedded", "data_sha256": "abc"}}
    same = resolve([used, {"objective": {"batch_size": 3}}])
    other = resolve([used, {"objective": {"data": "tfds", "data_dir": "there"}}])
    assert same.objective["data_sha256"] == "abc"
    assert other.objective["data_sha256"] is None


@pytest.mark.parametrize("harm", [_damage, _foreign, _not_an_optimizer, _without_optimizer])
def test_files_that_cannot_be_used_give_one_line(harm, run):
    harm(run)
    stderr = l2o_cli("evaluate", run, code=2).stderr
    assert stderr.count("\n") == 1 and "RUN_OR_FILE" in stderr and str(run) in stderr
    assert not (run / "evaluations").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("nowhere", "nowhere"),
        ("run --steps 0", "evaluation.num_steps"),
        ("run --objective foo", "'foo'"),
        ("run --objective mnist --dim 3", "--dim"),
        ("run --out run", "--out"),
        ("run --set meta.foo=1", "meta.foo"),
    ],
)
def test_mistakes_in_evaluate_give_one_line(arguments, named, run):
    before = sorted(run.rglob("*"))
    stderr = l2o_cli("evaluate", *arguments.split(), code=2).stderr
    assert stderr.count("\n") == 1 and named in stderr
    assert sorted(run.rglob("*")) == before


# Plotting.


def test_figures_are_drawn_again_from_the_data(run):
    shutil.copytree(run, run / "evaluations" / "one")
    for figure in run.rglob("*.png"):
        figure.unlink()
    output = l2o_cli("plot", run).output
    assert len(list(run.rglob("*.png"))) == 4 and output.count("\n") == 4
    l2o_cli("plot", run, "--format", "svg", "--out", "figures", "--quiet")
    assert {p.relative_to("figures").as_posix() for p in Path("figures").rglob("*.svg")} == {
        "curves.svg",
        "training.svg",
        "evaluations/one/curves.svg",
        "evaluations/one/training.svg",
    }
    assert "<svg" in Path("figures/curves.svg").read_text()


@pytest.mark.parametrize("content", [None, "", "a,b\n"])
def test_runs_without_anything_to_draw_give_one_line(content, tmp_path):
    Path("run").mkdir()
    if content is not None:
        Path("run", "curves.csv" if content else "metrics.jsonl").write_text(content)
    stderr = l2o_cli("plot", "run", code=2).stderr
    assert stderr.count("\n") == 1 and "run" in stderr
