"""Speed and memory of meta-training, next to what one would write without `l2o_eqx`.

`l2o bench` and `nox -s bench` run it. Nothing here is a test: what it prints are measurements.
"""
