"""The searches that `benchmarks/black_box.py` compares with; they need the extra `search-peers`."""

import numpy as np
import pytest

pytest.importorskip("cma")

from search_peers import cma_es, gp_ei, random_search, sobol

PEERS = {
    "random": random_search,
    "sobol": sobol,
    "cma": cma_es(0.4),
    "known": gp_ei(0.6),
    "fitted": gp_ei(None),
}


def values_of(make, seed=0, budget=14):
    search = make(2, budget, seed)
    points, values = [], []
    for t in range(budget):
        points.append(next(search) if t == 0 else search.send(values[-1]))
        values.append(float(np.sum((points[-1] - 0.35) ** 2)))
    return np.asarray(points), np.asarray(values)


@pytest.mark.parametrize("name", PEERS)
def test_points_lie_in_the_box_and_the_seed_decides(name):
    points, values = values_of(PEERS[name])
    assert np.all(np.abs(points) <= 1) and len({*map(tuple, points)}) > 10
    np.testing.assert_array_equal(values_of(PEERS[name])[1], values)
    assert np.any(values_of(PEERS[name], seed=1)[1] != values)


def test_a_gaussian_process_finds_the_bottom_of_a_bowl():
    for name in ("known", "fitted"):
        assert values_of(PEERS[name])[1].min() < 0.01
