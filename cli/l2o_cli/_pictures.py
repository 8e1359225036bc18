"""Pictures of a run: nice to have, and never what ends a command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._output import Output


def draw(path: Path, plot: Callable[[Path], Any], output: Output) -> None:
    """Draws one, or says in one line why there is none.

    **Arguments:**

    - `path`: the file.
    - `plot`: draws into the file that it is handed.
    - `output`: what the user sees.
    """
    from l2o_eqx.files import replacing

    try:
        with replacing(path) as temporary:
            plot(temporary)
    except Exception as error:  # Whatever it is, the numbers are there.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        output.say(f"{path} was not drawn: {reason}. `l2o plot` can do it later.", "yellow")
