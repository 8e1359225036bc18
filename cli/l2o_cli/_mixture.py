"""Several objectives in one training: how a configuration says it."""

from collections.abc import Mapping
from typing import Any

from ._errors import UsageError

# The kind of an objective whose table has `families`, each a table like that of an objective, and `weights`.
MIXTURE = "mixture"


def with_families(table: dict[str, Any], label: str) -> dict[str, Any]:
    """The table of an objective, of a mixture if its kind names several: `"quadratic,rosenbrock"`.

    **Arguments:**

    - `table`: as given; other settings of the families may stand in `families`.
    - `label`: what an error blames.

    **Raises:** `UsageError` for a name that is there twice, or `families` that are no table.
    """
    names = names_in(table.get("kind"))
    if len(names) < 2:
        return table
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"{label}: {twice[0]!r} is named twice; objective.weights says how often it counts")
    given = table.get("families") or {}
    if not isinstance(given, dict):
        raise UsageError(f"setting 'objective.families': got {given!r}, must be a table")
    families = {name: as_table(given.get(name)) for name in (*names, *given)}
    kinds = dict.fromkeys(names)
    made = {name: {**({"kind": name} if name in kinds else {}), **one} for name, one in families.items()}
    return {**table, "kind": MIXTURE, "families": made}


def names_in(kind: Any) -> list[str]:
    """The families that a kind names, separated by commas."""
    return [name.strip() for name in kind.split(",") if name.strip()] if isinstance(kind, str) else []


def as_table(value: Any) -> dict[str, Any]:
    """A kind alone as a table."""
    return {} if value is None else dict(value) if isinstance(value, dict) else {"kind": value}


def name_of(objective: Mapping[str, Any]) -> str:
    """How people call the objective of a configuration."""
    return ", ".join(objective["families"]) if objective["kind"] == MIXTURE else objective["kind"]
