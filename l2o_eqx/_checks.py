"""Checks that several verbs share."""

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._errors import ArgumentError


def check_sizes(verb: str, **sizes: int) -> None:
    """Raises a `ValueError` that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ArgumentError(
                f"`{verb}({name}=...)` must be at least 1. Got {name}={size}.", argument=name, given=size
            )


def check_restarts(verb: str, optimizer: PyTree, restarts: int | None) -> None:
    """Raises a `ValueError` unless every meta-parameter has the restarts on its leading axis."""
    shapes = [x.shape for x in jax.tree.leaves(eqx.filter(optimizer, eqx.is_inexact_array))]
    if restarts is None or all(shape[:1] == (restarts,) for shape in shapes):
        return
    raise ArgumentError(
        f"`{verb}(restarts={restarts})` needs a batch of {restarts} optimizers, made by "
        "`eqx.filter_vmap(make_optimizer)(keys)`: every array must have the restarts on its leading axis. "
        f"Got the shapes {sorted(set(shapes))}.",
        argument="restarts",
        given=restarts,
    )
