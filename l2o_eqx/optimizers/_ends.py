"""What comes before a coordinatewise network and what after it: features in, read-out and output."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._types import Features, Params, State
from ..outputs import AbstractOutput
from ..preprocessors import AbstractPreprocessor


def preprocessor_for(
    given: AbstractPreprocessor | None, output: AbstractOutput | None, default: AbstractPreprocessor
) -> AbstractPreprocessor | None:
    """The given one; else the default, unless the output shows the network something itself."""
    shown_by_output = output is not None and output.num_features > 0
    return default if given is None and not shown_by_output else given


def num_features(preprocessor: AbstractPreprocessor | None, output: AbstractOutput | None) -> int:
    """How many numbers of a coordinate the network sees."""
    return sum(end.num_features for end in (preprocessor, output) if end is not None)


def make_readout(hidden_size: int, output: AbstractOutput) -> eqx.nn.Linear:
    """The linear layer that answers an output: zero at first, without a bias."""
    layer = eqx.filter_eval_shape(
        eqx.nn.Linear, hidden_size, output.num_answers, use_bias=False, key=jr.key(0)
    )
    return eqx.tree_at(lambda x: x.weight, layer, jnp.zeros((output.num_answers, hidden_size)))


def init_ends(
    preprocessor: AbstractPreprocessor | None, output: AbstractOutput | None, params: Params
) -> tuple[State, State]:
    """The states of both."""
    before = None if preprocessor is None else preprocessor.init(params)
    return before, None if output is None else output.init(params)


def look(
    preprocessor: AbstractPreprocessor | None,
    output: AbstractOutput | None,
    grads: Params,
    states: tuple[State, State],
    dtype: jnp.dtype,
) -> tuple[Float[Array, "features coordinates"], State]:
    """What the network sees, and the preprocessor's next state."""
    before, after = states
    rows = []
    if preprocessor is not None:
        features, before = preprocessor(grads, before)
        rows.append(_flatten(features, preprocessor.num_features, dtype))
    if output is not None and output.num_features > 0:
        rows.append(output.features(grads, after).astype(dtype))
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows), before


def _flatten(features: Features, num_features: int, dtype: jnp.dtype) -> Float[Array, "features coordinates"]:
    # All coordinates of a tree one after the other, features in front: contiguous along the coordinates.
    rows = [leaf.reshape(-1, leaf.shape[-1]).astype(dtype) for leaf in jax.tree.leaves(features)]
    return jnp.concatenate(rows).T if rows else jnp.zeros((num_features, 0), dtype)
