"""Counter-based randomness: a number depends on what it is for, never on what was drawn before.

Every random choice about a sample is a pure function of (seed, epoch, position, stream, draw), so a
resumed run, another world size or another number of threads sees the same pixels.

The generator is SplitMix64's output function (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014, with Stafford's variant 13 constants), applied to counters.
Shape letters: B batch, D draws per sample.
"""

from collections.abc import Sequence
from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1
_TWO_TO_MINUS_53 = 2.0**-53


@unique
class Stream(IntEnum):
    """What a number is drawn for. Two purposes never share a stream, or they would correlate.

    Numbers are part of the order's format: they are never reused or changed. Augmentation on the
    device uses 16 and above (see `data.augment`).
    """

    SHARD_ORDER = 1
    BLOCK_ORDER = 2
    CROP = 3


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble each 64-bit value by a bijection: SplitMix64's finaliser."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_key(*parts: int) -> int:
    """Fold integers, in order, into one 64-bit key. Negative ones count modulo 2**64."""
    key = _GOLDEN_GAMMA
    for part in parts:
        key = _mix_int((key ^ _mix_int((part + _GOLDEN_GAMMA) & _MASK64)) & _MASK64)
    return key


def _mix_int(value: int) -> int:
    """Do what `mix64` does, for one Python integer."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def random_bits(key: int, counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each counter under a key; distinct counters give distinct values."""
    return mix64(counters.astype(np.uint64) * np.uint64(_GOLDEN_GAMMA) + np.uint64(key))


def uniforms(
    seed: int, epoch: int, positions_B: NDArray[np.int64] | Sequence[int], stream: int, count: int
) -> NDArray[np.float64]:
    """Draw `count` numbers in [0, 1) for each position: float64 [B, D].

    Row i depends on (seed, epoch, positions_B[i], stream) alone, and draw d on d as well: asking for
    more draws leaves the first ones as they were. 53 random bits a number.
    """
    counters_B = np.asarray(positions_B, dtype=np.int64)
    bases_B = random_bits(hash_key(seed, epoch, stream), counters_B)
    steps_D = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN_GAMMA)
    bits_BD = mix64(bases_B[:, None] + steps_D[None, :])
    return (bits_BD >> np.uint64(11)).astype(np.float64) * _TWO_TO_MINUS_53


def keyed_permutation(key: int, size: int) -> NDArray[np.int64]:
    """Return the permutation of range(size) that the key names, in O(size log size).

    Sorting by distinct random values needs no tie-break: `random_bits` is injective in its counter.
    """
    return np.argsort(random_bits(key, np.arange(size, dtype=np.int64)))
