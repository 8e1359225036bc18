"""Every optimizer of the gallery is what its card says, on new draws; and the commands about them."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from l2o_cli._build import build
from l2o_cli._gallery import as_page, make_card
from l2o_cli._resolve import read_toml, resolve
from test_cli import _in_an_empty_folder, l2o_cli  # noqa: F401

import l2o_eqx as l2o
from l2o_eqx.objectives._mixture import families_of

NAMES = l2o.gallery.names()
# How many objectives, and how many steps at the end are compared if not the card's.
OBJECTIVES = {"quadratic": 16, "mnist": 2, "classifiers": 12, "convnet": 8}
OBJECTIVES |= {"zoo": 64, "sinusoid": 64, "black-box": 64}
# Of those with several families; programs take long to compile.
FAMILY = {"zoo": "softmax"}


@pytest.mark.parametrize("name", NAMES)
def test_on_new_draws_it_does_what_its_card_says(name):
    """The median lies between the card's quartiles, and below the median of the best baseline."""
    card, parts = l2o.gallery.card(name), build(resolve([read_toml(l2o.gallery.recipe_of(name))]))
    found, family = card["comparison"], parts.family
    if name in FAMILY:
        found |= found["families"][FAMILY[name]]
        family = families_of(family)[FAMILY[name]]
    losses = l2o.evaluate(
        l2o.pretrained(name),
        family,
        num_steps=found["num_steps"],
        num_objectives=OBJECTIVES[name],
        key=jr.key(12345),
    ).losses
    losses = np.asarray(losses, np.float64)
    if found["best_so_far"]:
        losses = np.minimum.accumulate(losses, axis=1)
    median = np.median(np.mean(losses[:, -found["averaged_steps"] :], axis=1))
    rows = {row["name"]: row for row in found["summary"]}
    # Of two networks on digits a median may be the higher one.
    slack = 0.05 if name == "mnist" else 0
    assert (1 - slack) * rows["learned"]["q25"] <= median <= (1 + slack) * rows["learned"]["q75"]
    assert median < rows[found["best_baseline"]]["median"]


@pytest.mark.parametrize("name", NAMES)
def test_files_belong_together_and_are_small(name):
    card, file = l2o.gallery.card(name), l2o.gallery.file_of(name)
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stat().st_size < 90_000 and len(json.dumps(card)) < 12_000
    optimizer = l2o.pretrained(name)
    assert card["optimizer"] == type(optimizer).__name__
    assert card["num_meta_parameters"] == l2o.count_meta_parameters(optimizer)
    # The recipe has all settings that the file was trained with, and the words are those of today.
    trained_with = l2o.load_metadata(file)["config"]
    recipe = read_toml(l2o.gallery.recipe_of(name))
    assert {**recipe, "format": None} == {**trained_with, "format": None}
    assert {key: card[key] for key in l2o.gallery.notes_on(name)} == l2o.gallery.notes_on(name)


def test_the_first_lines_of_the_readme():
    """No training: the transformation of the gallery minimizes in an optax loop."""
    transformation = l2o.as_optax(l2o.pretrained("quadratic"))
    params = jnp.array([3.0, -2.0])

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda x: jnp.sum(jnp.array([1.0, 5.0]) * x**2))(params)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params)
    for _ in range(80):
        params, state = step(params, state)
    assert np.max(np.abs(params)) < 1e-3


def test_what_there_is():
    assert tuple(l2o.pretrained()) == NAMES and all(l2o.pretrained().values())
    with pytest.raises(l2o.ArgumentError, match="quadratic.*mnist") as error:
        l2o.pretrained("quadratics")
    assert error.value.possible == NAMES
    code = "import sys, l2o_eqx; l2o_eqx.pretrained(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout == "False\n", done.stderr


def test_the_command_lists_and_shows():
    listed = l2o_cli("gallery").output
    assert all(f"{name} " in listed and text in listed for name, text in l2o.pretrained().items())
    assert json.loads(l2o_cli("gallery", "show", "mnist", "--json").output) == l2o.gallery.card("mnist")
    assert "Not for:" in l2o_cli("gallery", "show", "quadratic").output
    assert "did you mean 'mnist'" in l2o_cli("gallery", "show", "mnst", code=2).stderr
    assert "must be given" in l2o_cli("gallery", "build", code=2).stderr
    assert "gallery show mnist" in l2o_cli("gallery", "list", "mnist", code=2).stderr
    assert "gallery build" in l2o_cli("gallery", "show", "mnist", "--out", "x", code=2).stderr
    for ignored in ("--quiet", "--no-cache", "--cores=1"):
        assert "not for list" in l2o_cli("gallery", "list", ignored, code=2).stderr
    assert "exists" in l2o_cli("gallery", "build", "mnist", "--out", ".", code=2).stderr


def test_the_page_is_that_of_the_cards():
    page = Path(__file__).parents[1] / "docs" / "gallery.md"
    assert page.read_text(encoding="utf-8") == as_page([l2o.gallery.card(name) for name in NAMES])


def test_a_card_is_made_of_a_run():
    """Written out as the files of a run, a card makes itself."""
    card, folder = l2o.gallery.card("mnist"), Path("run")
    folder.mkdir()
    shutil.copyfile(l2o.gallery.file_of("mnist"), folder / "optimizer.safetensors")
    training, versions = card["training"], dict(card["versions"])
    ran = {"started": "2026-01-01T23:59:00+01:00", "ended": "2026-01-02T00:01:00+01:00"}
    ran |= {**card["cost"], "python": versions.pop("python"), "versions": versions, "seed": card["seed"]}
    ran |= {"num_meta_parameters": 323, "failed_objectives": [], "skipped_updates": 0}
    ran |= {"super_epochs_done": training["super_epochs"], "taken": training["taken"]}
    (folder / "run.json").write_text(json.dumps(ran))
    (folder / "comparison.json").write_text(json.dumps({**card["comparison"], "title": "not on the card"}))
    assert make_card("mnist", folder) == {**card, "cost": {**card["cost"], "seconds": 120}}
    assert json.loads((folder / "mnist.json").read_text())["cost"]["seconds"] == 120
    assert (folder / "mnist.safetensors").read_bytes() == l2o.gallery.file_of("mnist").read_bytes()


# `l2o info`.


def test_info_of_a_file_a_run_and_a_name():
    optimizer, folder = l2o.pretrained("quadratic"), Path("run")
    folder.mkdir()
    file = shutil.copyfile(l2o.gallery.file_of("quadratic"), folder / "optimizer.safetensors")
    facts = json.loads(l2o_cli("info", folder, "--json").output)
    assert facts["class"] == "l2o_eqx.optimizers:LearnedMomentum" and facts["format"] == 1
    assert facts["num_meta_parameters"] == l2o.count_meta_parameters(optimizer)
    assert facts["settings"] == {"per": "tensor", "first_step": "absolute"}
    assert facts["config"]["objective"]["dim"] == 16 and facts["metadata"]["super_epochs_done"] == 100
    text = l2o_cli("info", file).output
    assert "trained on: quadratic (dim 16" in text
    assert (
        "100 super epochs x 320 steps x 32 objectives" in text and l2o.pretrained()["quadratic"] not in text
    )
    text = l2o_cli("info", "mnist").output
    assert l2o.pretrained()["mnist"] in text and "taken: " in text


def test_info_needs_no_class_and_no_training():
    l2o.save("tree.safetensors", {"a": jnp.ones((2, 3)), "n": 3})
    text = l2o_cli("info", "tree.safetensors").output
    assert "without a class; 6 meta-parameters, 1 arrays" in text and "n = 3" in text
    assert "not written by `l2o train`" in text


def test_info_of_what_is_no_such_file():
    content = l2o.gallery.file_of("quadratic").read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for name, damaged in {"cut": content[:-9], "flipped": flipped, "empty": b"", "text": b"hello"}.items():
        Path(name).write_bytes(damaged)
        error = l2o_cli("info", name, code=2).stderr
        assert error.startswith(f"l2o: FILE: {name} is damaged") and error.count("\n") == 1
    error = l2o_cli("info", "nothing", code=2).stderr
    assert "neither a folder nor a file nothing" in error and "quadratic" in error


# `l2o compare`.


def test_compare_is_the_library_on_any_mix():
    """The draws are those of the next seed; the first name is the one that others are beaten by."""
    file = shutil.copyfile(l2o.gallery.file_of("quadratic"), "mine.safetensors")
    small = ["--dim", 2, "--eval-objectives", 2, "--tuning-objectives", 1, "--steps", 6]
    small += ["--learning-rates", "0.01,0.1", "--out", "out", "--json"]
    answer = json.loads(l2o_cli("compare", file, "quadratic", "adagrad", *small).stdout)
    rows = {row["name"]: row for row in answer["summary"]}
    assert set(rows) == {"mine", "quadratic", "adagrad"} and rows["mine"]["beaten"] is None
    assert rows["mine"]["median"] == rows["quadratic"]["median"] and rows["quadratic"]["beaten"] == 0.5
    assert answer["sources"] == [file, "quadratic", "adagrad"] and answer["best_baseline"] == "adagrad"
    # Alone: what another one is tuned on does not move the draws.
    expected = l2o.compare(
        {"mine": l2o.load(file)},
        l2o.objectives.Quadratic(2),
        num_steps=6,
        num_objectives=2,
        key=jr.split(jr.key(1), 3)[2],
    )
    np.testing.assert_allclose(rows["mine"]["median"], expected.summary("mine")[0]["median"], rtol=1e-4)
    assert json.loads(Path("out/comparison.json").read_text())["sources"] == answer["sources"]
    assert Path("out/curves.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["adamm"], "'adamm' is no file, run folder, name in the gallery, or optimizer of optax"),
        (["chain"], "'chain' is no file"),
        (["adam", "Adam"], "two are called 'Adam'"),
        (["quadratic", "quadratic"], "two are called 'quadratic'"),
        (["sinusoid", "--objective", "quadratic"], "does not fit the objective"),
        (["quadratic", "--out", "."], "exists"),
        ([], "NAME"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_compare_refuses(arguments, message):
    assert message in l2o_cli("compare", *arguments, code=2).stderr


# Updates of one entry of the weights and one of the biases, as the version that wrote the files had them.
RECORDED = {
    "quadratic": [
        *([0.00049488, -0.0017758], [0.0020936, -0.0079968], [0.0039084, -0.013814]),
        *([0.0046574, -0.018446], [0.0063745, -0.023236], [0.0074939, -0.028697]),
    ],
    "mnist": [
        *([0.29932, -0.070528], [-0.15748, -0.061925], [-0.061018, -0.050952]),
        *([0.11775, -0.04272], [0.16559, -0.035489], [-0.058075, -0.030036]),
    ],
}


@pytest.mark.parametrize("name", RECORDED)
def test_files_go_on_meaning_what_they_meant(name):
    """Inputs of a trained network are part of its class: another meaning of one would spoil every file."""
    transformation: Any = l2o.as_optax(l2o.pretrained(name), 10)
    params = {"w": jnp.sin(jnp.arange(12.0)).reshape(3, 4), "b": jnp.cos(jnp.arange(3.0))}
    state, found = transformation.init(params), []
    for t in range(6):
        grads = jax.tree.map(lambda p, t=t: p * (1 + 0.5 * np.cos(t)) + 0.1 * jnp.sin(3.0 * t + p), params)
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append([float(updates["w"][1, 2]), float(updates["b"][0])])
    np.testing.assert_allclose(found, RECORDED[name], rtol=1e-3, atol=1e-5)
