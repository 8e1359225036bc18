from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import PRNGKeyArray, PyTree

from .._errors import ArgumentError
from .._misc import plain
from .._types import Params, Scalar, State, StepNumber
from ._answers import Answers, joined
from ._base import AbstractOptimizer
from ._groups import Groups, combine, split_by_label
from ._layouts import Seen, ask, take_step

# The path of a leaf in its tree, and the leaf (or its shape and dtype) -> the label of its group.
Label = Callable[[tuple[Any, ...], Any], str]


def by_layer(path: tuple[Any, ...], leaf: Any) -> str:
    """One group per layer: the leaf's path without its last part, so that weight and bias share one."""
    del leaf
    return jtu.keystr(path[:-1], simple=True, separator=".") or "params"


def by_leaf(path: tuple[Any, ...], leaf: Any) -> str:
    """One group per array."""
    del leaf
    return jtu.keystr(path, simple=True, separator=".") or "params"


def by_rank(path: tuple[Any, ...], leaf: Any) -> str:
    """One group per number of axes: biases apart from matrices, matrices apart from kernels."""
    del path
    return f"rank{len(leaf.shape)}"


def by_shape(path: tuple[Any, ...], leaf: Any) -> str:
    """One group per shape, e.g. `"32x784"`."""
    del path
    return "x".join(map(str, leaf.shape)) or "scalar"


def by_kind(path: tuple[Any, ...], leaf: Any) -> str:
    """The convolutions in one group, all else in another.

    Kernels have three axes or more, and so have the biases that Equinox gives them; the arrays of dense
    layers have one or two.
    """
    del path
    return "convolution" if len(leaf.shape) >= 3 else "dense"


class PerLayer(AbstractOptimizer):
    """Several optimizers, each for its own group of params; with one group it is that optimizer.

    `PerLayer.make` builds one optimizer per group of a tree of params. To give groups different learning
    rates, preprocessors or kinds of optimizer, hand over the mapping yourself.

    **Arguments:**

    - `optimizers`: by label.
    - `label`: `(path, leaf) -> label` of each leaf; `by_layer`, `by_leaf`, `by_rank`, `by_shape`,
        `by_kind`, or your own.

    **Raises:** `ValueError` for no optimizers, and on use if a leaf's label has none.

    Reference: thesis sec. 5.4.2.
    """

    optimizers: dict[str, AbstractOptimizer]
    label: Label = eqx.field(static=True)

    def __init__(self, optimizers: Mapping[str, AbstractOptimizer], label: Label = by_layer):
        if not optimizers:
            raise ArgumentError(
                "`PerLayer(optimizers=...)` needs at least one optimizer. Got none.", argument="optimizers"
            )
        self.optimizers = dict(optimizers)
        self.label = label

    @classmethod
    def make(
        cls,
        make_optimizer: Callable[[PRNGKeyArray], AbstractOptimizer],
        params: PyTree,
        *,
        label: Label = by_layer,
        key: PRNGKeyArray,
    ) -> "PerLayer":
        """One optimizer per group of `params`, each with its own initial weights.

        **Arguments:**

        - `make_optimizer`: `key -> optimizer`.
        - `params`: arrays, or their shapes from `jax.eval_shape`.
        - `label`: as above.
        - `key`: split among the groups.
        """
        labels = sorted(set(jax.tree.leaves(labels_of(params, label))))
        keys = jr.split(key, len(labels))
        return cls({name: make_optimizer(k) for name, k in zip(labels, keys, strict=True)}, label)

    def parts(self) -> dict[str, PyTree]:
        return dict(self.optimizers)

    def layout(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> Groups:
        """By label, each group as its optimizer wants it.

        **Raises:** `ValueError` if a leaf's label has no optimizer.
        """
        labels = labels_of(shapes, self.label)
        used = sorted(set(jax.tree.leaves(labels)))
        missing = [name for name in used if name not in self.optimizers]
        if missing:
            raise ArgumentError(
                f"`PerLayer`: the params have the groups {used}, but there is no optimizer for {missing}. "
                f"There are optimizers for {sorted(self.optimizers)}.",
                argument="params",
                given=used,
                possible=sorted(self.optimizers),
            )
        groups = split_by_label(shapes, labels, used)
        return Groups(labels, {name: self.optimizers[name].layout(groups[name]) for name in used})

    def for_group(self, name: str) -> AbstractOptimizer:
        return self.optimizers[name]

    def wants(self) -> frozenset[str]:
        return frozenset().union(*(optimizer.wants() for optimizer in self.optimizers.values()))

    def needs(self) -> frozenset[str]:
        return frozenset().union(*(optimizer.needs() for optimizer in self.optimizers.values()))

    def is_black_box(self) -> bool:
        return any(optimizer.is_black_box() for optimizer in self.optimizers.values())

    def initial_params(self, params: Params) -> Params:
        groups = self.layout(_shapes(params)).split(params)
        return combine((self.optimizers[name].initial_params(g) for name, g in groups.items()), params)

    def init(self, params: Params) -> State:
        groups = self.layout(_shapes(params)).split(params)
        return {name: self.optimizers[name].init(group) for name, group in groups.items()}

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        groups = self.layout(_shapes(params)).split(params)
        return {name: self.optimizers[name].init_for(group, num_steps) for name, group in groups.items()}

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        updates, next_state = {}, {}
        for name, shown in self._shown(grads, state, params, value, key).items():
            updates[name], next_state[name] = take_step(self.optimizers[name], *shown)
        return combine(updates.values(), grads), next_state

    def answers(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Answers | None:
        shown = self._shown(grads, state, params, value, key)
        return joined({name: ask(self.optimizers[name], *own) for name, own in shown.items()})

    def _shown(self, grads, state, params, value, key) -> dict[str, tuple[Seen, State, Params | None]]:
        # What every group's optimizer is called with.
        layout = self.layout(_shapes(grads))
        param_groups = {} if params is None else layout.split(params)
        shown = {}
        for name, group in layout.split(grads).items():
            own_key = None if key is None else jr.fold_in(key, sorted(state).index(name))
            shown[name] = (Seen(group, value, own_key), state[name], param_groups.get(name))
        return shown


def _shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def labels_of(params: PyTree, label: Label) -> PyTree[str]:
    """The label of every leaf."""
    labels = [label(path, leaf) for path, leaf in jtu.tree_leaves_with_path(plain(params))]
    return jax.tree.unflatten(jax.tree.structure(params), labels)
