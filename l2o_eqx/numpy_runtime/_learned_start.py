from dataclasses import dataclass
from typing import Any

from ._arrays import Array, Arrays, State, cast, in_order, shapes_of, zeros
from ._groups import LABELS


@dataclass
class LearnedStart:
    """`l2o_eqx.optimizers.LearnedStart`, so MAML, too: where to begin, and how to go on.

    `start` has the array of every name, such as `"layers.0.weight"`: set the params to these first.
    """

    inner: Any
    start: Any

    def __post_init__(self):
        self.start = _by_name(self.start)

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first of `num_steps` steps, which begin at `start`."""
        return self.inner.init(params, num_steps)

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        return self.inner.update(grads, state, params)


@dataclass
class GradientDescent:
    """`l2o_eqx.optimizers.GradientDescent`; the fields are those of the file."""

    learned: Any
    learning_rate: float
    rates: str
    num_rates: int | None
    moving: str

    def __post_init__(self):
        self.moving = self.moving.rpartition(":")[2]
        if self.moving not in ("moves_all", "moves_head"):
            raise ValueError(f"a GradientDescent with moving={self.moving!r} is not known without JAX")
        self.learned = None if self.learned is None else _by_name(self.learned)

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first step, however many there will be.

        **Raises:** `ValueError` for params other than those it has rates for.
        """
        shapes = shapes_of(params)
        if self.rates in ("leaf", "entry"):
            known = {name: x.shape[self.num_rates is not None :] for name, x in self.learned.items()}
            moving = {name: shapes[name] if self.rates == "entry" else () for name in self._moving(params)}
            if known != moving:
                raise ValueError(f"there are learning rates of the shapes {known}, and params of {moving}")
        return {"shapes": shapes, "step": 0}

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        grads = in_order(grads, state)
        moving, updates = self._moving(grads), {}
        for name, x in grads.items():
            step = zeros(x)
            if name in moving:
                step = -self._rate(name, state["step"], step) * cast(x, step.dtype)
            updates[name] = cast(step, x.dtype)
        return updates, {**state, "step": state["step"] + 1}

    def _moving(self, params: Arrays) -> list[str]:
        if self.moving == "moves_all":
            return [*params]
        layers = {name: LABELS["by_layer"](name, x) for name, x in params.items()}
        return [name for name, layer in layers.items() if layer == [*layers.values()][-1]]

    def _rate(self, name: str, step: int, like: Array) -> Any:
        if self.learned is None:
            return self.learning_rate
        rate = self.learned["" if self.rates == "tree" else name]
        return cast(rate if self.num_rates is None else rate[min(step, self.num_rates - 1)], like.dtype)


def _by_name(tree: Any, name: str = "") -> dict[str, Array]:
    # Of modules, lists and dicts inside one another; what is no array is left out.
    if hasattr(tree, "shape"):
        return {name: tree}
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    found: dict[str, Array] = {}
    for key, part in tree.items() if isinstance(tree, dict) else ():
        found |= _by_name(part, f"{name}.{key}" if name else str(key))
    return found
