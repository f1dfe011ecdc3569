"""Fetch a shard's records in order, in threads where the store is slow."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeAlias, TypeVar

from data.types import Record

Content = TypeVar("Content")
_Group: TypeAlias = Sequence[Record]
_Fetch: TypeAlias = Callable[[_Group], Sequence[Content]]

# Small objects cost a round trip each, and handing one to a thread costs as much as decoding it: several are
# fetched by one call.
_GROUP_BYTES = 2**20
_GROUP_RECORDS = 16
_NUM_THREADS = 8
# For files in memory threads cost more time than they save: they begin where fetching takes this share of it.
_SLOW_SHARE = 0.25


def fetch_in_order(
    records: Iterable[Record], fetch: Callable[[Record], Content]
) -> Iterator[tuple[Record, Content]]:
    """Yield each record with what `fetch` returns; it is called in threads, ahead, once it proves slow.

    Slow is a quarter of the time or more, the caller's work between two records included.
    """

    def fetch_group(group: _Group) -> Sequence[Content]:
        return [fetch(record) for record in group]

    groups = _groups(records)
    for group, contents in chain(_fetch_here(groups, fetch_group), _fetch_ahead(groups, fetch_group)):
        yield from zip(group, contents, strict=True)


def _fetch_here(
    groups: Iterator[_Group], fetch: _Fetch[Content]
) -> Iterator[tuple[_Group, Sequence[Content]]]:
    """Fetch in this thread for as long as that is quick."""
    started_s, fetching_s = time.monotonic(), 0.0
    for group in groups:
        asked_s = time.monotonic()
        contents = fetch(group)
        fetching_s += time.monotonic() - asked_s
        yield group, contents
        if fetching_s >= _SLOW_SHARE * (time.monotonic() - started_s):
            return


def _fetch_ahead(
    groups: Iterator[_Group], fetch: _Fetch[Content]
) -> Iterator[tuple[_Group, Sequence[Content]]]:
    """Fetch the rest in threads. At most two groups a thread wait in memory."""
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        waiting: deque[tuple[_Group, Future[Sequence[Content]]]] = deque()
        try:
            while True:
                for group in islice(groups, _NUM_THREADS + 1 - len(waiting)):
                    waiting.append((group, pool.submit(fetch, group)))
                if not waiting:
                    return
                group, future = waiting.popleft()
                yield group, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _groups(records: Iterable[Record]) -> Iterator[_Group]:
    """Cut records into groups of at most `_GROUP_BYTES`, a larger one alone."""
    group: list[Record] = []
    for record in records:
        size_bytes = sum(other.size_bytes for other in group) + record.size_bytes
        if group and (size_bytes > _GROUP_BYTES or len(group) == _GROUP_RECORDS):
            yield group
            group = []
        group.append(record)
    if group:
        yield group
