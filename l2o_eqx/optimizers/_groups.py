from collections.abc import Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from .._types import Keys, Params, State, StepNumber
from ._layouts import AbstractLayout, Backpropagate, Cutting, Optimizer, Seen


class Groups(AbstractLayout):
    """Parts of the tree by label, each with an optimizer and a layout of its own.

    The optimizer's `for_group(label)` is the one that runs a group, its state a dict of theirs by label.

    **Arguments:**

    - `labels`: a label for every leaf of one objective's params.
    - `layouts`: by label.
    """

    layouts: dict[str, AbstractLayout]
    labels: tuple[str, ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)

    def __init__(self, labels: PyTree[str], layouts: dict[str, AbstractLayout]):
        leaves, self.treedef = jax.tree.flatten(labels)
        self.labels = tuple(leaves)
        self.layouts = layouts

    def split(self, tree: PyTree) -> dict[str, PyTree]:
        """A tree like params by label, with `None` for the leaves of other groups."""
        return split_by_label(tree, self.treedef.unflatten(self.labels), self.layouts)

    @property
    def coordinates_apart(self) -> bool:
        return all(leaf.coordinates_apart for leaf in self.leaves())

    def fit(self, params: Params, cutting: Cutting) -> "AbstractLayout":
        groups = self.split(params)
        fitted = {name: layout.fit(groups[name], cutting) for name, layout in self.layouts.items()}
        return self._with_layouts(fitted)

    def leaves(self) -> Iterator[AbstractLayout]:
        for layout in self.layouts.values():
            yield from layout.leaves()

    def lay_out(self, tree: PyTree) -> PyTree:
        groups = self.split(tree)
        return {name: layout.lay_out(groups[name]) for name, layout in self.layouts.items()}

    def restore(self, laid_out: PyTree, like: PyTree) -> PyTree:
        groups = self.split(like)
        parts = [layout.restore(laid_out[name], groups[name]) for name, layout in self.layouts.items()]
        return combine(parts, like)

    def lay_out_values(self, values: Float[Array, " objectives"]) -> PyTree:
        return {name: layout.lay_out_values(values) for name, layout in self.layouts.items()}

    def lay_out_keys(self, keys: Keys) -> PyTree:
        own = group_keys(keys, self.layouts)
        return {name: layout.lay_out_keys(own[name]) for name, layout in self.layouts.items()}

    def init(self, optimizer: Optimizer, params: Params, num_steps: StepNumber | None) -> PyTree:
        groups = self.split(params)
        return {
            name: layout.init(optimizer.for_group(name), groups[name], num_steps)
            for name, layout in self.layouts.items()
        }

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
        updates, state = {}, {}
        groups = self.split(like)
        shown = dict.fromkeys(groups) if params is None else self.split(params)
        for name, layout in self.layouts.items():
            updates[name], state[name] = layout.update(
                optimizer.for_group(name),
                seen.of_group(name),
                arrays[name],
                shown[name],
                like=groups[name],
                differentiable=differentiable,
            )
        return combine(updates.values(), like), state

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
        groups = self.split(params)
        grads = {
            name: layout.replay(
                backpropagate,
                optimizer.for_group(name),
                groups[name],
                arrays[name],
                seen.of_group(name),
                slopes[name],
                weights,
                None if history is None else history.for_group(name),
            )
            for name, layout in self.layouts.items()
        }
        trained, rest = eqx.partition(optimizer, eqx.is_inexact_array)

        def by_group(trained):
            whole = eqx.combine(trained, rest)
            return {name: eqx.filter(whole.for_group(name), eqx.is_inexact_array) for name in self.layouts}

        _, pull_back = jax.vjp(by_group, trained)
        return pull_back(grads)[0]

    def from_one(self, state: State) -> PyTree:
        return {name: layout.from_one(state[name]) for name, layout in self.layouts.items()}

    def to_one(self, arrays: PyTree) -> State:
        return {name: layout.to_one(arrays[name]) for name, layout in self.layouts.items()}

    def uncut(self, arrays: PyTree) -> tuple[AbstractLayout, PyTree]:
        return self._apart({name: layout.uncut(arrays[name]) for name, layout in self.layouts.items()})

    def cut(self, arrays: PyTree) -> PyTree:
        return {name: layout.cut(arrays[name]) for name, layout in self.layouts.items()}

    def each(self, arrays: PyTree) -> tuple[AbstractLayout, PyTree]:
        return self._apart({name: layout.each(arrays[name]) for name, layout in self.layouts.items()})

    def together(self, arrays: PyTree) -> PyTree:
        return {name: layout.together(arrays[name]) for name, layout in self.layouts.items()}

    def _with_layouts(self, layouts):
        return Groups(self.treedef.unflatten(self.labels), layouts)

    def _apart(self, pairs):
        layouts, arrays = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
        return self._with_layouts(layouts), arrays


def split_by_label(tree: PyTree, labels: PyTree[str], names: Iterable[str]) -> dict[str, PyTree]:
    """A tree by the labels of its leaves, with `None` for those of other names."""

    def group(name):
        return jax.tree.map(lambda x, label: x if label == name else None, tree, labels)

    return {name: group(name) for name in names}


def combine(parts: Iterable[PyTree], like: PyTree) -> PyTree:
    """The inverse of `split_by_label`; a tree without leaves has no groups, and is itself."""
    parts = tuple(parts)
    return eqx.combine(*parts) if parts else like


def group_keys(keys: Any, names: Iterable[str]) -> dict[str, Any]:
    """Keys for every group, from one key per objective."""
    return {name: jax.vmap(lambda key, i=i: jr.fold_in(key, i))(keys) for i, name in enumerate(sorted(names))}
