"""Annotations shared by every part: what travels between objectives, preprocessors and optimizers."""

from typing import Any

from jaxtyping import Array, Float, Int, Key, PyTree, UInt32

# Any tree of arrays, each leaf with its own shape. Gradients and updates are trees of the same kind;
# naming the tree "Params" makes the import hook check that all of them agree within one call.
Params = PyTree[Float[Array, "?*params"], "Params"]
# The same tree with one more axis: what a preprocessor shows an optimizer of each coordinate.
Features = PyTree[Float[Array, "?*params features"], "Params"]
# What an optimizer or a preprocessor carries from step to step; only its owner looks inside.
State = PyTree[Any]
Scalar = Float[Array, ""]
# One key per objective; keys of the old kind, `jax.random.PRNGKey`, are rows of two numbers.
Keys = Key[Array, " objectives"] | UInt32[Array, "objectives 2"]
# The number of an inner step, as it comes from Python or from inside a compiled loop.
StepNumber = int | Int[Array, ""]
