"""The random numbers of JAX's default generator: Threefry-2x32 with 20 rounds, Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3", and JAX's ways to count and to split.
"""

import numpy as np

# Two words of 32 bits.
Key = np.ndarray

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_ONE_BITS = {np.dtype(np.float32): np.uint32(0x3F800000), np.dtype(np.float64): np.uint64(0x3FF0000000000000)}


def fold_in(key: Key, number: int) -> Key:
    """`jax.random.fold_in` of a number below 2³²."""
    return np.concatenate(_hash(key, np.zeros(1, np.uint32), np.full(1, number, np.uint32)))


def split(key: Key, count: int) -> list[Key]:
    """`jax.random.split`."""
    return [*np.stack(_hash(key, *_counts(count)), axis=1)]


def uniform(key: Key, shape: tuple[int, ...], dtype: np.dtype, low: float, high: float) -> np.ndarray:
    """`jax.random.uniform` in float32 or float64, but for the rounding of the last sum."""
    first, second = _hash(key, *_counts(int(np.prod(shape))))
    if dtype == np.float32:
        bits = (first ^ second) >> np.uint32(9)
    else:
        bits = (first.astype(np.uint64) << np.uint64(32) | second) >> np.uint64(12)
    unit = (bits | _ONE_BITS[dtype]).view(dtype) - dtype.type(1)
    low_, high_ = dtype.type(low), dtype.type(high)
    return np.maximum(low_, unit * (high_ - low_) + low_).reshape(shape)


def _counts(count: int) -> tuple[np.ndarray, np.ndarray]:
    # Their upper and lower words.
    numbers = np.arange(count, dtype=np.uint64)
    return (numbers >> np.uint64(32)).astype(np.uint32), numbers.astype(np.uint32)


def _hash(key: Key, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    words = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    # Sums are modulo 2³², as meant.
    with np.errstate(over="ignore"):
        x, y = x + words[0], y + words[1]
        for i in range(5):
            for rotation in _ROTATIONS[i % 2]:
                x = x + y
                y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
                y = x ^ y
            x, y = x + words[(i + 1) % 3], y + words[(i + 2) % 3] + np.uint32(i + 1)
    return x, y
