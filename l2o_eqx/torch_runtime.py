"""Trained optimizers in PyTorch, without JAX: files of `l2o_eqx.save` as a `torch.optim.Optimizer`.

    optimizer = torch_runtime.LearnedOptimizer(model.named_parameters(), "mnist", num_steps=1000)

Needs the extra `torch`. The equations are those of `l2o_eqx.numpy_runtime`, on tensors where they are.
"""

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import gallery, hub, numpy_runtime
from ._errors import ArgumentError
from .numpy_runtime._arrays import wide

# Not an import: type checkers run where it is not installed.
try:
    torch: Any = importlib.import_module("torch")
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "`l2o_eqx.torch_runtime` needs PyTorch 2.6 or later: `pip install 'l2o-eqx[torch]'`, or torch itself "
        "as pytorch.org says.",
        name=error.name,
    ) from None

Tensor = Any
# Beside the params, the key of the state in `state_dict`.
_KEY = "learned"


class LearnedOptimizer(torch.optim.Optimizer):
    """A trained optimizer that steps the parameters of a PyTorch model.

    It has no learning rate: schedulers, and optimizers with one, do not go with it. What counts as one tree
    are the parameters of all groups together; those without a gradient have zeros. `state_dict` holds
    everything that it carries from step to step. Norms and the LSTMs are computed in float64 (float32 on
    Apple's GPUs), all that there is for every entry in the dtype of the parameter, or float32 if that is
    narrower. A step fetches nothing from a GPU.

    **Arguments:**

    - `params`: parameters of floating dtypes on one device, or pairs of names and parameters, or groups of
        either, as of every PyTorch optimizer. One that was trained to step layer by layer needs names.
    - `optimizer`: a name of the gallery, the path of a file of `l2o_eqx.save`, or what
        `numpy_runtime.load` returns.
    - `num_steps`: how many steps there will be, for optimizers to which that matters, such as `AdamMLP`; by
        default as many as it was trained for.

    **Raises:** `ArgumentError` for an unknown name, parameters on several devices or of other dtypes, a
    number of steps below 1, names that are missing, or an optimizer that searches by values alone;
    `ValueError` for files that are damaged, or hold an optimizer that is not known without JAX;
    `RuntimeError` in `step` for sparse gradients.
    """

    def __init__(self, params: Iterable[Any], optimizer: Any, *, num_steps: int | None = None):
        super().__init__(params, {})
        if num_steps is not None and not num_steps >= 1:
            raise ArgumentError(
                f"`LearnedOptimizer(num_steps=...)` must be at least 1. Got {num_steps}.",
                argument="num_steps",
                given=num_steps,
            )
        tensors = self._tensors()
        first = next(iter(tensors.values()))
        odd = [n for n, p in tensors.items() if not p.is_floating_point() or p.device != first.device]
        if odd:
            raise ArgumentError(
                f"`LearnedOptimizer` steps parameters of floating dtypes on one device, {first.device}. "
                f"Others are {odd}.",
                argument="params",
                given=odd,
            )
        rule = _loaded(optimizer)
        if _searches_by_values(rule):
            raise ArgumentError(
                "`LearnedOptimizer` steps along gradients, and this optimizer searches by values alone: use "
                "the `ask` and `tell` of `l2o_eqx.numpy_runtime.load`.",
                argument="optimizer",
                given=optimizer,
            )
        self._rule, self._num_steps = _on_device(rule, wide(first), first.device), num_steps
        if _is_by_name(self._rule) and any("param_names" not in g for g in self.param_groups):
            raise ArgumentError(
                "This optimizer goes by the names of parameters, which tell their layers: hand it "
                "`model.named_parameters()`.",
                argument="params",
            )
        with torch.no_grad():
            self.state[_KEY] = self._rule.init(tensors, num_steps)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters.

        **Arguments:**

        - `closure`: if given, evaluates the loss and its gradients first, once.

        **Returns:** what the closure returns, or `None`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tensors = self._tensors()
        grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in tensors.items()}
        if any(grad.is_sparse for grad in grads.values()):
            raise RuntimeError("LearnedOptimizer does not support sparse gradients")
        updates, self.state[_KEY] = self._rule.update(grads, self.state[_KEY], tensors)
        for name, update in updates.items():
            tensors[name].add_(update)
        return loss

    @torch.no_grad()
    def move_to_start(self) -> None:
        """Sets the parameters to where the optimizer has learned to begin, as MAML has, and begins anew.

        **Raises:** `RuntimeError` for an optimizer without a learned start, or one of other names and shapes.
        """
        start = getattr(self._rule, "start", None)
        if start is None:
            raise RuntimeError("this optimizer has no learned start")
        tensors = self._tensors()
        shapes = [{name: tuple(x.shape) for name, x in side.items()} for side in (start, tensors)]
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"the learned start has {shapes[0]}, and the parameters are {shapes[1]}")
        for name, param in tensors.items():
            param.copy_(start[name])
        # Of some optimizers the state depends on where they begin.
        self.state[_KEY] = self._rule.init(tensors, self._num_steps)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes a group, from the constructor alone: the state is made there, of all groups together.

        **Raises:** `RuntimeError` later.
        """
        if _KEY in self.state:
            raise RuntimeError(
                "LearnedOptimizer takes no further parameters: make a new one with all of them"
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned, on the device of the parameters.

        **Raises:** `ValueError` for the state of another optimizer, or of other parameters.
        """
        given, own = state_dict.get("state", {}).get(_KEY), self.state[_KEY]
        same = isinstance(given, dict) and given.keys() == own.keys()
        if not same or dict(given["shapes"]) != dict(own["shapes"]):
            raise ValueError("`load_state_dict` was given the state of another optimizer or other parameters")
        super().load_state_dict(state_dict)
        device = next(iter(self._tensors().values())).device
        self.state[_KEY] = _mapped(lambda x: x.to(device), torch.Tensor, self.state[_KEY])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_rule": self._rule, "_num_steps": self._num_steps}

    def _tensors(self) -> dict[str, Tensor]:
        # By name, of all groups; by number where there are none.
        named: dict[str, Tensor] = {}
        for group in self.param_groups:
            names = group.get("param_names") or range(len(named), len(named) + len(group["params"]))
            new = {str(name): p for name, p in zip(names, group["params"], strict=True)}
            if twice := sorted(new.keys() & named.keys()):
                raise ArgumentError(
                    f"`LearnedOptimizer`: the name {twice[0]!r} is there in two groups of parameters; give "
                    "each a name of its own.",
                    argument="params",
                    given=twice,
                )
            named |= new
        return named


def _searches_by_values(rule: Any) -> bool:
    return isinstance(rule, numpy_runtime.BlackBoxRNN) or any(map(_searches_by_values, _inner_of(rule)))


def _inner_of(rule: Any) -> list[Any]:
    inner = [rule.inner] if isinstance(rule, numpy_runtime.LearnedStart) else []
    return [*inner, *getattr(rule, "optimizers", {}).values()]


def _is_by_name(rule: Any) -> bool:
    if isinstance(rule, numpy_runtime.LearnedStart):
        return True
    if isinstance(rule, numpy_runtime.GradientDescent):
        return rule.moving == "moves_head" or rule.rates in ("leaf", "entry")
    by_label = getattr(rule, "label", "") in ("by_layer", "by_leaf")
    return by_label or getattr(rule, "per", "") == "layer" or any(map(_is_by_name, _inner_of(rule)))


def _loaded(optimizer: Any) -> Any:
    if not isinstance(optimizer, str | os.PathLike):
        return optimizer
    if str(optimizer) in gallery.names():
        return numpy_runtime.load(gallery.file_of(str(optimizer)))
    try:
        return numpy_runtime.load(hub.local_path(optimizer))
    except FileNotFoundError as error:
        raise ArgumentError(
            f"`LearnedOptimizer(optimizer={str(optimizer)!r})`: there is no such file, and the gallery has "
            f"{', '.join(map(repr, gallery.names()))}.",
            argument="optimizer",
            given=optimizer,
            possible=gallery.names(),
        ) from error


def _on_device(rule: Any, dtype: Any, device: Any) -> Any:
    def convert(x: np.ndarray) -> Tensor:
        return torch.asarray(x, dtype=dtype, device=device)

    return _mapped(convert, np.ndarray, rule)


def _mapped(function: Callable[[Any], Any], kind: type, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(function, kind, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(function, kind, value) for value in tree)
    if dataclasses.is_dataclass(tree):
        fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        return type(tree)(**_mapped(function, kind, fields))
    return function(tree) if isinstance(tree, kind) else tree
