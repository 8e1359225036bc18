"""How the trees of a batch of objectives are laid out for an optimizer.

Every leaf of params and gradients carries an axis for the objectives in front; one objective is a batch of
one. An optimizer answers with its layout when it is shown the shapes of one objective's params; the engine
fits that to the batch, and from there on the layout alone knows what the optimizer's `update` is called with.
"""

import abc
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._errors import ArgumentError
from .._types import Keys, Params, State, StepNumber
from ._answers import Answers

# An `AbstractOptimizer`, whose module needs this one.
Optimizer = Any
# (optimizer, update for what is laid out, params, state, seen, slopes, weights, history, recompute) -> grads.
Backpropagate = Callable[..., PyTree]


class Seen(eqx.Module):
    """What an optimizer is shown of a step, laid out: gradients, and where it wants them values and keys."""

    grads: PyTree
    value: PyTree = None
    key: PyTree = None

    def of_group(self, name: str) -> "Seen":
        """What the group of that name is shown, of what `Groups` has laid out."""
        value, key = (None if x is None else x[name] for x in (self.value, self.key))
        return Seen(self.grads[name], value, key)


class Cutting(eqx.Module):
    """How the engine wants coordinates cut that do not see each other.

    `axis` is that of the devices that they are spread over; `block_size` is by
    default what suits the device.
    """

    axis: str | None = eqx.field(static=True, default=None)
    block_size: int | None = eqx.field(static=True, default=None)


class AbstractLayout(eqx.Module):
    """What an optimizer is shown of a batch of objectives, and how its updates come back.

    A layout has static fields only. `arrays` below are an optimizer's state as `init` made it, laid out.
    """

    @abc.abstractmethod
    def fit(self, params: Params, cutting: Cutting) -> "AbstractLayout":
        """This layout for the params of a certain batch."""

    @abc.abstractmethod
    def leaves(self) -> Iterator["AbstractLayout"]:
        """The layouts that this one is made of, or itself."""

    @property
    @abc.abstractmethod
    def coordinates_apart(self) -> bool:
        """Whether coordinates do not see each other and may be cut anywhere; asked of `leaves`."""

    @abc.abstractmethod
    def lay_out(self, tree: PyTree) -> PyTree:
        """A tree like params, such as gradients, as the optimizer is shown it."""

    @abc.abstractmethod
    def restore(self, laid_out: PyTree, like: PyTree) -> PyTree:
        """The inverse of `lay_out`, for trees like `like`."""

    @abc.abstractmethod
    def lay_out_values(self, values: Float[Array, " objectives"]) -> PyTree:
        """One number per objective, as the optimizer is shown it."""

    @abc.abstractmethod
    def lay_out_keys(self, keys: Keys) -> PyTree:
        """Keys for what is updated apart, from one per objective."""

    @abc.abstractmethod
    def init(self, optimizer: Optimizer, params: Params, num_steps: StepNumber | None) -> PyTree:
        """The optimizer's state before the first of `num_steps` steps, if it is known how many."""

    @abc.abstractmethod
    def update(
        self,
        optimizer: Optimizer,
        seen: Seen,
        arrays: PyTree,
        params: Params | None,
        *,
        like: PyTree,
        differentiable: bool,
    ) -> tuple[Params, PyTree]:
        """One step: updates like `like`, which has the shapes of params, and the next state.

        With `differentiable`, what is updated apart can be differentiated through and is computed again in
        the reverse pass.
        """

    @abc.abstractmethod
    def replay(
        self,
        backpropagate: Backpropagate,
        optimizer: Optimizer,
        params: Params,
        arrays: PyTree,
        seen: Seen,
        slopes: PyTree,
        weights: Float[Array, "losses objectives"],
        history: PyTree | None,
    ) -> PyTree:
        """The gradient along a record, which is one or several calls of `backpropagate`.

        **Arguments:**

        - `backpropagate`: of the engine, for what is updated apart: from the optimizer, its update, the
            params, the state and what was seen as that update takes them, the weights of that, the optimizers
            of the past, and whether activations of a step are computed again.
        - `seen`: with the steps on a leading axis.
        - `slopes`: of the losses that are weighed, laid out, with the steps on a leading axis.
        - `history`: of the optimizers that took the steps, with the steps on a leading axis.
        """

    def from_one(self, state: State) -> PyTree:
        """The state of one objective's optimizer as that of a batch of one."""
        return jax.tree.map(lambda x: x[None], state)

    def to_one(self, arrays: PyTree) -> State:
        """The inverse of `from_one`."""
        return jax.tree.map(lambda x: x[0], arrays)

    def uncut(self, arrays: PyTree) -> tuple["AbstractLayout", PyTree]:
        """As few pieces as possible, to be differentiated through: that layout, and the state in it."""
        return self, arrays

    def cut(self, arrays: PyTree) -> PyTree:
        """The inverse of `uncut`, of its arrays."""
        return arrays

    @abc.abstractmethod
    def each(self, arrays: PyTree) -> tuple["AbstractLayout", PyTree]:
        """Every objective as a batch of one: their layout, and the states with objectives in front."""

    @abc.abstractmethod
    def together(self, arrays: PyTree) -> PyTree:
        """The inverse of `each`, of its states."""


def initial_state(optimizer: Optimizer, params: Params, num_steps: StepNumber | None) -> State:
    """`optimizer.init_for`, or `init` if the number of steps is not known."""
    return optimizer.init(params) if num_steps is None else optimizer.init_for(params, num_steps)


def take_step(optimizer: Optimizer, seen: Seen, state: State, params: Params | None) -> tuple[Params, State]:
    """`optimizer.update` of what it is shown, with the keywords it wants; so do wrappers ask inner ones."""
    found = optimizer.update(seen.grads, state, params, **_wanted(optimizer, seen))
    what = f"`{type(optimizer).__name__}.update`"
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ArgumentError(
            f"{what} must return two things, the updates and the next state. Got {type(found).__name__}.",
            argument="optimizer",
            given=optimizer,
        )
    for name, new, like, of in zip(
        ("updates", "the next state"), found, (seen.grads, state), ("the gradients", "the state"), strict=True
    ):
        if _outline(new) != _outline(like):
            raise ArgumentError(
                f"{what} must return {name} of the structure and shapes of {of} that it is given. Got "
                f"{eqx.tree_pformat(new, width=10_000)} for {eqx.tree_pformat(like, width=10_000)}.",
                argument="optimizer",
                given=optimizer,
            )
    return found


def _outline(tree: PyTree) -> tuple[Any, list[Any]]:
    return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]


def ask(optimizer: Optimizer, seen: Seen, state: State, params: Params | None) -> Answers | None:
    """`optimizer.answers` for what it is shown, as `take_step`."""
    return optimizer.answers(seen.grads, state, params, **_wanted(optimizer, seen))


def _wanted(optimizer: Optimizer, seen: Seen) -> dict[str, PyTree]:
    return {name: getattr(seen, name) for name in optimizer.wants()}


class Whole(AbstractLayout):
    """Every objective's tree whole: what suits any optimizer."""

    @property
    def coordinates_apart(self) -> bool:
        return False

    def fit(self, params: Params, cutting: Cutting) -> "AbstractLayout":
        return self

    def leaves(self) -> Iterator[AbstractLayout]:
        yield self

    def lay_out(self, tree: PyTree) -> PyTree:
        return tree

    def restore(self, laid_out: PyTree, like: PyTree) -> PyTree:
        return laid_out

    def lay_out_values(self, values: Float[Array, " objectives"]) -> PyTree:
        return values

    def lay_out_keys(self, keys: Keys) -> PyTree:
        return keys

    def init(self, optimizer: Optimizer, params: Params, num_steps: StepNumber | None) -> PyTree:
        return _each(lambda p: initial_state(optimizer, p, num_steps), params)

    def update(
        self,
        optimizer: Optimizer,
        seen: Seen,
        arrays: PyTree,
        params: Params | None,
        *,
        like: PyTree,
        differentiable: bool,
    ) -> tuple[Params, PyTree]:
        return _update_each(optimizer, seen, arrays, params)

    def replay(
        self,
        backpropagate: Backpropagate,
        optimizer: Optimizer,
        params: Params,
        arrays: PyTree,
        seen: Seen,
        slopes: PyTree,
        weights: Float[Array, "losses objectives"],
        history: PyTree | None,
    ) -> PyTree:
        return backpropagate(
            optimizer, _update_each, params, arrays, seen, slopes, weights, history, recompute=True
        )

    def each(self, arrays: PyTree) -> tuple[AbstractLayout, PyTree]:
        return self, jax.tree.map(lambda x: x[:, None], arrays)

    def together(self, arrays: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[:, 0], arrays)


def _update_each(optimizer, seen, state, params):
    return _each(lambda *args: take_step(optimizer, *args), seen, state, params)


def _each(function, *trees):
    # Trees without any leaf are those of a single objective.
    leaves = jax.tree.leaves(trees)
    return jax.vmap(function, axis_size=leaves[0].shape[0] if leaves else 1)(*trees)
