"""Pseudo-random permutations without a table, in integer arithmetic that is the same on every platform.

- hash: splitmix64's finalizer, Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators",
  https://doi.org/10.1145/2660193.2660195
- permutation: a balanced Feistel network with cycle walking, Black & Rogaway 2002, "Ciphers with Arbitrary Finite
  Domains", https://doi.org/10.1007/3-540-45760-7_9

NumPy does not promise equal shuffles between versions; a golden digest test pins these.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash64(*values: ArrayLike) -> U64:
    """64-bit hash of several non-negative integers, which broadcast against each other."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for value in values:
            state = _mix(state + _GOLDEN + np.asarray(value).astype(np.uint64))
    return state


def permute(index: ArrayLike, size: ArrayLike, key: ArrayLike) -> I64:
    """Image of `index` in [0, size) under the permutation of `key`. Arrays broadcast; O(1) each.

    A Feistel network permutes [0, 4^h) ⊇ [0, size); a result outside is permuted again until it falls inside, fewer than
    four rounds on average (cycle walking), which gives a permutation of [0, size).
    """
    value, sizes, keys = (
        part.astype(np.uint64).ravel()
        for part in np.broadcast_arrays(np.asarray(index), np.asarray(size), np.asarray(key))
    )
    result = value
    half = _half_bits(sizes)
    rows = np.arange(len(value))
    while len(rows):
        value = _feistel(value, keys, half)
        result[rows] = value
        outside = value >= sizes
        value, sizes, keys, half, rows = (part[outside] for part in (value, sizes, keys, half, rows))
    return result.astype(np.int64).reshape(np.broadcast_shapes(np.shape(index), np.shape(size), np.shape(key)))


def _half_bits(sizes: U64) -> U64:
    """h of the smallest 4^h ≥ size, h ≥ 1, of each size."""
    distinct, where = np.unique(sizes, return_inverse=True)
    halves = [max(1, ((int(size) - 1).bit_length() + 1) // 2) for size in distinct]
    return np.array(halves, dtype=np.uint64)[where]


def _feistel(value: U64, key: U64, half_bits: U64) -> U64:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & mask
    with np.errstate(over="ignore"):
        for number in range(1, ROUNDS + 1):
            left, right = right, left ^ (_mix(right + key + _GOLDEN * np.uint64(number)) & mask)
    return (left << half_bits) | right
