"""The command line of `l2o_eqx`: parse, build, call one verb, show."""


def main() -> None:
    """The console script `l2o`."""
    import io
    import signal
    import sys

    # Imports of JAX and NumPy do not survive a KeyboardInterrupt, and may swallow it.
    from ._interrupt import end_at_once

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    from ._app import app
    from ._interrupt import leave

    # What a terminal has no character for ends nothing.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except SystemExit as error:
        leave(error.code if isinstance(error.code, int) else 1)
