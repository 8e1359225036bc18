"""How a user's loss of a model is called, and which leaves of the model it can be differentiated by."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._types import Scalar, State
from ._base import check_loss

_STATE, _KEY = "state", "key"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class ModelLoss(eqx.Module):
    """A loss of a model, called by the names of its parameters as `FromModel` says.

    **Arguments:**

    - `function`: the loss.
    - `has_aux`: whether it returns auxiliary output, too.
    - `owner`: the name of the family whose argument the loss is, for messages.

    **Raises:** `ArgumentError` if it takes something else than model, batch, `state` and `key`.
    """

    function: Callable[..., Any]
    has_aux: bool = eqx.field(static=True, default=False)
    owner: str = eqx.field(static=True, default="FromModel")

    def __check_init__(self):
        others = [name for name in self._positional[1:] if name not in (_STATE, _KEY)]
        if len(self._positional) < 2 or len(others) != 1 or self._unknown:
            raise ArgumentError(
                f"`{self.owner}(loss_fn=...)` is called with the model, the batch, and `state` and `key` if "
                f"it has parameters of these names. Got "
                f"`{_name_of(self.function)}{_signature(self.function)}`.",
                argument="loss_fn",
                given=self.function,
            )

    @property
    def takes_state(self) -> bool:
        return _STATE in self._names

    @property
    def takes_key(self) -> bool:
        return _KEY in self._names

    @property
    def _names(self):
        return {p.name for p in self._parameters}

    @property
    def _parameters(self):
        # What a partial has filled in already is the user's choice.
        given = self.function.keywords if isinstance(self.function, functools.partial) else {}
        return [p for p in _signature(self.function).parameters.values() if p.name not in given]

    @property
    def _positional(self):
        special = (_STATE, _KEY)
        return [
            p.name
            for i, p in enumerate(self._parameters)
            if p.kind in _POSITIONAL and (i < 2 or p.default is p.empty or p.name in special)
        ]

    @property
    def _unknown(self):
        required = [p for p in self._parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        return [p.name for p in required if p.name not in (_STATE, _KEY)]

    def make(self, make_model: Callable[[PRNGKeyArray], Any], key: PRNGKeyArray) -> tuple[Any, State]:
        """The model, and its state if the loss takes one.

        **Raises:** `ArgumentError` if only one of loss and model knows of a state.
        """
        made = make_model(key)
        indices = filter(_is_index, jax.tree.leaves(made, is_leaf=_is_index))
        holds_state = any(jax.tree.leaves(index.init) for index in indices)
        if not self.takes_state:
            if holds_state:
                raise ArgumentError(
                    f"`{self.owner}(loss_fn=...)` needs a parameter named `state`, since the model has a "
                    f"state (BatchNorm, say). Got `{_name_of(self.function)}{_signature(self.function)}`.",
                    argument="loss_fn",
                    given=self.function,
                )
            return made, None
        if isinstance(made, tuple) and len(made) == 2:
            return made
        if not holds_state:
            raise ArgumentError(
                f"`{self.owner}(make_model=...)`: the loss takes a `state`, but the model has none; return "
                "`eqx.nn.make_with_state(Model)(...)`, or a pair of model and state. Got "
                f"{type(made).__name__}.",
                argument="make_model",
            )
        return eqx.nn.make_with_state(lambda: made)()

    def __call__(
        self, model: Any, batch: PyTree, state: State, key: PRNGKeyArray | None
    ) -> tuple[Scalar, State, PyTree]:
        """The loss, the next state, and the auxiliary output; the latter two are `None` if there are none."""
        # An `eqx.nn.State` is spoilt by being used.
        special = {_STATE: clone(state), _KEY: key}
        names = self._positional
        args = [model, *(special.get(name, batch) for name in names[1:])]
        keywords = {n: special[n] for n in self._names if n in special and n not in names}
        result = self.function(*args, **keywords)
        if not self.takes_state:
            loss, aux = self._pair(result, "(loss, aux)") if self.has_aux else (result, None)
            return self._check(loss), None, aux
        loss, rest = self._pair(result, "(loss, (state, aux))" if self.has_aux else "(loss, state)")
        new, aux = self._pair(rest, "(loss, (state, aux))") if self.has_aux else (rest, None)
        return self._check(loss), new, aux

    def _pair(self, result, what):
        if isinstance(result, tuple) and len(result) == 2:
            return result
        raise ArgumentError(
            f"`{self.owner}(loss_fn=...)` must return `{what}`: it takes a state or `has_aux` is true. "
            f"Got {type(result).__name__}.",
            argument="loss_fn",
        )

    def _check(self, loss):
        if isinstance(loss, tuple):
            raise ArgumentError(
                f"`{self.owner}(loss_fn=...)` must return one number. Got a tuple: give `has_aux=True` if it "
                "is `(loss, aux)`, and a parameter named `state` to a loss that returns a state.",
                argument="loss_fn",
            )
        return check_loss(f"`{self.owner}(loss_fn=...)`", loss, argument="loss_fn")


def clone(state: State) -> State:
    """The same state, to be used without spoiling this one."""
    return jax.tree.map(lambda x: x, state)


def without_states(model: Any, trainable: PyTree) -> PyTree:
    """The floating-point arrays of a model that are `trainable`, as a tree of truth values.

    What belongs to the state of the model, or tells where that begins, is never among them.
    """
    chosen = eqx.filter(model, trainable, is_leaf=_is_state if callable(trainable) else None)

    def mark(x, kept):
        if _is_state(x):
            return False
        return eqx.is_inexact_array(x) and kept is not None

    return jax.tree.map(mark, model, chosen, is_leaf=lambda x: x is None or _is_state(x))


def differentiated(loss: ModelLoss, model: Any, state: State, batch: PyTree) -> PyTree:
    """As `without_states`, with those leaves that the loss has a derivative by, whatever the values are.

    One trace of the gradient tells, in which every leaf says whether a cotangent reaches it.

    **Raises:** `ArgumentError` if there are none.
    """
    spec = without_states(model, eqx.is_inexact_array)
    arrays, static = eqx.partition(model, spec)
    leaves, treedef = jax.tree.flatten(arrays)
    reached = set()

    def of_leaves(leaves):
        watched = [_watched(x, number, reached) for number, x in enumerate(leaves)]
        model = eqx.combine(treedef.unflatten(watched), static)
        return loss(model, batch, state, jr.key(0))[0]

    jax.eval_shape(jax.grad(of_leaves), leaves)
    if not reached:
        raise ArgumentError(
            f"`{loss.owner}(loss_fn=...)`: there is nothing to train, no floating-point array of the model "
            "has a derivative.",
            argument="loss_fn",
        )
    marked = treedef.unflatten([number in reached for number in range(len(leaves))])
    return jax.tree.map(lambda mark: mark is True, marked, is_leaf=lambda x: x is None)


def _watched(leaf, number, reached):
    @jax.custom_vjp
    def identity(x):
        return x

    def forward(x):
        return x.value, None

    def backward(_, cotangent):
        # JAX hands over the cotangent of what nothing depends on as a symbol.
        if not isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
            reached.add(number)
            return (cotangent,)
        return (jnp.zeros(leaf.shape, leaf.dtype),)

    identity.defvjp(forward, backward, symbolic_zeros=True)
    return identity(leaf)


def _is_index(x):
    return isinstance(x, eqx.nn.StateIndex)


def _is_state(x):
    return isinstance(x, eqx.nn.StateIndex | eqx.nn.State)


def _signature(function):
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        # Of some that are not written in Python.
        return inspect.signature(lambda model, batch: None)


def _name_of(function):
    return getattr(function, "__name__", type(function).__name__)
