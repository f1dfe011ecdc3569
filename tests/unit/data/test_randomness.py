"""Draws depend on their key alone, look uniform, and never change between versions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.randomness import Stream, hash_key, keyed_permutation, mix64, random_bits, uniforms


def test_a_row_depends_only_on_its_own_position() -> None:
    """Guards against drawing in batch order: a resumed run would see other crops."""
    positions = np.array([7, 3, 10**12, 0], dtype=np.int64)
    together = uniforms(5, 2, positions, Stream.CROP, 4)
    for row, position in zip(together, positions, strict=True):
        alone = uniforms(5, 2, np.array([position]), Stream.CROP, 4)
        np.testing.assert_array_equal(alone[0], row)


def test_more_draws_keep_the_first_ones() -> None:
    positions = np.arange(20)
    np.testing.assert_array_equal(uniforms(0, 0, positions, 3, 9)[:, :4], uniforms(0, 0, positions, 3, 4))


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(1, 0, 3), (0, 1, 3), (0, 0, 4)])
def test_every_part_of_the_key_matters(seed: int, epoch: int, stream: int) -> None:
    positions = np.arange(1000)
    base = uniforms(0, 0, positions, 3, 2)
    other = uniforms(seed, epoch, positions, stream, 2)
    assert not (base == other).any()
    assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.08


def test_uniform_and_independent() -> None:
    """Chi-square over 100 bins, and no correlation between neighbours in position or draw."""
    draws_BD = uniforms(0, 0, np.arange(50_000), 3, 4)
    assert draws_BD.min() >= 0.0
    assert draws_BD.max() < 1.0
    counts, _ = np.histogram(draws_BD, bins=100, range=(0, 1))
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert 50 < chi_square < 170  # 99 degrees of freedom; both tails beyond 1e-4
    for left, right in [(draws_BD[:-1, 0], draws_BD[1:, 0]), (draws_BD[:, 0], draws_BD[:, 1])]:
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.02


def test_values_are_frozen() -> None:
    """A changed generator must change the order's format version: old cursors would lie."""
    assert hash_key(0, 1, 2) == FROZEN_KEY
    np.testing.assert_array_equal(uniforms(0, 1, np.array([2, 3]), 3, 2), FROZEN_UNIFORMS)


def test_mix64_is_splitmix64() -> None:
    """First outputs of the reference generator seeded with 1234567 (Rosetta Code, Vigna's C)."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in (1, 2, 3)], dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix64(states).tolist() == expected


@settings(deadline=None, max_examples=50)
@given(key=st.integers(0, 2**64 - 1), size=st.integers(0, 2000))
def test_keyed_permutation_is_one(key: int, size: int) -> None:
    assert sorted(keyed_permutation(key, size).tolist()) == list(range(size))


def test_random_bits_are_distinct_for_distinct_counters() -> None:
    assert len(np.unique(random_bits(3, np.arange(100_000)))) == 100_000


FROZEN_KEY = 4182849889103952827
FROZEN_UNIFORMS = [
    [0.5572749791499936, 0.9648623958143671],
    [0.19549450241487243, 0.9052355467713432],
]
