"""What moves and judges the meta-parameters, out of a configuration; as in `_build`, importing starts JAX."""

import jax.random as jr
import optax

import l2o_eqx as l2o
from l2o_eqx import objectives, strategies

from . import _config as config
from ._errors import UsageError, blaming, label

# Far from the small numbers that splitting the seed's key amounts to, and from that of the pretraining.
_VALIDATION = 1001


def make_meta_optimizer(
    meta: config.Meta, strategy: strategies.AbstractUpdateStrategy
) -> optax.GradientTransformation:
    """Adam after the normalization of the table `meta`; leaves out what is not finite.

    **Arguments:**

    - `meta`: the table, with the number of steps.
    - `strategy`: says how many meta-updates they make, over which the learning rate decays.

    **Raises:** `UsageError` for a warm-up that is longer than the training.
    """
    total = meta.super_epochs * strategy.num_updates(meta.num_steps)
    if meta.warmup_updates >= total:
        raise UsageError(
            f"{label(('meta', 'warmup_updates'))}: got {meta.warmup_updates}, must be less than the {total} "
            "meta-updates of the training"
        )
    return l2o.default_meta_optimizer(
        meta.learning_rate,
        normalization=meta.normalization,
        norm_floor=meta.norm_floor,
        clip_norm=meta.clip_norm,
        b1=meta.b1,
        b2=meta.b2,
        eps=meta.eps,
        warmup_updates=meta.warmup_updates,
        total_updates=total if meta.decay == "cosine" else None,
        final_share=meta.final_share,
        drop_norm=meta.drop_norm,
    )


def make_validation(
    given: config.RunConfig, family: objectives.AbstractObjectiveFamily
) -> l2o.Validation | None:
    """The validation of the table `validation`, if there is to be one; its draws depend on the seed alone.

    **Arguments:**

    - `given`: the configuration, with the number of steps.
    - `family`: what is trained on, whose further draws are tried.

    **Raises:** `UsageError` for more last steps than there are.
    """
    table = given.validation
    if not table.every:
        return None
    with blaming("validation", "last"):
        return l2o.Validation(
            family,
            table.num_steps or given.meta.num_steps,
            table.num_objectives,
            table.every,
            table.last,
            key=jr.fold_in(jr.key(given.seed), _VALIDATION),
        )
