"""Five settings that say in short how the meta-gradient is got, as strategies had them."""

from collections.abc import Mapping
from typing import Any

from ._errors import UsageError
from ._signatures import Parameter
from ._types import BOOL, FLOAT, Type

FIRST_ORDER = ("grads", "params", "value")
IN_SHORT = {
    p.name: p
    for p in (
        Parameter("order", Type("choice", ("first", "second")), "first", "Order of the meta-gradient."),
        Parameter("detach_state", BOOL, False, "No derivatives through the optimizer's state."),
        Parameter(
            "activations",
            Type("choice", ("auto", "keep", "recompute")),
            "auto",
            "Keep the optimizer's activations for the reverse pass or compute them again.",
        ),
        Parameter(
            "gradient",
            Type("choice", ("replayed", "recorded")),
            "replayed",
            "Run the window again as the optimizer is now, or take it as it was run.",
        ),
        Parameter("objective_clip", FLOAT, None, "Largest norm of one objective's meta-gradient."),
    )
}


def with_estimator(
    given: Mapping[str, Any], preset: Mapping[str, Any], known: Mapping[str, Parameter]
) -> dict[str, Any]:
    """The table of a strategy that has an estimator, without settings in short.

    **Arguments:**

    - `given`: the table. What it says of `estimator` counts more.
    - `preset`: the lines of the preset, in short, too, or with a kind of estimator, which holds unless
        something is given in short.
    - `known`: the parameters of the strategy.

    **Raises:** `UsageError` for settings that exclude each other.
    """
    short = {name: p for name, p in IN_SHORT.items() if name not in known}
    rest = {name: value for name, value in given.items() if name not in short}
    estimator = rest.get("estimator", {})
    estimator = estimator if isinstance(estimator, dict) else {"kind": estimator}
    asked = [name for name in short if name in given]
    if "kind" not in estimator and not asked and "strategy.estimator.kind" in preset:
        return rest
    if "kind" in estimator:
        if asked:
            raise UsageError(
                f"strategy.{asked[0]} says in short what the estimator {estimator['kind']!r} says itself; "
                "leave one of the two out"
            )
        return rest
    said = {name: given.get(name, preset.get(f"strategy.{name}")) for name in short}
    values = {n: p.default if said[n] is None else _read(p, said[n]) for n, p in short.items()}
    made = _recorded(values) if values.get("gradient") == "recorded" else _replayed(values)
    if values["objective_clip"] is not None:
        made = {"kind": "clipped-per-objective", "inner": made, "max_norm": values["objective_clip"]}
    return {**rest, "estimator": {**made, **estimator}}


def _read(p: Parameter, value: Any) -> Any:
    try:
        return p.type.read(value)
    except ValueError as error:
        option = "--" + p.name.replace("_", "-")
        raise UsageError(f"option '{option}' (strategy.{p.name}): got {value!r}; {error}") from None


def _recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    for name, possible in (("order", "first"), ("activations", "recompute")):
        if values[name] not in (possible, "auto"):
            raise UsageError(
                f"option '--gradient' (strategy.gradient): a recorded gradient cannot do with {name}="
                f"{values[name]!r}; take {name}={possible!r} or gradient='replayed'"
            )
    return {"kind": "recorded", "detach_state": values["detach_state"]}


def _replayed(values: Mapping[str, Any]) -> dict[str, Any]:
    first, activations, detached = values["order"] == "first", values["activations"], values["detach_state"]
    if first and activations == "recompute":
        return {"kind": "replay", "detach_state": detached}
    constants = [*(FIRST_ORDER if first else ()), *(["state"] if detached else [])]
    made = {"kind": "auto" if activations == "auto" else "backprop", "constants": constants}
    return made | ({"recompute": True} if activations == "recompute" else {})
