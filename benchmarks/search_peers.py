"""Searches without gradients from kept libraries, for `black_box.py`: the extra `search-peers`.

Each is a generator on the box [−1, 1]^n that yields points and is sent their values.
"""

import importlib
import warnings
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

try:
    from scipy.optimize import minimize
    from scipy.stats import norm, qmc
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    cma: Any = importlib.import_module("cma")
except ImportError as error:
    raise SystemExit(f"{error}: the peers need `pip install 'l2o-eqx[search-peers]'`") from None

Point = np.ndarray
Search = Generator[Point, float, None]
# (coordinates, budget, seed) -> a search.
MakeSearch = Callable[[int, int, int], Search]

# Points before the first posterior, and points among which the expected improvement is looked at.
_FIRST, _CANDIDATES, _NEAR = 5, 512, 128


def random_search(dim: int, budget: int, seed: int) -> Search:
    """Uniform points."""
    rng = np.random.default_rng(seed)
    for _ in range(budget):
        yield rng.uniform(-1, 1, dim)


def sobol(dim: int, budget: int, seed: int) -> Search:
    """A scrambled Sobol sequence of SciPy."""
    # Not `yield from`, which would hand the values on to an array.
    for point in 2 * _sobol(dim, budget, seed) - 1:  # noqa: UP028
        yield point


def _sobol(dim: int, count: int, seed: int) -> np.ndarray:
    # Whole powers of two are what it is balanced for.
    return qmc.Sobol(dim, rng=seed).random(2 ** int(np.ceil(np.log2(count))))[:count]


def cma_es(sigma: float) -> MakeSearch:
    """CMA-ES of pycma from the middle of the box, with its own population size."""

    def make(dim: int, budget: int, seed: int) -> Search:
        options = {"bounds": [-1, 1], "seed": seed + 1, "verbose": -9, "maxfevals": budget}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strategy = cma.CMAEvolutionStrategy(dim * [0.0], sigma, options)
            while True:
                points = strategy.ask()
                values = []
                for point in points:
                    values.append((yield np.asarray(point)))
                strategy.tell(points, values)

    return make


def gp_ei(length_scale: float | None) -> MakeSearch:
    """Expected improvement under a Gaussian process of scikit-learn.

    **Arguments:**

    - `length_scale`: of an RBF kernel of variance 1 and mean 0, which is then the prior that functions were
        drawn from; if `None`, scale and variance are fitted to standardized values before every point.
    """

    def make(dim: int, budget: int, seed: int) -> Search:
        rng = np.random.default_rng(seed)
        points, values = [], []
        kernel = _kernel(length_scale)
        for t in range(budget):
            if t < _FIRST:
                point = 2 * _sobol(dim, _FIRST, seed)[t] - 1
            else:
                regressor = _posterior(kernel, points, values, fitted=length_scale is None)
                # The next fit begins where this one ended.
                kernel = regressor.kernel_
                point = _most_promising(regressor, points, values, rng)
            points.append(point)
            values.append((yield point))

    return make


def _kernel(length_scale: float | None) -> Any:
    if length_scale is not None:
        return RBF(length_scale)
    return ConstantKernel(1.0, (1e-2, 1e2)) * RBF(0.5, (0.05, 5.0))


def _posterior(kernel: Any, points: list[Any], values: list[float], *, fitted: bool) -> Any:
    settings: Any = {"normalize_y": fitted, "optimizer": "fmin_l_bfgs_b" if fitted else None}
    regressor = GaussianProcessRegressor(kernel, alpha=1e-6, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return regressor.fit(np.stack(points), np.asarray(values))


def _most_promising(regressor: Any, points: list[Any], values: list[float], rng: Any) -> Point:
    best, dim = points[int(np.argmin(values))], len(points[0])

    def improvement(x):
        mean, std = regressor.predict(np.atleast_2d(x), return_std=True)
        std = np.maximum(std, 1e-9)
        z = (min(values) - mean) / std
        return std * (z * norm.cdf(z) + norm.pdf(z))

    # All over the box, and near the best point on three scales.
    near = best + np.concatenate([s * rng.normal(size=(_NEAR, dim)) for s in (0.3, 0.1, 0.03)])
    candidates = np.clip(np.concatenate([rng.uniform(-1, 1, (_CANDIDATES, dim)), near]), -1, 1)
    start = candidates[int(np.argmax(improvement(candidates)))]
    bounds = dim * [(-1.0, 1.0)]
    found = minimize(lambda x: -improvement(x)[0], start, bounds=bounds, options={"maxiter": 5})
    return np.asarray(found.x) if np.all(np.isfinite(found.x)) else start
