"""The page of all figures and claims, out of the files that `reproduce` left in a folder."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from .facts import CLAIMS, read_text
from .judge import MIN_RESTARTS
from .kept import replacing
from .reproduce import FORMAT

Facts = Mapping[str, Any]

# How many digits the thesis trains on.
_THESIS_DIGITS = 48_000


class LostError(ValueError):
    """A page would not have what the page in its place has; `lost` says which figures and series."""

    def __init__(self, lost: Sequence[str]):
        self.lost = lost
        super().__init__(f"`write_report(path=...)`: the page there has what is not in the folder: {lost}")


def write_report(folder: str | Path, path: str | Path) -> Path:
    """Writes a Markdown page of all figures in a folder, and copies their pictures beside it.

    The same files give the same page.

    **Arguments:**

    - `folder`: where `reproduce` put them.
    - `path`: of the page, e.g. `docs/thesis.md`; pictures go to `docs/thesis`.

    **Returns:** the path.

    **Raises:** `ValueError`, and nothing is replaced, if there are no figures in the folder, if a picture of
    one is missing, or (a `LostError`) if the page that is there has figures or series which the new one would
    not have.
    """
    folder, path = Path(folder), Path(path)
    read = (_read(file) for file in folder.glob("*.json"))
    figures = sorted((facts for facts in read if facts.get("format") == FORMAT), key=_order)
    if not figures:
        raise ValueError(f"there are no figures in {folder}")
    # Before anything that is there is replaced.
    pictures = [facts["files"]["picture"] for facts in figures if "picture" in facts["files"]]
    if missing := [name for name in pictures if not (folder / name).is_file()]:
        raise ValueError(f"{', '.join(missing)} is missing in {folder}; run that figure again")
    machines = dict.fromkeys(json.dumps(facts["environment"], sort_keys=True) for facts in figures)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= _FILTERS
    page = environment.from_string(read_text("report.md.jinja")).render(
        figures=figures,
        environments=[json.loads(machine) for machine in machines],
        embedded=[facts["name"] for facts in figures if facts["settings"]["data"] == "embedded"],
        claims=[_claim(number, figures) for number in CLAIMS],
        processes=_processes(figures),
        pictures=path.stem,
        min_restarts=MIN_RESTARTS,
        thesis_digits=_THESIS_DIGITS,
    )
    page = re.sub(r"\n{3,}", "\n\n", page)
    if path.exists() and (lost := _content(path.read_text(encoding="utf-8")) - _content(page)):
        raise LostError(sorted(lost))
    for name in pictures:
        with replacing(path.with_suffix("") / name) as temporary:
            shutil.copyfile(folder / name, temporary)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _read(file: Path) -> Facts:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{file} is damaged; run that figure again") from None


def _content(page: str) -> set[str]:
    # The figures of a page, and the series in the tables of each.
    found = set()
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        name = section.partition("\n")[0]
        rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (?:\d|∞|–)", section, flags=re.MULTILINE)
        found |= {name, *(f"{name}/{panel}/{series}" for panel, series in rows)}
    return found


def _order(facts: Facts) -> tuple[Any, ...]:
    # Figures by number, then what has none, in the order of the text.
    name, is_figure = facts["name"], facts["name"].startswith("fig")
    numbers = re.findall(r"\d+", name if is_figure else facts["section"])
    return (not is_figure, tuple(map(int, numbers)), name)


def _claim(number: int, figures: Sequence[Facts]) -> dict[str, Any]:
    where = [(f["name"], v["status"]) for f in figures for v in f["verdicts"] if v["claim"] == number]
    statuses = {status for _, status in where}
    status = "undecided" if statuses else "not tested"
    if "does not hold" in statuses or statuses == {"holds"}:
        status = "**does not hold**" if "does not hold" in statuses else "**holds**"
    claim = {name: _cell(text) for name, text in vars(CLAIMS[number]).items()}
    return {"number": number, **claim, "status": status, "where": where}


def _processes(figures: Sequence[Facts]) -> str:
    # Figures that only show what is finished do not say.
    numbers = sorted({n for n in (facts["processes"] for facts in figures) if n is not None})
    if not numbers:
        return ""
    on_cpu = {facts["environment"]["device"] for facts in figures} == {"cpu"}
    alone = ", on a CPU with one core each" if on_cpu and numbers[0] > 1 else ""
    return f" ({' or '.join(map(str, numbers))} of them{alone})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _seconds(figures: Sequence[Facts]) -> float:
    # What figures share counts once.
    runs = {one["digest"]: one["seconds"] for facts in figures for one in facts["series"]}
    return sum(runs.values()) + sum(facts["measured"]["seconds"] for facts in figures if facts["measured"])


def _minutes(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds > 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _command(facts: Facts) -> str:
    settings = facts["settings"]
    words = ["l2o reproduce", facts["name"], *(["--quick"] if settings["scale"] == "quick" else [])]
    options = (("--as", "source", "figures"), ("--seed", "seed", 0), ("--restarts", "restarts", None))
    words += [f"{option} {settings[name]}" for option, name, usual in options if settings[name] != usual]
    return " ".join([*words, f"--data {settings['data']}"])


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3g}"


def _median(spread: Facts) -> str:
    ends = " to ".join(map(_number, spread["interval"] or ()))
    return f"{_number(spread['median'])}{ends and f' ({ends})'}"


def _restarts(one: Facts) -> str:
    there, asked = one["restarts"], one["restarts_asked"]
    return str(there) if there == asked else f"{there} of {asked}"


_FILTERS: dict[str, Callable[..., Any]] = {
    "cell": _cell,
    "seconds": _seconds,
    "minutes": _minutes,
    "command": _command,
    "number": _number,
    "median": _median,
    "restarts": _restarts,
    # What `judge` says of the parts of a claim.
    "parts": lambda said: re.split(r" / (?=\[(?:holds|does not hold|undecided)\] )", said),
    "share": lambda one: f"{one['value']:.0%} ({one['low']:.0%} to {one['high']:.0%})",
    "measured": lambda series: list(dict.fromkeys(name for one in series for name in one["measured"])),
    "unfinished": lambda facts: any(one["restarts"] < one["restarts_asked"] for one in facts["series"]),
}
