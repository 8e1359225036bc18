"""`l2o train --trainer guided-policy-search`: a run like any other, and what does not go with it."""

import json
from pathlib import Path

import pytest
from l2o_cli._build import build
from l2o_cli._errors import UsageError
from l2o_cli._resolve import read_assignments, refuse_ignored, resolve
from test_cli import _in_an_empty_folder, l2o_cli  # noqa: F401

import l2o_eqx as l2o
from l2o_eqx.optimizers import PolicyOptimizer

SEARCH = ["--objective", "logistic", "--optimizer", "policy", "--trainer", "guided-policy-search"]
TINY = [*SEARCH, "--num-features", 1, "--num-examples", 8, "--history", 2, "--hidden-size", 4]
TINY += ["--num-steps", 3, "--super-epochs", 2, "--num-objectives", 2, "--samples", 3, "--fit-updates", 2]
TINY += ["--inner-iterations", 1, "--eval-objectives", 3, "--tuning-objectives", 2]
TINY += ["--learning-rates", "0.1", "--against", "SGD", "--validation-objectives", 2]


def test_a_policy_is_searched_for_kept_and_compared():
    answer = json.loads(l2o_cli("train", *TINY, "--out", "run", "--json").stdout)
    assert {row["name"] for row in answer["summary"]} == {"learned", "untrained", "SGD"}
    optimizer = l2o.load("run/optimizer.safetensors")
    assert isinstance(optimizer, PolicyOptimizer) and optimizer.history == 2
    metrics = l2o.callbacks.read_metrics(Path("run/metrics.jsonl"))
    assert metrics["teacher_loss"].shape == (2,) and metrics["validation_loss"].shape == (2,)
    again = json.loads(l2o_cli("train", "--config", "run/config.toml", "--out", "again", "--json").stdout)
    assert again["summary"] == answer["summary"]


def resolved(*assignments):
    given = read_assignments(["objective=logistic", "optimizer=policy", *assignments])
    config = resolve(given)
    refuse_ignored(config, given)
    return config


def test_settings_are_those_of_the_trainer():
    parts = build(resolved("trainer.kind=guided-policy-search", "trainer.kl_step=0.5"))
    assert parts.searching["kl_step"] == 0.5 and parts.searching["method"] == "mirror-descent"
    assert parts.searching["num_objectives"] == 90
    assert parts.searching["num_steps"] == 40 and parts.searching["super_epochs"] == 15
    assert parts.validation is not None and parts.validation.every == 1
    assert resolved().meta.super_epochs == 100


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["trainer.kl_step=0.5"], "'meta-gradient'; it has a meaning with 'guided-policy-search' only"),
        (["trainer.kind=guided-policy-search", "strategy.window=5"], "with 'meta-gradient' only"),
        (["trainer.kind=guided-policy-search", "meta.average=0.5"], "with 'meta-gradient' only"),
        (["trainer.kind=guided-policy-search", "trainer.kl_step=0"], "must be greater than 0"),
        (["trainer.kind=guided-policy-search", "trainer.penalty=0.1"], "with 'badmm' only"),
        (["trainer.kind=reinforce"], "possible: meta-gradient, guided-policy-search"),
    ],
)
def test_what_does_not_go_together_is_refused(assignments, message):
    with pytest.raises(UsageError) as caught:
        resolved(*assignments)
    assert message in caught.value.format_message()


def test_a_search_is_on_one_family_of_one_length():
    for assignments, message in (
        (["meta.num_steps=[5, 9]"], "takes one"),
        (["objective.kind=booth,beale"], "one family at a time"),
    ):
        config = resolve(
            read_assignments(["optimizer=policy", *assignments, "trainer.kind=guided-policy-search"])
        )
        with pytest.raises(UsageError, match=message):
            build(config)
