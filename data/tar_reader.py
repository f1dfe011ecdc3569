"""Samples of tar shards by (shard, row): the Parquet index says where the bytes are.

Every image's crc32c is checked on every read. Memory is that of the indexes: see `data.index_cache`.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import google_crc32c

from data.errors import InputError
from data.index_cache import IndexCache, ShardIndex, load_index
from data.shard_cache import CachedShard, ShardCache
from data.store import CorruptShardError, ObjectNotFoundError, ObjectTooShortError, Store
from data.types import ShardInfo

__all__ = ["CorruptShardError", "MissingShards", "ShardCache", "ShardReader", "StoredImage"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MAX_OPEN_SHARDS = 128
_MAX_READS = 5

MissingShards = Literal["error", "skip"]
"""What a shard does that is gone or damaged in the store: stop, or count its samples as bad ones."""


class StoredImage(NamedTuple):
    """One sample as it stands in a shard."""

    image_bytes: bytes
    label: int
    name: str
    """The record's key."""
    problem: str = ""
    """Why there are no bytes; "" where there are."""
    is_cached: bool = False
    """It came from the node's cache."""
    is_fetched_again: bool = False
    """Its checksum was wrong at the first reading."""


class ShardReader:
    """Reads samples of one split's shards. For several threads at once.

    Without a cache, or where it has no room, each image is one ranged read of the store. A tar or an
    index that is gone, or damaged as a whole, stays so for this reader: it is not asked for again.
    """

    def __init__(
        self,
        store: Store,
        shards: Sequence[ShardInfo],
        cache: ShardCache | None,
        *,
        missing_shards: MissingShards = "error",
    ) -> None:
        if missing_shards not in ("error", "skip"):
            raise InputError(f"missing_shards is {missing_shards!r}: give 'error' or 'skip'")
        self._missing_shards = missing_shards
        self._reported: set[int] = set()
        self._lost: dict[str, ObjectNotFoundError | CorruptShardError] = {}
        """By path of the tar or the index."""
        self._store = store
        self._shards = shards
        self._cache = cache
        self._indexes = IndexCache(self._load_index)
        self._open: OrderedDict[int, CachedShard | None] = OrderedDict()
        self._used: set[int] = set()
        """Shards asked for in this epoch."""
        self._evicted: set[int] = set()
        """Those of them that the cache has let go of since."""
        self._lock = threading.Lock()

    def read(self, shard: int, row: int) -> StoredImage:
        """Return the sample in row `row` of shard number `shard`.

        Raises `StoreError` where the store fails. Where a shard is gone or its bytes are wrong, raises
        `ObjectNotFoundError` or `CorruptShardError`, or returns a sample with a `problem`.
        """
        try:
            return self._read(shard, row)
        except (ObjectNotFoundError, CorruptShardError) as error:
            if self._missing_shards == "error":
                raise
            return self._lost_image(shard, row, error)

    def _lost_image(self, shard: int, row: int, error: Exception) -> StoredImage:
        """Stand in for a sample that is gone: its key and label are known if its index is there."""
        index = self._indexes.known(shard)
        with self._lock:
            is_news = shard not in self._reported
            self._reported.add(shard)
        if is_news:
            _log.warning("its samples are left out: %s", error)
        if index is None:
            return StoredImage(b"", 0, f"{self._shards[shard].path}#{row}", str(error))
        return StoredImage(b"", int(index.labels[row]), index.names[row].as_py(), str(error))

    def _read(self, shard: int, row: int) -> StoredImage:
        index = self._indexes.get(shard)
        offset, size_bytes = int(index.offsets[row]), int(index.sizes[row])
        crc = int(index.crcs[row])
        file = self._cached(shard)
        is_cached = is_fetched_again = False
        image_bytes = b""
        if file is not None:
            image_bytes = file.read(offset, size_bytes)
            is_cached = google_crc32c.value(image_bytes) == crc
        if not is_cached:
            image_bytes, is_fetched_again = self._read_from_store(shard, row, offset, size_bytes, crc)
        if file is not None and not is_cached and not file.is_evicted:
            self._drop(shard)  # Only now: where the store's bytes are wrong too, the copy is true to them.
            is_fetched_again = True
        name = index.names[row].as_py()
        return StoredImage(
            image_bytes,
            int(index.labels[row]),
            name,
            is_cached=is_cached,
            is_fetched_again=is_fetched_again,
        )

    def open(self, shard: int) -> None:
        """Fetch what reading a shard takes: its index, and the tar where the cache has room."""
        self._indexes.get(shard)
        self._cached(shard)

    def is_open(self, shard: int) -> bool:
        """Say whether `open` would have nothing to fetch."""
        info = self._shards[shard]
        with self._lock:
            if info.index_path in self._lost:
                return True
            has_tar = self._cache is None or self._has_tar(shard) or info.path in self._lost
        return has_tar and self._indexes.known(shard) is not None

    def is_streamed(self, shard: int) -> bool:
        """Say whether a shard's images are known to come from the store, one by one."""
        if self._cache is None or not self._cache.has_room_for(self._shards[shard]):
            return True
        with self._lock:
            return shard in self._open and self._open[shard] is None

    def start_epoch(self) -> None:
        """Say that an epoch begins: a shard that is evicted and needed again before the next one is told."""
        with self._lock:
            self._close_evicted()
            self._used.clear()
            self._evicted.clear()

    def _fetch_whole(self, path: str, fetch: Callable[[], T]) -> T:
        """Fetch an object as a whole; where it is gone or damaged, fail at once from then on."""
        with self._lock:
            known = self._lost.get(path)
        if known is not None:
            raise type(known)(str(known))  # A new one: several threads must not share a traceback.
        try:
            return fetch()
        except (ObjectNotFoundError, CorruptShardError) as error:
            with self._lock:
                self._lost[path] = error
            raise

    def _read_from_store(
        self, shard: int, row: int, offset: int, size_bytes: int, crc: int
    ) -> tuple[bytes, bool]:
        """Return an image, and whether it took a second reading: bytes may be damaged on their way once."""
        path = self._shards[shard].path
        found, before = 0, -1
        for attempt in range(_MAX_READS):
            try:
                image_bytes = self._store.get_range(path, offset, size_bytes)
            except ObjectTooShortError as error:
                raise CorruptShardError(f"{error}; restore the shard or build the dataset again") from error
            found = google_crc32c.value(image_bytes)
            if found == crc:
                return image_bytes, attempt > 0
            if found == before:  # The same wrong bytes twice were not damaged on their way.
                break
            before = found
        raise CorruptShardError(
            f"{self._store.uri}/{path} is damaged: row {row} ({size_bytes} bytes at {offset}) has crc32c "
            f"{found:08x}, its index says {crc:08x}; restore the shard or build the dataset again"
        )

    def _drop(self, shard: int) -> None:
        """Forget a damaged file of the cache; the next read fetches the shard again."""
        _log.warning("the cached copy of shard %s is damaged; fetching it again", self._shards[shard].path)
        with self._lock:
            self._open.pop(shard, None)
        if self._cache is not None:
            self._cache.discard(self._shards[shard])

    def _cached(self, shard: int) -> CachedShard | None:
        cache, info = self._cache, self._shards[shard]
        if cache is None:
            return None
        with self._lock:
            if self._has_tar(shard):
                self._used.add(shard)
                self._open.move_to_end(shard)
                return self._open[shard]
            self._close_evicted()  # Before `shard` counts as used: it may have gone before its first use.
            is_back = shard in self._evicted
            self._used.add(shard)
        # Not under the lock: other threads go on reading while this one fetches.
        file = self._fetch_whole(info.path, lambda: cache.open(self._store, info))
        with self._lock:
            self._open[shard] = file
            self._close_evicted()
            while len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        if is_back:
            cache.warn_of_thrashing(info)
        return file

    def _has_tar(self, shard: int) -> bool:
        """Say, under the lock, whether a shard is open, or known to be streamed; not if it is evicted."""
        opened = self._open.get(shard)
        return shard in self._open if opened is None else not opened.is_evicted

    def _close_evicted(self) -> None:
        """Close, under the lock, what the cache let go of, and note what of that this epoch has used."""
        for shard, opened in list(self._open.items()):
            if opened is not None and opened.is_evicted:
                del self._open[shard]
                if shard in self._used:
                    self._evicted.add(shard)

    def _load_index(self, shard: int) -> ShardIndex:
        info = self._shards[shard]
        return self._fetch_whole(info.index_path, lambda: load_index(self._store, info))
