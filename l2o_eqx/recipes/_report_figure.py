"""One figure's section of the page that `write_report` makes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_BINS = ("<0.5", "0.5–1", "1–1.5", "1.5–2", "2–2.5", "≥2.5")
_BIN = "2 to 2.5"
_SHARES = ("below 2", _BIN, "2.5 or above")
# Between the parts of what `combine` says.
_PARTS = re.compile(r" / (?=\[(?:holds|does not hold|undecided)\] )")
THESIS_DIGITS = 48_000
"""How many digits the thesis trains on."""

_CHANCE = {"below": "below", "near": "near ln 10", "above": "above"}


def figure_section(facts: Mapping[str, Any], pictures: str) -> str:
    """Picture, tables, verdicts, and how they were made.

    **Arguments:**

    - `facts`: of the figure's JSON file.
    - `pictures`: the folder of the pictures, as seen from the page.
    """
    lines = [f"### {facts['name']}", "", f"**{facts['title']}** (thesis sec. {facts['section']})", ""]
    if "picture" in facts["files"]:
        lines += [f"![{facts['title']}]({pictures}/{facts['files']['picture']})", ""]
    for verdict in facts["verdicts"]:
        parts = _PARTS.split(verdict["statement"])
        lines.append(f"- Claim {verdict['claim']} **{_is(verdict['status'])}**: {parts[0]}")
        if len(parts) > 1:
            lines[-1:] = [lines[-1].removesuffix(f" {parts[0]}"), *(f"  - {part}" for part in parts)]
    if facts["verdicts"]:
        lines.append("")
    curves = {panel["name"] for panel in facts["panels"] if panel["kind"] == "curves"}
    lines += _losses([s for s in facts["series"] if s["panel"] in curves])
    lines += _histograms([s for s in facts["series"] if s["panel"] not in curves])
    lines += _measured(facts["series"])
    lines += [_how(facts), ""]
    digits = {s.get("training_examples") for s in facts["series"]} - {None}
    if digits and min(digits) < THESIS_DIGITS:
        lines += [f"**Trained on {min(digits):,} digits, where the thesis had {THESIS_DIGITS:,}.**", ""]
    if facts["notes"]:
        lines += [f"Notes: {facts['notes']}", ""]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    cells = [header, ["---"] * len(header), *([cell(x) for x in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def cell(text: str) -> str:
    """Text that fits into a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def computing_seconds(figures: Sequence[Mapping[str, Any]]) -> float:
    """How long figures took, in seconds of a process; what they share counts once."""
    runs = {one["digest"]: one["seconds"] for facts in figures for one in facts["series"]}
    measurements = (facts["extra"]["seconds"] for facts in figures if facts["extra"])
    return sum(runs.values(), 0.0) + sum(measurements, 0.0)


def minutes(seconds: float) -> str:
    """For example `90 s`, `1.6 min` above that, and `1.6 h`."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds > 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _losses(series: Sequence[Mapping[str, Any]]) -> list[str]:
    if not series:
        return []
    header = ["Panel", "Series", "Restarts", "Meta-updates", "Test objectives", "Steps"]
    header += ["Final loss (95 %)", "Quartiles", "Mean of last 20 (95 %)"]
    has_thesis = any(one["thesis"] for one in series)
    if has_thesis:
        header.append("Thesis: final, mean of last 20")
    rows = []
    for one in series:
        final = one["final_loss"]
        rows.append(
            [
                one["panel"],
                one["series"],
                _restarts(one),
                str(one["meta_updates"]),
                _tests(one),
                str(one["steps"]),
                _median(final),
                f"{_number(final['q25'])} to {_number(final['q75'])}",
                _median(one["mean_of_last_20"]),
                *([_of_the_thesis(one["thesis"])] if has_thesis else []),
            ]
        )
    return [*table(header, rows), ""]


def _of_the_thesis(thesis: Mapping[str, Any] | None) -> str:
    return f"{thesis['final_loss']:g}, {thesis['mean_of_last_20']:g}" if thesis else "–"


def _histograms(series: Sequence[Mapping[str, Any]]) -> list[str]:
    if not series:
        return []
    rows, splits = [], []
    for one in series:
        ours, thesis = one["histogram"], one["thesis"]
        rows.append(_counts(one, one["series"], _restarts(one), ours))
        if thesis:
            rows.append(_counts(one, f"{one['series']}, thesis", str(sum(thesis["counts"])), thesis))
        splits.append(
            [
                one["panel"],
                one["series"],
                _tests(one),
                *(_share(ours["chance"][name]) for name in _CHANCE),
                _share(ours["shares"][_BIN]),
                _share(thesis["shares"][_BIN]) if thesis else "–",
                str(ours["not_finite"]),
                _median(one["final_loss"]),
                _median(one["mean_of_last_20"]),
            ]
        )
    bins = ["final loss 2 to 2.5", "thesis: 2 to 2.5"]
    finals = ["Final loss (95 %)", "Mean of last 20 (95 %)"]
    return [
        "Restarts by final loss, in the thesis's bins:",
        "",
        *table(["Panel", "Series", "Restarts", *_BINS, *_SHARES], rows),
        "",
        "Restarts by the mean of the last 20 losses, and the entropy, near ln 10; beside it the thesis's "
        "bin, which also has what is merely slow; and medians:",
        "",
        *table(
            ["Panel", "Series", "Test objectives", *_CHANCE.values(), *bins, "not finite", *finals], splits
        ),
        "",
    ]


def _measured(series: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for one in series for name in one["measured"]))
    if not names:
        return []
    rows = [
        [
            one["panel"],
            one["series"],
            *(_median(one["measured"][name]) if name in one["measured"] else "–" for name in names),
        ]
        for one in series
    ]
    header = ["Panel", "Series", *(name.replace("_", " ") for name in names)]
    return ["Medians of what was measured (95 %):", "", *table(header, rows), ""]


def _tests(one: Mapping[str, Any]) -> str:
    return str(one.get("test_objectives", "–"))


def _counts(one: Mapping[str, Any], label: str, restarts: str, found: Mapping[str, Any]) -> list[str]:
    counts = map(str, found["counts"])
    return [one["panel"], label, restarts, *counts, *(_share(found["shares"][name]) for name in _SHARES)]


def _how(facts: Mapping[str, Any]) -> str:
    settings = facts["settings"]
    parts = [
        f"`{command(facts['name'], settings)}`",
        f"scale {settings['scale']}, as {settings['source']}, seed {settings['seed']}",
        settings["data_description"],
    ]
    seconds = computing_seconds([facts])
    if seconds > 0:
        parts.append(f"{minutes(seconds)} of computing")
    short = [s for s in facts["series"] if s["restarts"] < s["restarts_asked"]]
    if short:
        parts.append(
            "not all restarts have been run; claims are judged on the first "
            + ", ".join(f"{n} of panel {panel}" for panel, n in facts["judged_on"].items())
        )
    if facts["not_run"]:
        parts.append(f"not run yet: {', '.join(facts['not_run'])}")
    return "Made by " + "; ".join(parts) + "."


def command(name: str, settings: Mapping[str, Any]) -> str:
    """The command that makes a figure.

    **Arguments:**

    - `name`: of the figure.
    - `settings`: as in its JSON file.
    """
    words = ["l2o reproduce", name]
    if settings["scale"] == "quick":
        words.append("--quick")
    if settings["source"] != "figures":
        words.append(f"--as {settings['source']}")
    if settings["seed"] != 0:
        words.append(f"--seed {settings['seed']}")
    if settings["restarts"] is not None:
        words.append(f"--restarts {settings['restarts']}")
    return " ".join([*words, f"--data {settings['data']}"])


def _is(status: str) -> str:
    return "is undecided" if status == "undecided" else status


def _restarts(one: Mapping[str, Any]) -> str:
    there, asked = one["restarts"], one["restarts_asked"]
    return str(there) if there == asked else f"{there} of {asked}"


def _median(spread: Mapping[str, Any]) -> str:
    ends = " to ".join(map(_number, spread["interval"] or ()))
    return f"{_number(spread['median'])}{ends and f' ({ends})'}"


def _share(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.0%} ({estimate['low']:.0%} to {estimate['high']:.0%})"


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3g}"
