"""Random numbers that are a function of (seed, position) and of nothing else.

Philox4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2,
3", SC 2011, section 3.3; constants from table 2 and the reference implementation, Random123.

It runs on the host: seeds and positions are known there before a step starts, a step needs only two
numbers a request, and whole-number arithmetic of a device cannot make a difference then.
"""

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)

#: A float32 has 24 significant bits: so many of each word make the number, without rounding.
_DROPPED = np.uint64(8)
_UNIT = np.float32(2.0**-24)


def philox(counter_N4: NDArray[np.uint64], key_N2: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Philox4x32-10 of N counters under N keys: [N, 4]. Words of 32 bits, held in uint64."""
    first, second, third, fourth = counter_N4.T
    key_low, key_high = key_N2.T
    for _ in range(_ROUNDS):
        left, right = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, third = (right >> _WORD) ^ second ^ key_low, (left >> _WORD) ^ fourth ^ key_high
        second, fourth = right & _LOW, left & _LOW
        key_low, key_high = (key_low + _KEY_STEPS[0]) & _LOW, (key_high + _KEY_STEPS[1]) & _LOW
    return np.stack((first, second, third, fourth), axis=1)


def uniforms(seeds_N: NDArray[np.uint64], positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Two independent numbers of [0, 1) for each seed and position: float32 [N, 2].

    The seed is the key. Position P of a request is counter (P, 0, 0, 0); the other counters, and
    the other two words of the block, are unused so far.
    """
    counter_N4 = np.zeros((len(seeds_N), 4), dtype=np.uint64)
    counter_N4[:, 0] = positions_N
    key_N2 = np.stack((seeds_N & _LOW, seeds_N >> _WORD), axis=1)
    return (philox(counter_N4, key_N2)[:, :2] >> _DROPPED).astype(np.float32) * _UNIT
