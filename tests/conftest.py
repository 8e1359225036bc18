import itertools

import jax
import jax.random as jr
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def getkey():
    """A function that returns a new key at each call; the same ones in every run of a test."""
    counter = itertools.count()
    return lambda: jr.key(next(counter))
