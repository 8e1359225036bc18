"""`l2o minimize`. What starts JAX is imported once the options are read."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._errors import Failure, UsageError, in_brief, suggestion
from ._evaluator import Evaluation, Evaluator
from ._folder import exists, make_folder
from ._interrupt import interrupted
from ._options import AsJson, Cache, Cores, Quiet, folder_option
from ._start import start
from ._toml import read_toml_file

if TYPE_CHECKING:
    import l2o_eqx as l2o
    from l2o_eqx.optimizers import BlackBoxRNN, Search

    from ._output import Output

EVALUATIONS, SEARCH = "evaluations.csv", "search.json"
_COLUMNS = ("evaluation", "worker", "value", "best", "seconds", "error")
_BOX = ("low", "high", "log", "integer")


def minimize(
    function: Annotated[
        str,
        typer.Argument(
            help="Function of keywords that returns the number to make small; module:name.",
            metavar="FUNCTION",
        ),
    ],
    space: Annotated[
        Path,
        typer.Option(
            help="TOML file with a table for every keyword: low and high; log = true; integer = true.",
            metavar="FILE",
        ),
    ],
    budget: Annotated[int, typer.Option(min=1, help="Evaluations in all.", metavar="INT")] = 30,
    optimizer: Annotated[
        Path | None,
        typer.Option(
            help="Trained BlackBoxRNN: its file, the folder of its run, or a name in the gallery.",
            metavar="FILE",
        ),
    ] = None,
    out: Annotated[
        Path,
        folder_option("Folder to make, or to go on in."),
    ] = Path("minimum"),
    cores: Cores = None,
    cache: Cache = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Minimize a number that any program of yours returns, in few evaluations.

    Every evaluation is a line of evaluations.csv as soon as it is over. If the search is interrupted, the
    same command resumes it, also with a larger budget. An evaluation fails if it raises an exception, ends
    its process, or returns no finite number; the optimizer is told so. An optimizer that was trained for
    several workers runs as many evaluations at a time, each in a process of its own.
    """
    ranges = _read_space(space)
    # The user's function has nothing to do with our devices and caches.
    environment = dict(os.environ)
    start(cores=cores, cache=cache)
    from ._output import Output

    output = Output(quiet, as_json)
    searched = _space_of(ranges)
    rnn, path = _load(optimizer, len(_flat(ranges)))
    with _evaluators(function, rnn.workers, ranges, environment) as evaluators:
        run = _begin(out, function, ranges, searched, budget, path, rnn)
        done = len(run.rows)
        goes_on = f"going on after {done} of them; " if done else ""
        output.say(f"Minimizing {function} in {budget} evaluations; {goes_on}everything is in {out}.")
        try:
            with output.progress("minimizing", budget, "") as update:
                _search(run, evaluators, update)
        except KeyboardInterrupt:
            output.say(f"Stopped after {len(run.rows)} evaluations; the same command goes on.")
            output.result(run.answer("stopped"))
            interrupted()
    _report(run, output)


@dataclasses.dataclass
class _Run:
    # A search under way: `rows` are the evaluations that are over, as in the file.
    folder: Path
    budget: int
    rnn: "BlackBoxRNN"
    search: "Search"
    names: list[str]
    rows: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any] | None:
        fine = [row for row in self.rows if row["value"] != ""]
        return min(fine, key=lambda row: float(row["value"]), default=None)

    @property
    def failed(self) -> int:
        return sum(row["value"] == "" for row in self.rows)

    def tell(self, point: Any, worker: int, found: Evaluation) -> None:
        """Tells the network of an evaluation, and writes it."""
        self.search = self.rnn.tell(self.search, point, found.value, worker=worker)
        best = self.search.best
        value = "" if found.value is None else repr(found.value)
        row = {
            "evaluation": len(self.rows) + 1,
            "worker": worker,
            "value": value,
            "best": "" if best is None else repr(best[1]),
            "seconds": f"{found.seconds:.3f}",
            "error": found.error,
            "point": [repr(x) for x in _flat(point).values()],
        }
        with open(self.folder / EVALUATIONS, "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*(row[name] for name in _COLUMNS), *row["point"]])
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def answer(self, result: str) -> dict[str, Any]:
        """What `--json` prints."""
        best = self.search.best
        return {
            "folder": str(self.folder),
            "result": result,
            "evaluations": len(self.rows),
            "failed": self.failed,
            "best": None if best is None else best[0],
            "best_value": None if best is None else best[1],
        }


def _search(run: _Run, evaluators: list[Evaluator], update: Any) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(len(evaluators))
    under_way: dict[concurrent.futures.Future[Evaluation], tuple[int, Any]] = {}
    try:
        while len(run.rows) < run.budget:
            while len(run.rows) + len(under_way) < run.budget and not run.search.busy.all():
                worker = int(run.search.busy.argmin())
                point, run.search = run.rnn.ask(run.search)
                under_way[pool.submit(evaluators[worker].evaluate, point)] = worker, point
            over, _ = concurrent.futures.wait(under_way, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in sorted(over, key=lambda future: under_way[future][0]):
                worker, point = under_way.pop(future)
                run.tell(point, worker, future.result())
                best = run.search.best
                failed = f", {run.failed} failed" if run.failed else ""
                why = f": {in_brief(run.rows[-1]['error'])}" if best is None else ""
                found = "no value yet" if best is None else f"best {best[1]:.6g}"
                update(len(run.rows), f"{found}{failed}{why}")
    finally:
        # Threads end when their processes do.
        for evaluator in evaluators:
            evaluator.end()
        pool.shutdown()


def _report(run: _Run, output: "Output") -> None:
    best = run.best
    if best is not None:
        where = ", ".join(f"{name} = {x}" for name, x in zip(run.names, best["point"], strict=True))
        failed = f" {run.failed} have failed." if run.failed else ""
        output.say(f"Best of {len(run.rows)}: {best['value']} at {where}.{failed}", "bold green")
    output.result(run.answer("completed"))
    if best is None:
        raise Failure(f"all {len(run.rows)} evaluations have failed, the last one: {run.rows[-1]['error']}")


# What there is before the first evaluation.


def _read_space(path: Path) -> dict[str, Any]:
    """The boxes in a file, as the tree of keywords."""
    try:
        table = read_toml_file(path)
    except OSError as error:
        raise UsageError(f"option '--space': {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"option '--space': {path} is not TOML: {error}") from None
    if not table:
        raise UsageError(f"option '--space': {path} has no table; write one, such as [x] low = 0 high = 1")
    if dotted := [name for name in _names(table) if "." in name]:
        raise UsageError(f"option '--space': a name cannot have a dot. Got {dotted[0]!r}")
    return {name: _read_box(x, name) for name, x in table.items()}


def _names(table: Any) -> Iterator[str]:
    for name, x in table.items() if isinstance(table, dict) else ():
        yield name
        yield from _names(x)


def _read_box(table: Any, name: str) -> Any:
    if not isinstance(table, dict):
        message = f"must be a table, such as {name} = {{low = 0, high = 1}}"
        raise UsageError(f"option '--space': {name}: got {table!r}, {message}")
    if not table.keys() & {*_BOX}:
        return {inner: _read_box(x, f"{name}.{inner}") for inner, x in table.items()}
    for key, value in table.items():
        if key not in _BOX:
            raise UsageError(f"option '--space': {name} has no {key!r}; {suggestion(key, _BOX)}")
        wanted = bool if key in ("log", "integer") else int | float
        if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
            kind = "true or false" if wanted is bool else "a number"
            raise UsageError(f"option '--space': {name}.{key}: got {in_brief(repr(value))}, must be {kind}")
    if missing := [key for key in ("low", "high") if key not in table]:
        raise UsageError(f"option '--space': {name}.{missing[0]} must be given")
    return table


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    # By dotted name; a box is a leaf. In the order of the leaves of JAX's trees.
    found = {}
    for name, x in sorted(tree.items()):
        inner = isinstance(x, dict) and not x.keys() & {*_BOX}
        found |= _flat(x, f"{above}{name}.") if inner else {f"{above}{name}": x}
    return found


def _space_of(ranges: Mapping[str, Any]) -> "l2o.Space":
    import l2o_eqx as l2o

    def box(x: Any) -> Any:
        return l2o.Box(**x) if x.keys() & {*_BOX} else {name: box(inner) for name, inner in x.items()}

    try:
        return l2o.Space({name: box(x) for name, x in ranges.items()})
    except ValueError as error:
        raise UsageError(f"option '--space': {error}") from None


def _load(optimizer: Path | None, dim: int) -> tuple["BlackBoxRNN", Path]:
    from l2o_eqx.optimizers import BlackBoxRNN

    from ._evaluate import files_of, load_optimizers

    how = f"`l2o train --objective gp --optimizer black-box-rnn --dim {dim} --out search-{dim}` trains one"
    if optimizer is None:
        ready = "`--optimizer black-box` is that of the gallery; " if dim == 2 else ""
        raise UsageError(f"option '--optimizer': must be given; {ready}{how}, in minutes")
    path = files_of(optimizer, "option '--optimizer'")[0]
    rnn = load_optimizers([path], label="option '--optimizer'")[0][0]
    if not isinstance(rnn, BlackBoxRNN):
        kind = type(rnn).__name__
        raise UsageError(f"option '--optimizer': {path} holds a {kind}, which needs gradients; {how}")
    if rnn.dim != dim:
        raise UsageError(
            f"option '--optimizer': {path} was trained for {rnn.dim} numbers, but the space has {dim}; {how}"
        )
    return rnn, path


@contextlib.contextmanager
def _evaluators(
    function: str, count: int, keywords: Iterable[str], environment: Mapping[str, str]
) -> Iterator[list[Evaluator]]:
    evaluators = [Evaluator(function, keywords, environment) for _ in range(count)]
    try:
        # What cannot be imported or called is found out before anything is written.
        evaluators[0].begin()
        yield evaluators
    finally:
        for evaluator in evaluators:
            evaluator.end()


def _begin(
    out: Path,
    function: str,
    ranges: dict[str, Any],
    space: "l2o.Space",
    budget: int,
    path: Path,
    rnn: "BlackBoxRNN",
) -> _Run:
    """A new search, or the one in the folder up to where it was."""
    from l2o_eqx.files import dumps, write_text

    names = [*_flat(ranges)]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"function": function, "space": ranges, "optimizer": sha256}
    if os.path.lexists(out):
        horizon = _check_same(out, facts)
    else:
        horizon = budget
        make_folder(out, out.parent, "")
        with open(out / EVALUATIONS, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*_COLUMNS, *names])
        content = {"format": 1, **facts, "optimizer_file": str(path), "budget": budget}
        write_text(out / SEARCH, dumps(content, indent=2) + "\n")
    run = _Run(out, budget, rnn, rnn.init(space, horizon), names, _read_rows(out / EVALUATIONS))
    for row in run.rows:
        point = _nested(dict(zip(names, map(json.loads, row["point"]), strict=True)))
        value = None if row["value"] == "" else float(row["value"])
        run.search = rnn.tell(run.search, point, value, worker=int(row["worker"]))
    return run


def _check_same(out: Path, facts: Mapping[str, Any]) -> int:
    # What a search in a folder cannot go on without; its budget was its horizon, which stays.
    try:
        before = json.loads((out / SEARCH).read_text(encoding="utf-8"))
        horizon = int(before["budget"])
    except (OSError, ValueError, KeyError):
        raise exists(out) from None
    labels = {"function": "FUNCTION", "space": "option '--space'", "optimizer": "option '--optimizer'"}
    for name, label in labels.items():
        if before.get(name) != json.loads(json.dumps(facts[name])):
            raise UsageError(f"{label}: another one than that of the search in {out}; name a new folder")
    return horizon


def _read_rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        # The machine stopped in the middle of a line: that evaluation is made again.
        path.write_text(whole, encoding="utf-8", newline="")
    _, *lines = csv.reader(whole.splitlines())
    count = len(_COLUMNS)
    return [dict(zip(_COLUMNS, line, strict=False)) | {"point": line[count:]} for line in lines]


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, x in flat.items():
        *above, last = name.split(".")
        table = tree
        for part in above:
            table = table.setdefault(part, {})
        table[last] = x
    return tree
