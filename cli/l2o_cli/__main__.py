"""`python -m l2o_cli` is `l2o`."""

from . import main

main()
