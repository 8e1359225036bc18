"""The numbers as tables and as a picture."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from ._measure import quartiles
from ._sides import OURS, SIDES


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """What `run` found, a table for each kind of measurement."""
    if found["cases"]:
        yield _cases(found)
    if "cores" in found:
        yield _cores(found["cores"])
    if "first_update" in found:
        yield _first_updates(found["first_update"])
    if "apply" in found:
        yield _applications(found["apply"])


def _cases(found: dict[str, Any]) -> Table:
    peak = found["peak_flops"]
    table = Table(
        title=f"Inner steps per second; matrix products reach {peak / 1e9:.0f} GFLOP/s here",
        caption="Ratios: how much faster l2o_eqx is than this side, and the share of its memory it needs.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for column in ("median (quartiles)", "peak", "temporaries", "speed", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, case in found["cases"].items():
        ours = case["sides"][OURS]
        median = quartiles(ours["steps_per_second"])[1]
        table.add_row(name, style="bold")
        for side, numbers in case["sides"].items():
            if "not_run" in numbers:
                if not ("installed" in numbers["not_run"] or "only on" in numbers["not_run"]):
                    table.add_row(f"  {side}", numbers["not_run"], style="dim")
                continue
            spread = quartiles(numbers["steps_per_second"])
            flops = case["flops_per_step"]
            memory = numbers["temporaries_bytes"]
            mine = ours["temporaries_bytes"]
            table.add_row(
                f"  {side}",
                _spread(spread),
                "" if flops is None else f"{spread[1] * flops / peak:.0%}",
                "" if memory is None else f"{memory / 1e6:,.1f} MB",
                "" if side == OURS else f"{median / spread[1]:.2f}",
                f"1/{memory / mine:.1f}" if side != OURS and memory and mine else "",
            )
        table.add_section()
    return table


def _cores(found: dict[str, Any]) -> Table:
    table = Table(title="All cores against one: inner steps per second, in alternating processes")
    for column in ("", "one core", "all cores", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, speeds in found.items():
        if not all(speeds.values()):
            table.add_row(name, "failed", "", "")
            continue
        one, many = (quartiles(values) for values in speeds.values())
        table.add_row(name, _spread(one), _spread(many), f"{many[1] / one[1]:.2f}")
    return table


def _first_updates(found: dict[str, Any]) -> Table:
    table = Table(title="A fresh process: imports, compilation and the first super epoch")
    for column in ("", "side", "seconds", "peak memory"):
        table.add_column(column, justify="right" if column in ("seconds", "peak memory") else "left")
    for name, sides in found.items():
        for i, (side, numbers) in enumerate(sides.items()):
            title = name if i == 0 else ""
            if "not_run" in numbers:
                table.add_row(title, side, "failed", numbers["not_run"])
                continue
            memory = numbers["peak_bytes"]
            seconds = f"{numbers['seconds_to_first_update']:.1f}"
            table.add_row(title, side, seconds, "" if memory is None else f"{memory / 1e6:,.0f} MB")
        table.add_section()
    return table


def _applications(found: dict[str, Any]) -> Table:
    table = Table(title="A step in an optax loop")
    for column in ("coordinates", "optimizer", "ms per step", "ns per coordinate"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for count, sides in found.items():
        for i, (side, seconds) in enumerate(sides.items()):
            median = quartiles(seconds)[1]
            table.add_row(
                f"{int(count):,}" if i == 0 else "",
                side,
                f"{median * 1e3:.3f}",
                f"{median / int(count) * 1e9:.1f}",
            )
    return table


def plot(found: dict[str, Any], path: Path) -> bool:
    """Draws seconds per inner step over the number of coordinates; says whether there was anything to draw.

    **Arguments:**

    - `found`: from `run`.
    - `path`: where to write the PNG.
    """
    cases = [case for case in found["cases"].values() if case["scales"]]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axis = figure.subplots()
    drawn = False
    for side in SIDES:
        points = [
            (case["num_coordinates"], quartiles([1 / s for s in numbers["steps_per_second"]]))
            for case in cases
            if "steps_per_second" in (numbers := case["sides"][side])
        ]
        if not points:
            continue
        drawn = True
        sizes = np.array([size for size, _ in points], float)
        low, median, high = np.array([seconds for _, seconds in points]).T
        label = side
        if len(points) > 1:
            slope = np.polyfit(np.log10(sizes), np.log10(median), 1)[0]
            label = f"{side} (slope {slope:.2f})"
        axis.errorbar(sizes, median, [median - low, high - median], marker="o", capsize=3, label=label)
    if not drawn:
        return False
    axis.set(xscale="log", yscale="log", xlabel="coordinates", ylabel="seconds per inner step")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    figure.supxlabel("Dot: median. Bar: quartiles.", x=0.01, ha="left", fontsize=8.5, color="#666666")
    figure.savefig(path, dpi=150)
    return True


def _spread(values: tuple[float, float, float]) -> str:
    low, median, high = values
    return f"{_number(median)} ({_number(low)}–{_number(high)})"


def _number(value: float) -> str:
    # Three digits, thousands as k.
    if value >= 1e5:
        return f"{value / 1e3:,.0f}k"
    if value >= 1e4:
        return f"{value / 1e3:.1f}k"
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f}"
