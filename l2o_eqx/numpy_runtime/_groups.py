"""Groups of arrays, which their names or shapes tell."""

from collections.abc import Callable

from ._arrays import Array, Arrays


def grouped(arrays: Arrays, label: Callable[[str, Array], str]) -> dict[str, dict[str, Array]]:
    groups: dict[str, dict[str, Array]] = {}
    for name, x in arrays.items():
        groups.setdefault(label(name, x), {})[name] = x
    return groups


LABELS = {
    "by_layer": lambda name, x: name.rpartition(".")[0] or "params",
    "by_leaf": lambda name, x: name,
    "by_rank": lambda name, x: f"rank{len(x.shape)}",
    "by_shape": lambda name, x: "x".join(map(str, x.shape)) or "scalar",
    "by_kind": lambda name, x: "convolution" if len(x.shape) >= 3 else "dense",
}
