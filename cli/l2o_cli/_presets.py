"""What settings are if they are not given, by preset and objective: the lowest layer of a configuration.

A line counts if the kinds chosen have that field, so that a preset also fits optimizers, strategies and
weightings other than its own; kinds in brackets are the only ones that a line is for. Wrappers hand lines on
to what they wrap.
"""

import re
from typing import Any

DEFAULT_OBJECTIVE = "quadratic"
DEFAULT_PRESET = "best"
# Files of versions that had no presets, with all settings that there were, mean this one.
FORMER_PRESET = "thesis"

Preset = dict[str, Any]

_NETWORKS = "coordinatewise-lstm|hierarchical"
_RATE = f"optimizer[{_NETWORKS}].learning_rate"
# What a kind with a part per layer is made of, if not said otherwise.
_ALWAYS: Preset = {"optimizer.make_optimizer.kind": "coordinatewise-lstm"}


def kinds_of_line(name: str) -> tuple[tuple[str, ...], str]:
    """The kinds that a line of a preset is for, all if there are none, and its path."""
    found = re.fullmatch(r"(\w+)\[([^]]+)\](.*)", name)
    return (tuple(found[2].split("|")), found[1] + found[3]) if found else ((), name)


_THESIS: Preset = {
    **_ALWAYS,
    "optimizer.kind": "coordinatewise-lstm",
    "optimizer.output.kind": "none",
    "strategy.kind": "every-window",
    "strategy.window": 16,
    "weighting.kind": "constant",
}

# An Adam with warm-up and cosine decay, and the true gradient.
_BEST: Preset = {
    **_ALWAYS,
    "strategy.order": "second",
    "weighting.kind": "log-mean",
    "meta.learning_rate": 3e-3,
    "meta.b2": 0.99,
    "meta.eps": 1e-10,
    "meta.decay": "cosine",
}

_QUADRATIC: Preset = {
    _RATE: 0.001,
    "optimizer.preprocessor.kind": "identity",
    "meta.num_steps": 320,
    "evaluation.num_objectives": 64,
    "evaluation.num_tuning_objectives": 16,
    "evaluation.last": 1,
}

_MNIST: Preset = {
    _RATE: 0.01,
    "optimizer.preprocessor.kind": "log-sign",
    "evaluation.num_objectives": 32,
    "evaluation.num_tuning_objectives": 4,
    "evaluation.last": 20,
}

# Andrychowicz et al. 2016, sec. 3 and appendix A, and the code that DeepMind released: two layers of 20 units
# with a linear read-out, windows of 20 steps, 100 steps in all, the loss after the last update counted.
_ANDRYCHOWICZ: Preset = {
    **_ALWAYS,
    "optimizer.kind": "coordinatewise-lstm",
    _RATE: 0.01,
    "optimizer.linear_readout": True,
    "optimizer.output.kind": "none",
    "optimizer.preprocessor.kind": "two-feature",
    "strategy.kind": "every-window",
    "strategy.window": 20,
    "strategy.include_final_loss": True,
    "weighting.kind": "constant",
    "meta.normalization": "none",
    "meta.num_steps": 100,
}

PRESETS: dict[str, dict[str, Preset]] = {
    "best": {
        "quadratic": {
            "optimizer.kind": "learned-momentum",
            "optimizer.output.kind": "momentum",
            "strategy.kind": "every-window",
            "strategy.window": 20,
            "strategy.include_final_loss": True,
            "meta.normalization": "global",
            "meta.warmup_updates": 20,
            "meta.final_share": 0.01,
            "meta.super_epochs": 100,
            "meta.num_objectives": 32,
            **_BEST,
            **_QUADRATIC,
        },
        "mnist": {
            "optimizer.kind": "adam-mlp",
            "optimizer[adam-mlp].learning_rate": 0.012,
            "optimizer[adam-mlp].matrices": True,
            "optimizer[adam-mlp].decay": "cosine",
            "optimizer.output.kind": "adam",
            "strategy.kind": "every-window",
            "strategy.window": 25,
            "strategy.include_final_loss": True,
            "strategy.objective_clip": 0.3,
            "weighting[log-mean].eps": 1e-6,
            "weighting[log-mean].power": 2.0,
            "meta.normalization": "clip",
            "meta.clip_norm": 0.3,
            "meta.num_steps": 100,
            "meta.super_epochs": 80,
            "meta.num_objectives": 2,
            **_BEST,
            "meta.learning_rate": 4e-3,
            **_MNIST,
        },
    },
    "thesis": {
        "quadratic": {
            **_THESIS,
            **_QUADRATIC,
            "meta.super_epochs": 50,
            "meta.num_objectives": 64,
        },
        "mnist": {
            **_THESIS,
            **_MNIST,
            "meta.num_steps": 375,
            "meta.super_epochs": 10,
            "meta.num_objectives": 1,
        },
    },
    "andrychowicz": {
        "quadratic": {
            **_QUADRATIC,
            **_ANDRYCHOWICZ,
            "objective[quadratic].dim": 10,
            "objective[quadratic].theta_std": 0.01,
            "optimizer.preprocessor.kind": "identity",
            "meta.super_epochs": 100,
            "meta.num_objectives": 128,
        },
        "mnist": {
            **_MNIST,
            **_ANDRYCHOWICZ,
            "objective[mnist].hidden_sizes": (20,),
            "meta.super_epochs": 100,
            "meta.num_objectives": 1,
        },
    },
}
