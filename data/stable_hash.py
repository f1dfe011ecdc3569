"""Keyed hashes of whole columns: equal on every machine and run, whatever stands beside a row.

They decide splits, orders and samples, and recognise records seen before. Not cryptographic: good
against chance, not against somebody who makes up file names so that two collide, who would gain no
more than that one of his own images is left out.

The hash of a row is a chain h = mix64((h ^ word) + gamma) over its 8-byte words, started from the key
and the length; `mix64` is SplitMix64's finaliser (see `data.randomness`).
Shape letters: N rows.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.arrow import Column
from data.randomness import hash_key, mix64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ALL_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_WORD_BYTES = 8

Hashes: TypeAlias = NDArray[np.uint64]


def stable_hash(strings: Column, *, seed: int, purpose: str) -> Hashes:
    """Return 64 bits for each string of an Arrow column: uint64 [N].

    `purpose` (at most 8 ASCII characters) keeps decisions independent: without it the images
    with the lowest hashes would be the eval split and the first shard at once.
    """
    code = purpose.encode("ascii")
    if len(code) > _WORD_BYTES:
        raise ValueError(f"purpose {purpose!r} is longer than {_WORD_BYTES} characters")
    return _hash_strings(_whole(strings), hash_key(seed, int.from_bytes(code, "little")))


def digest_rows(columns: Iterable[Column]) -> tuple[Hashes, Hashes]:
    """Return 128 bits for each row of Arrow columns (strings, integers, lists of strings): two uint64 [N].

    Null counts as the empty string or as -1. By chance, two of 10**9 rows share them once in 10**20 cases.
    """
    whole = [_whole(column) for column in columns]
    high, low = (_digest(whole, hash_key(lane)) for lane in (1, 2))
    return high, low


def _digest(columns: list[Column], key: int) -> Hashes:
    state = np.full(len(columns[0]), key, dtype=np.uint64)
    for place, column in enumerate(columns):
        if pa.types.is_list(column.type):
            words = _hash_lists(column, hash_key(key, place))
        elif pa.types.is_integer(column.type):
            words = column.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False).view(np.uint64)
        else:
            words = _hash_strings(column, hash_key(key, place))
        state = _absorb(state, words)
    return state


def _whole(column: Column) -> Column:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _hash_strings(strings: Column, key: int) -> Hashes:
    starts_N, lengths_N, content = _layout(strings)
    # A view of 8 bytes at every byte: one gather takes a word of each row.
    padded = np.concatenate([content, np.zeros(_WORD_BYTES, dtype=np.uint8)])
    words_at = np.ndarray(len(padded) - 7, dtype="<u8", buffer=padded, strides=(1,))

    def word(rows: NDArray[np.int64], number: int) -> Hashes:
        taken = words_at[starts_N[rows] + _WORD_BYTES * number].astype(np.uint64)
        missing = np.clip(_WORD_BYTES * (number + 1) - lengths_N[rows], 0, 7)
        return taken & (_ALL_ONES >> (np.uint64(8) * missing.astype(np.uint64)))

    return _chain(key, lengths_N, -(-lengths_N // _WORD_BYTES), word)


def _hash_lists(lists: Column, key: int) -> Hashes:
    items = _hash_strings(lists.flatten(), key)
    lengths_N = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    starts_N = np.cumsum(lengths_N) - lengths_N
    return _chain(key, lengths_N, lengths_N, lambda rows, number: items[starts_N[rows] + number])


def _chain(
    key: int,
    lengths_N: NDArray[np.int64],
    num_words_N: NDArray[np.int64],
    word: Callable[[NDArray[np.int64], int], Hashes],
) -> Hashes:
    """Absorb each row's words; `word(rows, number)` returns one word of each of the rows."""
    state = _absorb(np.full(len(lengths_N), key, dtype=np.uint64), lengths_N.astype(np.uint64))
    # The longest first, so that the rows which have a word of this number come before the others.
    rows = np.argsort(-num_words_N, kind="stable")
    negated = -num_words_N[rows]
    for number in range(int(num_words_N.max(initial=0))):
        some = rows[: np.searchsorted(negated, -number, side="left")]
        state[some] = _absorb(state[some], word(some, number))
    return state


def _absorb(state: Hashes, words: Hashes) -> Hashes:
    return mix64((state ^ words) + _GAMMA)


def _layout(strings: Column) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Return each row's start and length in bytes, and the bytes."""
    if not len(strings):
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, np.zeros(0, dtype=np.uint8)
    _, offsets, content = strings.buffers()
    width = np.int64 if pa.types.is_large_string(strings.type) else np.int32
    bounds = np.frombuffer(offsets, dtype=width)[strings.offset : strings.offset + len(strings) + 1]
    bounds = bounds.astype(np.int64)
    first = int(bounds[0])
    taken = np.frombuffer(content, dtype=np.uint8)[first : int(bounds[-1])] if content else None
    lengths_N = np.diff(bounds)
    if strings.null_count:  # what a null row's bytes are is left open by the format
        lengths_N = np.where(strings.is_null().to_numpy(zero_copy_only=False), 0, lengths_N)
    return bounds[:-1] - first, lengths_N, taken if taken is not None else np.zeros(0, dtype=np.uint8)
