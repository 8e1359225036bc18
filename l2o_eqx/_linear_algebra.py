"""Linear algebra of small matrices, in operations of XLA's own.

LAPACK's would do. But two batches that do not depend on each other are computed at once, and each holds a
thread of XLA's pool that waits for the pool's other threads: with two of them jaxlib 0.10.2 waits for ever.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Up to this size the loops are written out, which is faster then.
_UNROLLED = 4


def cholesky(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """The lower triangular L of L·Lᵀ = A.

    **Arguments:**

    - `matrices`: A, symmetric; where one is not positive definite, there are NaNs in L.
    """
    return jnp.vectorize(_cholesky, signature="(n,n)->(n,n)")(matrices)


def solve(
    matrices: Float[Array, "*batch n n"], right: Float[Array, "*batch n columns"]
) -> Float[Array, "*batch n columns"]:
    """A⁻¹·B, by elimination without pivoting (Gauss-Jordan), which positive definite matrices do not need.

    **Arguments:**

    - `matrices`: A, symmetric; where one is not positive definite, the result is NaN.
    - `right`: B.
    """
    return jnp.vectorize(_solve, signature="(n,n),(n,m)->(n,m)")(matrices, right)


def orthonormal(matrix: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """The Q of a QR decomposition whose R has a positive diagonal, by Gram-Schmidt.

    Of a matrix of independent normal numbers it is uniform over all of its shape.

    **Arguments:**

    - `matrix`: of full rank, with at least as many rows as columns.
    """

    def column(j, found):
        own = matrix[:, j]
        # Once more for what rounding leaves.
        for _ in range(2):
            own = own - found @ (own @ found)
        return found.at[:, j].set(own / jnp.linalg.norm(own))

    return lax.fori_loop(0, matrix.shape[1], column, jnp.zeros_like(matrix))


def _cholesky(matrix):
    rows = jnp.arange(len(matrix))

    def column(j, carry):
        rest, factor = carry
        own = jnp.where(rows >= j, rest[:, j], 0) * lax.rsqrt(rest[j, j])
        return rest - own[:, None] * own[None], factor.at[:, j].set(own)

    return _for_each_row(column, (matrix, jnp.zeros_like(matrix)))[1]


def _solve(matrix, right):
    def eliminate(j, both):
        pivot = both[j, j]
        row = both[j] / jnp.where(pivot > 0, pivot, jnp.nan)
        others = both[:, j].at[j].set(0)
        return (both - others[:, None] * row[None]).at[j].set(row)

    return _for_each_row(eliminate, jnp.concatenate([matrix, right], axis=1))[:, len(matrix) :]


def _for_each_row(step, start):
    size = len(jax.tree.leaves(start)[0])
    return lax.fori_loop(0, size, step, start, unroll=size <= _UNROLLED)
