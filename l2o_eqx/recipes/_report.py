"""The page of all figures and claims, out of the files that `reproduce` left in a folder."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._claims import CLAIMS
from ._differences import DIFFERENCES
from ._files import replacing
from ._report_figure import THESIS_DIGITS, computing_seconds, figure_section, minutes, table
from ._verdicts import MIN_RESTARTS

_INTRODUCTION = """\
# The thesis, reproduced

L. Schröter, "Machine learning of gradient-based optimization methods", bachelor thesis, TU Hamburg, 2022:
its figures 7 to 19 and its claims, each with what we find. `l2o reproduce --report` makes this page from the
numbers in its folder; nothing in it is written by hand.

## How to read it

- The thesis shows one run, or the best of ten, and histograms of 100 runs. Here are all restarts: medians,
  quartiles and shares. Nothing is the best of several unless it says so.
- Intervals are of 95 %: percentiles of the bootstrap for medians and their ratios, Wilson's for shares,
  Newcombe's for differences of shares. They are about other restarts, given the objectives of the test: all
  restarts and series are tested on the same ones, as many as the tables say, and other objectives would give
  other numbers.
- A claim **holds**, or **does not hold**, if a whole interval says so. It is **undecided** if the interval
  has the threshold in it, if some group has fewer than {min_restarts} restarts, or if too few restarts did
  what the claim is about. Of several parts of a claim all must hold. It is **not tested** if no figure below
  is about it.
- A restart that diverged counts as infinitely bad; none is left out. “∞” is a median or quartile of such.
- A final loss is that of the last step: on MNIST the training loss of one minibatch, as in the thesis. The
  mean of the last 20 steps is less noisy.
- *Near ln 10* are restarts whose last 20 losses have a mean within 0.02 of 2.3026, the loss of guessing, and
  whose outputs have an entropy within 0.02 of it. The thesis's bin from 2 to 2.5 also has what is merely
  slow.
- Held-out losses, accuracies, entropies, dead and growing units are measured where the test ends, on 1,000
  digits that are in no training.
- At scale `quick` networks are tiny and restarts few: such numbers only show that everything runs.
"""

_STYLES = {"holds": "**holds**", "does not hold": "**does not hold**"}


def write_report(folder: str | Path, path: str | Path) -> Path:
    """Writes a Markdown page of all figures in a folder, and copies their pictures beside it.

    The same files give the same page.

    **Arguments:**

    - `folder`: where `reproduce` put them.
    - `path`: of the page, e.g. `docs/thesis.md`; pictures go to `docs/thesis`.

    **Returns:** the path.

    **Raises:** `ValueError` if there are no figures in the folder.
    """
    folder, path = Path(folder), Path(path)
    figures = _read(folder)
    if not figures:
        raise ValueError(f"`write_report(folder={str(folder)!r})`: there are no figures in that folder.")
    pictures = path.with_suffix("")
    sections = [
        _INTRODUCTION.format(min_restarts=MIN_RESTARTS),
        _machines(figures),
        *_warnings(figures),
        _claims(figures),
        _differences(),
        "## Figures\n",
        *(figure_section(facts, pictures.name) for facts in figures),
    ]
    for facts in figures:
        if "picture" in facts["files"]:
            name = facts["files"]["picture"]
            with replacing(pictures / name) as temporary:
                shutil.copyfile(folder / name, temporary)
    with replacing(path) as temporary:
        temporary.write_text("\n".join(sections), encoding="utf-8")
    return path


def _read(folder: Path) -> list[dict[str, Any]]:
    figures = []
    for path in folder.glob("*.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.get("format") == 1 and "verdicts" in facts:
            figures.append(facts)
    return sorted(figures, key=lambda facts: _order(facts["name"], facts["section"]))


def _order(name: str, section: str) -> tuple[Any, ...]:
    # Figures by number, then what has none, in the order of the text.
    numbers = tuple(int(x) for x in re.findall(r"\d+", name if name.startswith("fig") else section))
    return (not name.startswith("fig"), numbers, name)


def _machines(figures: Sequence[Mapping[str, Any]]) -> str:
    lines = ["## Machine and versions", ""]
    for facts in dict.fromkeys(json.dumps(f["environment"], sort_keys=True) for f in figures):
        found = json.loads(facts)
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        lines.append(f"- {found['platform']}, {found['cores']} cores, device {found['device']}; {versions}.")
    lines.append(
        f"- Computed in {minutes(computing_seconds(figures))}, summed over the processes"
        f"{_processes(figures)}. What figures share is counted once here, and in each of their sections. "
        "Versions and processes are those of the calls that wrote the figures; restarts that earlier calls "
        "left may be of others."
    )
    return "\n".join([*lines, ""])


def _warnings(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [facts["name"] for facts in figures if facts["settings"]["data"] == "embedded"]
    if not names:
        return []
    return [
        f"**Of {', '.join(names)}, what is about MNIST was made with the 5,000 embedded training digits, "
        f"where the thesis had {THESIS_DIGITS:,}.**\n"
    ]


def _processes(figures: Sequence[Mapping[str, Any]]) -> str:
    # Figures that only show what is finished do not say.
    numbers = sorted({n for n in (facts.get("processes") for facts in figures) if n is not None})
    if not numbers:
        return ""
    devices = {facts["environment"]["device"] for facts in figures}
    alone = ", on a CPU with one core each" if devices == {"cpu"} and numbers[0] > 1 else ""
    return f" ({' or '.join(map(str, numbers))} of them{alone})"


def _claims(figures: Sequence[Mapping[str, Any]]) -> str:
    found: dict[int, list[tuple[str, str]]] = {}
    for facts in figures:
        for verdict in facts["verdicts"]:
            found.setdefault(verdict["claim"], []).append((facts["name"], verdict["status"]))
    rows = []
    for number, claim in CLAIMS.items():
        verdicts = found.get(number, [])
        status = _overall([status for _, status in verdicts])
        where = ", ".join(
            f"[{name}](#{name})" + (f" ({own})" if len(verdicts) > 1 else "") for name, own in verdicts
        )
        statement = f"{claim.statement} (sec. {claim.section})"
        rows.append([str(number), statement, claim.numbers, _STYLES.get(status, status), where])
    return "\n".join(
        [
            "## Claims",
            "",
            "The numbers behind each verdict are in the figure's section. Where several figures are about a "
            "claim, all must agree.",
            "",
            *table(["#", "The thesis says", "and shows", "Verdict", "Where"], rows),
            "",
        ]
    )


def _overall(statuses: Iterable[str]) -> str:
    statuses = set(statuses)
    if not statuses:
        return "not tested"
    if "does not hold" in statuses:
        return "does not hold"
    return "holds" if statuses == {"holds"} else "undecided"


def _differences() -> str:
    header = ["What", "Text", "Released code", "Default here", "How to get the other"]
    rows = [[d.topic, d.text, d.code, d.default, d.other or "–"] for d in DIFFERENCES]
    return "\n".join(
        [
            "## Where text and released code differ",
            "",
            "`l2o reproduce` follows the text on the quadratic of the code, which the figures show; `--as "
            "text` follows the text alone, `--as code` the code. Other options are those of `l2o train`. "
            "What `--as code` does not imitate: a meta-update at every step that backpropagates to the first "
            "step; the buffer that digits are shuffled through; with one optimizer per layer, an Adam whose "
            "count advances once per layer; in figure 17, pretrained optimizers whose Adam begins at a count "
            "of 5,000 or more; starting points that differ between curves; the best of ten.",
            "",
            *table(header, rows),
            "",
        ]
    )
