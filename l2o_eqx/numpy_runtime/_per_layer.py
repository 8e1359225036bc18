from dataclasses import dataclass
from typing import Any

from ._arrays import Array, Arrays, State, in_order, shapes_of
from ._groups import LABELS, grouped


@dataclass
class PerLayer:
    """`l2o_eqx.optimizers.PerLayer`: one of the others for each group of arrays, which their names tell."""

    optimizers: dict[str, Any]
    label: str

    def __post_init__(self):
        self.label = self.label.rpartition(":")[2]
        if self.label not in LABELS:
            raise ValueError(
                f"a PerLayer by {self.label!r} is not known without JAX; {', '.join(LABELS)} are"
            )

    def init(self, params: Arrays, num_steps: int | None = None) -> State:
        """The state before the first of `num_steps` steps.

        **Raises:** `ValueError` if a group has no optimizer.
        """
        groups = grouped(params, LABELS[self.label])
        if missing := sorted(groups.keys() - self.optimizers.keys()):
            known = ", ".join(self.optimizers)
            raise ValueError(f"there is no optimizer for {', '.join(missing)}; the groups are {known}")
        states = {label: self.optimizers[label].init(own, num_steps) for label, own in groups.items()}
        return {"shapes": shapes_of(params), "groups": states}

    def update(
        self, grads: Arrays, state: State, params: Arrays | None = None
    ) -> tuple[dict[str, Array], State]:
        """One step: what to add to the params, in the dtype of the gradients, and the next state."""
        grads = in_order(grads, state)
        updates, states = {}, {}
        for label, own in grouped(grads, LABELS[self.label]).items():
            theirs = None if params is None else {name: params[name] for name in own}
            step, states[label] = self.optimizers[label].update(own, state["groups"][label], theirs)
            updates |= step
        return {name: updates[name] for name in grads}, {**state, "groups": states}
