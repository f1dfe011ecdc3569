"""Bands and parts must find what comparing every pair finds, each pair once."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.near_duplicates import NearPairs, find_near_pairs


def run(hashes: list[int], max_distance: int, *, max_pairs: int = 10**6, **options: int) -> NearPairs:
    ids = np.arange(len(hashes), dtype=np.int64) * 3  # gaps: images without a hash
    with TemporaryDirectory() as folder:
        return find_near_pairs(
            np.array(hashes, np.uint64),
            ids,
            max_distance=max_distance,
            scratch=Path(folder),
            max_pairs=max_pairs,
            **options,
        )


def listed(pairs: NearPairs) -> list[tuple[int, int, int]]:
    columns = (pairs.first // 3, pairs.second // 3, pairs.distance)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def brute_force(hashes: list[int], max_distance: int, first_new: int) -> list[tuple[int, int, int]]:
    lowest = [hashes.index(value) for value in hashes]
    pairs: list[tuple[int, int, int]] = []
    for second in range(len(hashes)):
        for first in range(second):
            distance = (hashes[first] ^ hashes[second]).bit_count()
            both_stand_for_their_equals = lowest[first] == first and lowest[second] == second
            if lowest[second] == first or (both_stand_for_their_equals and distance <= max_distance):
                pairs.append((first, second, distance))
    return sorted(pair for pair in pairs if pair[1] >= first_new)


@st.composite
def clusters(draw: st.DrawFn) -> list[int]:
    """Hashes around a few centres, so that many are near and many are just not."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    flips = st.lists(st.integers(0, 63), max_size=8)
    members = draw(st.lists(st.tuples(st.sampled_from(centres), flips), max_size=30))
    return [centre ^ sum({1 << bit for bit in bits}) for centre, bits in members]


@settings(deadline=None, max_examples=150)
@given(clusters(), st.integers(0, 6), st.sampled_from([3, 7, 1000]), st.integers(0, 20))
def test_same_as_comparing_every_pair(
    hashes: list[int], max_distance: int, part_rows: int, first_new: int
) -> None:
    pairs = run(hashes, max_distance, part_rows=part_rows, first_new=3 * first_new)
    expected = brute_force(hashes, max_distance, first_new)
    assert listed(pairs) == expected
    assert pairs.num_found == len(expected)


@pytest.mark.parametrize("max_distance", [2, 4])
def test_many_images_take_more_and_longer_keys(max_distance: int) -> None:
    """With more images other blocks are chosen; planted pairs are found among noise, in parts or not."""
    rng = np.random.default_rng(max_distance)
    noise = rng.integers(0, 2**64, 60_000, np.uint64)
    twins = noise[:500].copy()
    for twin in range(500):
        for bit in rng.choice(64, twin % (max_distance + 2), replace=False):
            twins[twin] ^= np.uint64(1) << np.uint64(bit)
    hashes = [int(value) for value in np.concatenate([noise, twins])]
    planted = [(n, 60_000 + n, n % (max_distance + 2)) for n in range(500)]
    expected = [pair for pair in planted if pair[2] <= max_distance]
    assert listed(run(hashes, max_distance)) == expected
    assert listed(run(hashes, max_distance, part_rows=9_000)) == expected


def test_many_equal_images_are_one_star_and_the_cap_counts_on() -> None:
    """A thousand copies would be half a million pairs."""
    pairs = run([5] * 1000 + [7], 1)
    assert pairs.num_found == 1000
    assert set(pairs.first.tolist()) == {0}
    capped = run([5] * 1000 + [7], 1, max_pairs=10)
    assert (len(capped.first), capped.num_found) == (10, 1000)


def test_nothing_to_compare() -> None:
    assert listed(run([], 4)) == listed(run([1], 4)) == []
