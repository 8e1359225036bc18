import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

from .._types import StepNumber

_ROUNDS = 8


def minibatch_indices(
    step: StepNumber, key: PRNGKeyArray, *, num_examples: int, batch_size: int
) -> Int[Array, " batch"]:
    """The examples that minibatch number `step` holds when every epoch has its own random order.

    An epoch is `num_examples // batch_size` steps; the examples left over differ from epoch to epoch.
    The order is a keyed permutation evaluated only where it is needed, so that neither a sort nor a
    table of `num_examples` entries is made at each step, and batches of runs share one data set.

    **Arguments:**

    - `step`: the number of the inner step.
    - `key`: picks the orders of all epochs.
    - `num_examples`, `batch_size`: sizes; `batch_size` is at most `num_examples`.

    Reference: permutation by a Feistel network with cycle walking, Black & Rogaway 2002, "Ciphers with
    arbitrary finite domains".
    """
    steps_per_epoch = num_examples // batch_size
    epoch, batch = jnp.divmod(jnp.asarray(step), steps_per_epoch)
    round_keys = jr.bits(jr.fold_in(key, epoch), (_ROUNDS,), jnp.uint32)
    positions = (batch * batch_size + jnp.arange(batch_size)).astype(jnp.uint32)
    return _permute(positions, round_keys, num_examples).astype(jnp.int32)


def _permute(
    positions: UInt32[Array, " n"], round_keys: UInt32[Array, " rounds"], size: int
) -> UInt32[Array, " n"]:
    # Halves of fewer than four bits have too few round functions to make all orders equally likely.
    bits = max(8, (size - 1).bit_length())

    def walk(x):
        return jnp.where(x < size, x, _feistel(x, round_keys, bits))

    # A permutation of 2^bits values, applied until the value falls below `size`, permutes 0..size-1.
    return lax.while_loop(lambda x: jnp.any(x >= size), walk, _feistel(positions, round_keys, bits))


def _feistel(x, round_keys, bits):
    low, high = bits // 2, bits - bits // 2
    left, right = x >> low, x & ((1 << low) - 1)
    # Each round replaces the left half by the right one and the right half by the masked left; with
    # halves of unequal width the widths swap too, so that an even number of rounds restores them.
    widths = (high, low)
    for i in range(_ROUNDS):
        mask = jnp.uint32((1 << widths[i % 2]) - 1)
        left, right = right, (left ^ _mix(right, round_keys[i])) & mask
    return (left << low) | right


def _mix(x, key):
    # The finalizer of MurmurHash3: every input bit reaches every output bit.
    x = (x ^ key) * jnp.uint32(0x9E3779B1)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def take_batch(data, indices: Int[Array, " batch"]):
    """The rows `indices` of every array in the tree `data`."""
    return jax.tree.map(lambda x: jnp.take(x, indices, axis=0), data)
