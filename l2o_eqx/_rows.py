"""Metrics of a training as they come, in little memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_FIRST_PLACES = 64


class Rows:
    """Numbers by name, a row after the other, in arrays that grow.

    They are copies: an array that lies in the memory of one of JAX's would keep that from being freed.
    """

    def __init__(self):
        self.count = 0
        self._columns: dict[str, np.ndarray] = {}

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row, which has the names of the first one."""
        for name, x in row.items():
            self._columns[name] = _with_place(self._columns.get(name), self.count, np.asarray(x))
            self._columns[name][self.count] = x
        self.count += 1

    def change_last(self, row: Mapping[str, Any]) -> None:
        """Puts other values into the last row."""
        for name, x in row.items():
            self._columns[name] = _with_place(self._columns[name], self.count - 1, np.asarray(x))
            self._columns[name][self.count - 1] = x

    def last(self, count: int) -> list[dict[str, Any]]:
        """The last rows: Python's numbers, and arrays where there are restarts."""
        numbers = range(max(0, self.count - count), self.count)
        return [{name: _plain(column[i]) for name, column in self._columns.items()} for i in numbers]

    def columns(self) -> dict[str, np.ndarray]:
        """All of them by name, rows first."""
        return {name: column[: self.count].copy() for name, column in self._columns.items()}


def _with_place(column: np.ndarray | None, number: int, x: np.ndarray) -> np.ndarray:
    # With a place for row `number`, of a dtype that holds what is in it and `x`.
    if column is None:
        return np.zeros((_FIRST_PLACES, *x.shape), x.dtype)
    dtype = np.result_type(column, x)
    if number < len(column) and dtype == column.dtype:
        return column
    larger = np.zeros((max(len(column), 2 * number), *x.shape), dtype)
    larger[:number] = column[:number]
    return larger


def _plain(x: Any) -> Any:
    return x.item() if np.ndim(x) == 0 else x.copy()
