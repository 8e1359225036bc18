"""Somebody's function in a process of its own: what it prints, and how it ends, is its own affair.

`python -m l2o_cli._evaluator MODULE:NAME KEYWORD...` reads a point per line from standard input and answers a
line each.
"""

import contextlib
import inspect
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ._errors import UsageError


class Evaluation(NamedTuple):
    """What became of an evaluation: a finite `value`, or `None` and an `error` in one line."""

    value: float | None
    error: str
    seconds: float


class Evaluator:
    """The process, begun when it is needed and once more after it has died.

    **Arguments:**

    - `function`: `module:name` of a function of keywords that returns a number.
    - `keywords`: what it is going to be called with.
    - `environment`: of the process.
    """

    def __init__(self, function: str, keywords: Iterable[str], environment: Mapping[str, str]):
        self.function, self.keywords, self.environment = function, tuple(keywords), environment
        self._process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Begins the process and imports the function in it.

        **Raises:** `UsageError` if it cannot be imported, or called with these keywords.
        """
        command = [sys.executable, "-m", __name__, self.function, *self.keywords]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=dict(self.environment),
        )
        answer = self._read()
        if "error" in answer:
            self.end()
            raise UsageError(f"FUNCTION: {answer['error']}")

    def evaluate(self, point: Mapping[str, Any]) -> Evaluation:
        """Calls the function. Whatever happens there is an answer, but Ctrl-C."""
        begin = time.perf_counter()
        answer: dict[str, Any]
        try:
            if self._process is None:
                self.begin()
            assert self._process is not None and self._process.stdin is not None
            self._process.stdin.write(json.dumps(point) + "\n")
            self._process.stdin.flush()
            answer = self._read()
        except (OSError, UsageError) as error:
            answer = {"error": str(error)}
        seconds = time.perf_counter() - begin
        value = answer.get("value")
        if isinstance(value, float) and math.isfinite(value):
            return Evaluation(value, "", seconds)
        error = " ".join(str(answer.get("error") or f"the value is {value}").split())
        return Evaluation(None, error, seconds)

    def end(self) -> None:
        """Ends the process, whatever it is at."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _read(self) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdout is not None
        line = process.stdout.readline()
        if line.endswith("\n"):
            return json.loads(line)
        process.communicate()
        code, self._process = process.returncode, None
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return {"error": f"the process has ended {how}"}


def _check_keywords(function: Any, reference: str, keywords: Iterable[str]) -> None:
    try:
        # As it is called: a decorator may hand on more than it is given.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # Not every callable has one.
    try:
        signature.bind(**dict.fromkeys(keywords))
    except TypeError as error:
        raise UsageError(f"{reference!r} cannot be called with the names of the space: {error}") from None


def _serve(reference: str, keywords: list[str]) -> None:
    # Answers go where nobody prints to by chance.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    from ._kinds import import_reference

    try:
        function = import_reference(reference, reference)
        if not callable(function):
            raise UsageError(f"{reference!r} must be a function, module:name. Got {function!r:.60}")
        _check_keywords(function, reference, keywords)
    except UsageError as error:
        answer(error=error.format_message())
        return
    answer()
    for line in sys.stdin:
        try:
            value: Any = function(**json.loads(line))
            answer(value=float(value))
        except (Exception, SystemExit) as error:
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    # Ctrl-C is for the process that has begun this one.
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve(sys.argv[1], sys.argv[2:])
