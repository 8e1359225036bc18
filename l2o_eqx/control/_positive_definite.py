"""Linear algebra of small positive definite matrices, in operations of XLA's own.

LAPACK's would do. But two batches that do not depend on each other are computed at once, and each holds a
thread of XLA's pool that waits for the pool's other threads: with two of them jaxlib 0.10.2 waits for ever.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Up to this size the loops are written out, which is faster then.
_UNROLLED = 4


def cholesky(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """The lower triangular L of L·Lᵀ = A.

    **Arguments:**

    - `matrices`: A; where one is not positive definite, there are NaNs in L.
    """
    return jnp.vectorize(_cholesky, signature="(n,n)->(n,n)")(matrices)


def solve(
    factors: Float[Array, "*batch n n"], right: Float[Array, "*batch n columns"]
) -> Float[Array, "*batch n columns"]:
    """A⁻¹·B.

    **Arguments:**

    - `factors`: `cholesky` of A.
    - `right`: B.
    """
    return jnp.vectorize(_solve, signature="(n,n),(n,m)->(n,m)")(factors, right)


def _cholesky(matrix):
    size = len(matrix)
    rows = jnp.arange(size)

    def column(j, carry):
        rest, factor = carry
        own = jnp.where(rows >= j, rest[:, j], 0) * lax.rsqrt(rest[j, j])
        return rest - own[:, None] * own[None], factor.at[:, j].set(own)

    start = (matrix, jnp.zeros_like(matrix))
    return lax.fori_loop(0, size, column, start, unroll=size <= _UNROLLED)[1]


def _solve(factor, right):
    size = len(factor)

    def substitute(factor, j, carry):
        # x_j, which comes off all other rows.
        rest, found = carry
        own = rest[j] / factor[j, j]
        return rest - factor[:, j][:, None] * own[None], found.at[j].set(own)

    def down(j, carry):
        return substitute(factor, j, carry)

    def up(i, carry):
        return substitute(factor.T, size - 1 - i, carry)

    for step in (down, up):
        start = (right, jnp.zeros_like(right))
        right = lax.fori_loop(0, size, step, start, unroll=size <= _UNROLLED)[1]
    return right
