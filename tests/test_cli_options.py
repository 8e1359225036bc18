"""What the command line knows of the library without importing it: signatures, docstrings, help."""

import inspect
import os
import subprocess
import sys

import pytest
from l2o_cli._errors import UsageError
from l2o_cli._estimator import with_estimator
from l2o_cli._kinds import DIGIT_KINDS, entry_points, kind_name, load, own_kinds, signature
from l2o_cli._options import COMMON, PARTS
from l2o_cli._settings import label, options
from l2o_cli._signatures import GROUPS, Parameter, live_signature, read_arguments
from l2o_cli._types import Type, type_of
from test_cli import _in_an_empty_folder, l2o_cli  # noqa: F401

import l2o_eqx as l2o

OWN = [(group, kind) for group in GROUPS for kind in own_kinds(group)]


@pytest.mark.parametrize(("group", "kind"), OWN, ids=":".join)
def test_what_is_read_in_sources_is_what_python_says(group, kind):
    """Names, types, defaults and help; but for parameters that no command line can give."""
    read, live = signature(group, kind), live_signature(load(group, kind))
    assert [*read.parameters] == [name for name in live.parameters] + ["data_sha256"] * (kind in DIGIT_KINDS)
    assert read.summary == live.summary
    for name, p in live.parameters.items():
        mine = read.parameters[name]
        if mine.type.name == "function":
            assert mine.type.prefix + mine.default == load_default(group, kind, name)
            continue
        assert mine.type == p.type, name
        if not isinstance(p.default, tuple) or not hasattr(p.default, "text"):
            assert mine.default == p.default, name


def load_default(group, kind, name):
    target = load(group, kind)
    return inspect.signature(getattr(target, "make", target)).parameters[name].default.__name__


def test_every_exported_class_that_can_be_made_is_a_kind():
    """Those that cannot need what no option can give: a model, a transformation."""
    for group, abstract in GROUPS.items():
        folder = getattr(l2o, group, None)
        if folder is None:
            continue
        kinds = {*own_kinds(group).values()}
        classes = {
            name
            for name, x in vars(folder).items()
            if isinstance(x, type) and issubclass(x, getattr(folder, abstract)) and not inspect.isabstract(x)
        }
        # A mixture is named by its families.
        assert classes - kinds <= {"Choice", "FewShot", "FromModel", "FromOptax", "Mixture"}, group


def test_names_of_kinds():
    names = {"CoordinatewiseLSTM": "coordinatewise-lstm", "AdamMLP": "adam-mlp", "MNIST": "mnist"}
    assert {name: kind_name(name, "optimizers") for name in names} == names
    assert kind_name("AdamOutput", "outputs") == "adam"


def test_arguments_of_a_docstring():
    doc = """Something.

    **Arguments:**

    - `a`, `b`: both, in a text
        of two lines.
    - `c`: another.

    **Raises:** nothing.
    """
    assert read_arguments(doc) == {
        "a": "both, in a text of two lines.",
        "b": "both, in a text of two lines.",
        "c": "another.",
    }


@pytest.mark.parametrize(
    ("annotation", "given", "value"),
    [
        (int, "7", 7),
        (float, 3, 3.0),
        (bool, "true", True),
        (tuple[int, ...], "3, 4", (3, 4)),
        (tuple[float, float], [1, 2], (1.0, 2.0)),
        (frozenset[str], "b,a", frozenset("ab")),
        (str | tuple[str, ...], "a", "a"),
        (str | tuple[str, ...], "a,b", ("a", "b")),
        (float | None, "0.5", 0.5),
        (float | None, None, None),
    ],
)
def test_values_are_read_by_their_type(annotation, given, value):
    read = type_of(annotation, {}).read(given)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("annotation", "given", "reason"),
    [
        (int, "7.5", "an integer"),
        (int, True, "an integer"),
        (float, "inf", "finite"),
        (bool, "maybe", "true or false"),
        (tuple[float, float], "1", "2 entries"),
        (tuple[int, ...], "1,x", "'x' must be an integer"),
        (int, {}, "table"),
    ],
)
def test_other_values_are_refused(annotation, given, reason):
    with pytest.raises(ValueError, match=reason):
        type_of(annotation, {}).read(given)
    assert type_of(object, {}) == Type("unknown")


# Help and completion.


def run(*arguments, **env):
    paths = os.pathsep.join(filter(None, sys.path))
    env = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "80", **env}
    words = [sys.executable, "-m", "l2o_cli", *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=env)


def test_the_help_of_train_is_short_and_fits_80_columns():
    text = run("train", "--help").stdout
    shown = [o.name for path, o in options().items() if f" {o.name} " in text]
    assert sorted(shown) == sorted(options()[tuple(name.split("."))].name for name in COMMON)
    assert len(shown) <= 20 and text.count("\n") <= 127
    everything = run("train", "--help-all").stdout
    assert max(map(len, (text + everything).splitlines())) <= 80
    assert "<bool>" not in everything and "…" not in everything.replace("1, 2, …", "").replace("1 … T", "")


def test_the_help_of_a_part_and_of_a_kind():
    text = l2o_cli("train", "--help-all", "validation").output
    assert "--validation-last" in text and "--preprocessor" not in text
    assert "--gates" in l2o_cli("train", "--optimizer", "subspace-rnn", "--help").output
    assert "--gates" not in l2o_cli("train", "--help").output
    stderr = l2o_cli("train", "--help-all", "optimiser", code=2).stderr
    assert "did you mean 'optimizer'" in stderr and all(part in stderr for part in PARTS)


def test_help_and_mistakes_import_no_jax():
    code = (
        "import sys, l2o_cli\n"
        "try: l2o_cli.main()\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'jax', 'numpy', 'matplotlib', 'equinox', 'optax'} & {*sys.modules}))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for words in (
        ["train", "--help"],
        ["train", "--window", "x"],
        ["evaluate", "--help-all"],
        ["pretrain", "--help"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env)
        assert "HEAVY []" in done.stdout, (done.stdout, done.stderr)


def test_the_shell_completes_commands_options_and_values():
    def complete(*words):
        line = " ".join(words)
        done = run(_L2O_COMPLETE="complete_bash", COMP_WORDS=f"l2o {line}", COMP_CWORD=str(len(words)))
        assert done.stderr == ""
        return done.stdout.split()

    assert complete("tr") == ["train"]
    assert "--window" in complete("train", "--win")
    assert complete("train", "--optimizer", "adam") == ["adam-mlp"]
    assert "--install-completion" in run("--help").stdout


def test_messages_name_an_option_also_inside_wrappers():
    assert (
        label(("optimizer", "inner", "hidden_sizes"))
        == "option '--hidden-sizes' (optimizer.inner.hidden_sizes)"
    )
    stderr = l2o_cli(
        "train", *["--optimizer", "unit-rms", "--inner", "adam-mlp", "--hidden-sizes", "0"], code=2
    ).stderr
    assert "option '--hidden-sizes' (optimizer.inner.hidden_sizes)" in stderr


def test_bench_comes_by_an_entry_point():
    assert entry_points("commands")["bench"].value == "l2o_bench.command:bench"


# Estimators in short.

FIRST = ["grads", "params", "value"]
ESTIMATOR = {"estimator": Parameter("estimator", Type("part", group="estimators"))}


@pytest.mark.parametrize(
    ("given", "preset", "estimator"),
    [
        ({}, {}, {"kind": "auto", "constants": FIRST}),
        ({"order": "second"}, {}, {"kind": "auto", "constants": []}),
        ({}, {"strategy.order": "second"}, {"kind": "auto", "constants": []}),
        ({"order": "first"}, {"strategy.order": "second"}, {"kind": "auto", "constants": FIRST}),
        ({"detach_state": True}, {}, {"kind": "auto", "constants": [*FIRST, "state"]}),
        ({"activations": "keep"}, {}, {"kind": "backprop", "constants": FIRST}),
        ({"activations": "recompute"}, {}, {"kind": "replay", "detach_state": False}),
        (
            {"activations": "recompute", "order": "second"},
            {},
            {"kind": "backprop", "constants": [], "recompute": True},
        ),
        ({"gradient": "recorded", "detach_state": "true"}, {}, {"kind": "recorded", "detach_state": True}),
        (
            {"gradient": "recorded"},
            {"strategy.objective_clip": 0.3},
            {
                "kind": "clipped-per-objective",
                "inner": {"kind": "recorded", "detach_state": False},
                "max_norm": 0.3,
            },
        ),
        ({"estimator": {"kind": "es"}}, {"strategy.order": "second"}, {"kind": "es"}),
    ],
)
def test_an_estimator_can_be_said_in_short(given, preset, estimator):
    """As strategies had it, in options, files and presets."""
    assert with_estimator({"window": 3, **given}, preset, ESTIMATOR) == {"window": 3, "estimator": estimator}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"gradient": "recorded", "order": "second"}, "order='first'"),
        ({"gradient": "recorded", "activations": "keep"}, "activations='recompute'"),
        ({"estimator": {"kind": "es"}, "order": "first"}, "'es'"),
        ({"order": "third"}, "'--order'.*'third'; possible: first, second"),
    ],
)
def test_estimators_that_contradict_themselves(given, named):
    with pytest.raises(UsageError, match=named):
        with_estimator(given, {}, ESTIMATOR)
