"""Find pictures that look alike: pairs of 64-bit hashes that differ in few bits, without comparing all.

The blocks of Manku, Jain and Das Sarma, "Detecting Near-Duplicates for Web Crawling" (WWW 2007), section
3: 64 bits are cut into b blocks; two hashes that differ in at most d bits agree in at least b - d whole
blocks. One pass for each choice of b - d blocks sorts by those bits alone and compares neighbours that
have them in common. More blocks mean more passes and fewer chance neighbours, so b grows with the images.

Hashes lie in a file; a pass takes them part by part (by their key), so memory does not grow with the
images. Equal hashes are found first and go on as one, or a thousand copies would be half a million pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import ceil, comb
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]
Ids: TypeAlias = NDArray[np.int64]

NUM_BITS = 64
# Of the hashes handled at a time; with ids, keys and their order some 60 bytes each.
PART_ROWS = 4_000_000
_MAX_PASSES = 500
# Measured on photographs: sorting a hash costs as much as some 30 comparisons, and a key of n bits tells as
# much as one of 0.9 n random ones.
_SORT_COST = 30
_ENTROPY = 0.9
# Multiplying by an odd constant and keeping the high bits spreads keys evenly (Knuth, section 6.4).
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class NearPairs:
    """Images that look alike, `first` < `second`, sorted; each pair once."""

    first: Ids
    second: Ids
    distance: NDArray[np.uint8]
    """Bits that differ."""
    num_found: int
    """All there are; more than are listed where the cap was reached."""


def find_near_pairs(
    hashes: Hashes,
    ids: Ids,
    *,
    max_distance: int,
    scratch: Path,
    max_pairs: int = 1_000_000,
    first_new: int = 0,
    part_rows: int = PART_ROWS,
) -> NearPairs:
    """Return the pairs of images whose hashes differ in at most `max_distance` bits.

    `hashes` uint64 [N] and `ids` int64 [N], ascending, may be files mapped into memory. Of images with
    equal hashes each is paired with the lowest alone, and that one stands for them in other pairs. Pairs
    whose ids are both below `first_new` are left out. Files in the folder `scratch` take 16 bytes an image.
    """
    found = _Collector(first_new=first_new, max_pairs=max_pairs)
    unique_hashes, unique_ids = _merge_equal(hashes, ids, scratch, part_rows, found)
    if max_distance > 0:
        masks = _masks(len(unique_hashes), max_distance)
        for number, mask in enumerate(masks):
            for part_hashes, part_ids in _parts(unique_hashes, unique_ids, mask, part_rows):
                _compare_neighbours(part_hashes, part_ids, masks[: number + 1], max_distance, found)
    return found.result()


class _Collector:
    """Keeps pairs up to a cap, and counts the rest."""

    def __init__(self, *, first_new: int, max_pairs: int) -> None:
        self._first_new, self._max_pairs = first_new, max_pairs
        self._parts: list[tuple[Ids, Ids, NDArray[np.uint8]]] = []
        self._num_kept = self._num_found = 0

    def add(self, one: Ids, other: Ids, distance: NDArray[np.uint8]) -> None:
        first, second = np.minimum(one, other), np.maximum(one, other)
        new = second >= self._first_new
        first, second, distance = first[new], second[new], distance[new]
        self._num_found += len(first)
        room = self._max_pairs - self._num_kept
        if room and len(first):
            self._parts.append((first[:room], second[:room], distance[:room]))
            self._num_kept += min(room, len(first))

    def result(self) -> NearPairs:
        empty = np.empty(0, np.int64)
        parts = self._parts or [(empty, empty, np.empty(0, np.uint8))]
        first, second, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((second, first))
        return NearPairs(
            first=first[order], second=second[order], distance=distance[order], num_found=self._num_found
        )


def _merge_equal(
    hashes: Hashes, ids: Ids, scratch: Path, part_rows: int, found: _Collector
) -> tuple[Hashes, Ids]:
    """Report images with equal hashes, and return the others with one of each, as files."""
    hashes_path, ids_path = scratch / "unique-hashes", scratch / "unique-ids"
    with hashes_path.open("wb") as hashes_file, ids_path.open("wb") as ids_file:
        whole = np.uint64(2**64 - 1)
        for part_hashes, part_ids in _parts(hashes, ids, whole, part_rows):
            order = np.lexsort((part_ids, part_hashes))
            part_hashes, part_ids = part_hashes[order], part_ids[order]
            starts = np.ones(len(part_hashes), bool)
            starts[1:] = part_hashes[1:] != part_hashes[:-1]
            lowest = part_ids[starts][np.cumsum(starts) - 1]
            again = ~starts
            found.add(lowest[again], part_ids[again], np.zeros(int(again.sum()), np.uint8))
            hashes_file.write(part_hashes[starts].data)  # not tofile: its OSError has no errno
            ids_file.write(part_ids[starts].data)
    if hashes_path.stat().st_size == 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return np.memmap(hashes_path, np.uint64, "r"), np.memmap(ids_path, np.int64, "r")


def _masks(num_hashes: int, max_distance: int) -> list[np.uint64]:
    """Return the bits that each pass compares: every choice of b - d of b blocks, b the cheapest."""
    choices = [
        num_blocks
        for num_blocks in range(max_distance + 1, NUM_BITS + 1)
        if comb(num_blocks, max_distance) <= _MAX_PASSES
    ] or [max_distance + 1]
    num_blocks = min(choices, key=lambda blocks: _cost(num_hashes, blocks, max_distance))
    edges = [NUM_BITS * block // num_blocks for block in range(num_blocks + 1)]
    blocks = [2**end - 2**start for start, end in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, num_blocks - max_distance)]


def _cost(num_hashes: int, num_blocks: int, max_distance: int) -> float:
    """Estimate the work of all passes: sorting, and comparing what shares a key by chance."""
    num_passes = comb(num_blocks, max_distance)
    key_bits = NUM_BITS * (num_blocks - max_distance) / num_blocks
    return num_passes * num_hashes * (_SORT_COST + num_hashes / 2 ** (key_bits * _ENTROPY))


def _parts(hashes: Hashes, ids: Ids, mask: np.uint64, part_rows: int) -> Iterator[tuple[Hashes, Ids]]:
    """Yield all hashes in parts of about `part_rows`; those that agree in `mask` are in the same part."""
    num_parts = ceil(len(hashes) / part_rows)
    if num_parts <= 1:
        yield np.asarray(hashes), np.asarray(ids)
        return
    for part in range(num_parts):
        chosen = [
            (block[inside], ids[start : start + part_rows][inside])
            for start in range(0, len(hashes), part_rows)
            for block in [hashes[start : start + part_rows]]
            for inside in [((block & mask) * _SPREAD >> np.uint64(32)) % np.uint64(num_parts) == part]
        ]
        yield np.concatenate([pair[0] for pair in chosen]), np.concatenate([pair[1] for pair in chosen])


def _compare_neighbours(
    hashes: Hashes, ids: Ids, masks: Sequence[np.uint64], max_distance: int, found: _Collector
) -> None:
    """Compare all hashes that agree in the last mask; pairs that an earlier pass has found are left out."""
    keys = hashes & masks[-1]
    order = np.argsort(keys, kind="stable")
    keys, hashes, ids = keys[order], hashes[order], ids[order]
    left = np.arange(len(keys))
    for shift in range(1, len(keys)):
        left = left[: np.searchsorted(left, len(keys) - shift)]
        left = left[keys[left] == keys[left + shift]]
        if not len(left):
            return
        distance = np.bitwise_count(hashes[left] ^ hashes[left + shift])
        near = left[distance <= max_distance]
        differing = hashes[near] ^ hashes[near + shift]
        for mask in masks[:-1]:
            is_new = (differing & mask) != 0
            near, differing = near[is_new], differing[is_new]
        found.add(ids[near], ids[near + shift], np.bitwise_count(differing))
