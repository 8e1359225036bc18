import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ._types import Scalar
from .optimizers import AbstractOptimizer


def grad_metrics(grads: AbstractOptimizer) -> dict[str, Scalar]:
    """How large a meta-gradient is, and where it vanishes.

    **Arguments:**

    - `grads`: a meta-gradient, with the structure of the optimizer.

    **Returns:** `grad_norm`, the Euclidean norm, and `zero_share`, the share of entries that are exactly
    zero; if the optimizer has several parts, also `grad_norm/<part>` and `zero_share/<part>`.

    Reference: thesis sec. 5.4.3, where the meta-gradient of a layer's optimizer vanishes.
    """
    metrics = {"grad_norm": optax.tree.norm(grads), "zero_share": _zero_share(grads)}
    parts = grads.parts()
    if len(parts) > 1:
        for name, part in parts.items():
            metrics[f"grad_norm/{name}"] = optax.tree.norm(part)
            metrics[f"zero_share/{name}"] = _zero_share(part)
    return metrics


def _zero_share(tree: PyTree[Float[Array, "..."]]) -> Scalar:
    leaves = jax.tree.leaves(tree)
    zeros = sum((jnp.sum(x == 0) for x in leaves), jnp.asarray(0))
    size = max(1, sum(x.size for x in leaves))
    # XLA multiplies by the reciprocal, which may make a little less than 1 of all.
    return jnp.where(zeros == size, 1.0, zeros / size)
