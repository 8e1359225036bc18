"""The thesis's figures and claims, found again with many restarts: `l2o reproduce`.

An application of `l2o_eqx`, written with its public names alone. The facts are in files beside this module:
`figures.toml` says which experiments a figure has and which claims they decide, `experiments.toml` what they
share, `claims.toml` what the thesis claims, `curves.csv` and `histograms.csv` what its figures show, and
`report.md.jinja` is the page of everything. `reproduce.reproduce` runs figures, `report.write_report` writes
the page.

Reference: L. Schröter, "Machine learning of gradient-based optimization methods", bachelor thesis, TU
Hamburg, 2022.
"""
