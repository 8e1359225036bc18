"""The command line of `l2o_eqx`: parse, build, call one verb, show."""


def main() -> None:
    """The console script `l2o`."""
    from ._app import app
    from ._interrupt import leave

    try:
        app()
    except SystemExit as error:
        leave(error.code if isinstance(error.code, int) else 1)
