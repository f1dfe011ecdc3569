"""Shards that the order will need soon, opened ahead of their use by a few threads."""

import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from data.store import StoreError

_log = logging.getLogger(__name__)

_NUM_THREADS = 2
"""Each may hold one shard on its way into the cache; the decoding threads fetch what is still missing."""


class ShardOpener(Protocol):
    """`data.tar_reader.ShardReader` is one."""

    def open(self, shard: int) -> None:
        """Fetch what reading a shard takes: its index, and the tar where the cache has room."""
        ...

    def is_open(self, shard: int) -> bool:
        """Say whether `open` would have nothing to fetch."""
        ...


class ShardPrefetch:
    """Opens shards in the background: the index, and the tar where there is a cache with room."""

    def __init__(self, reader: ShardOpener) -> None:
        self._reader = reader
        self._executor = ThreadPoolExecutor(_NUM_THREADS, "prefetch")
        self._under_way: dict[int, Future[None]] = {}

    def want(self, shards: Iterable[int]) -> None:
        """Ask for shards, most urgent first; returns at once. For one thread."""
        self._under_way = {shard: done for shard, done in self._under_way.items() if not done.done()}
        for shard in shards:
            if shard not in self._under_way and not self._reader.is_open(shard):
                self._under_way[shard] = self._executor.submit(self._open, shard)

    def close(self) -> None:
        """Wait for what is on its way; forget the rest."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _open(self, shard: int) -> None:
        try:
            self._reader.open(shard)
        except StoreError as error:  # The thread that needs the shard asks again, and reports it.
            _log.warning("a shard could not be fetched ahead of its use: %s", error)
