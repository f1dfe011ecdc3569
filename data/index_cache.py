"""What reading needs of the shards' indexes, kept in memory while it is in use.

Memory: a row is 28 bytes and its name, some 70 together. Beyond `_MAX_IDLE_ROWS` only indexes stay that the
last `_NUM_READS_IN_USE` reads used: the order decides how many shards these are, about
window / (rows of a shard) + 2 * lanes. `_MAX_ROWS` is the bound: beyond it even those are let go, and
fetched again.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.arrow import Column, to_numpy
from data.errors import InputError
from data.shard_index import read_index
from data.store import CorruptShardError, Store, StoreError
from data.types import ShardInfo

Number = TypeVar("Number", np.int64, np.uint32)

_log = logging.getLogger(__name__)

_MAX_IDLE_ROWS = 1_000_000
"""70 MB."""
_MAX_ROWS = 16_000_000
"""1.1 GB, of each rank."""
_NUM_READS_IN_USE = 65_536
"""16 steps of 4,096 rows, or four of the default windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """What reading needs of an index, by row."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crcs: NDArray[np.uint32]
    labels: NDArray[np.int64]
    names: pa.Array


def load_index(store: Store, info: ShardInfo) -> ShardIndex:
    """Fetch and check a shard's index. Raises `CorruptShardError`, and `InputError` for several labels."""
    table = read_index(store, info).combine_chunks()
    if table.num_rows != info.num_samples:
        raise CorruptShardError(
            f"{store.uri}/{info.index_path} has {table.num_rows} rows, "
            f"its snapshot says {info.num_samples}; build the dataset again"
        )
    labels = table.column("labels").combine_chunks()
    has_null = labels.null_count or labels.flatten().null_count
    if has_null or not np.all(to_numpy(labels.value_lengths()) == 1):
        raise InputError(
            f"shard {info.path} has samples with no label or several; training needs exactly one each."
        )
    return ShardIndex(
        offsets=_copy(table.column("offset"), np.int64),
        sizes=_copy(table.column("size"), np.int64),
        crcs=_copy(table.column("crc32c"), np.uint32),
        labels=_copy(labels.flatten(), np.int64),
        names=table.column("name").combine_chunks(),
    )


def _copy(column: Column, dtype: type[Number]) -> NDArray[Number]:
    """Copy a column out of Arrow's memory, which holds all the others beside it."""
    return to_numpy(column).astype(dtype)


class IndexCache:
    """Indexes by shard number, least recently used first to go. For several threads at once."""

    def __init__(self, load: Callable[[int], ShardIndex]) -> None:
        self._load = load
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._last_read: dict[int, int] = {}
        """Number of the read that used an index last, of those kept."""
        self._num_reads = 0
        self._num_rows = 0
        self._loading: dict[int, Future[ShardIndex]] = {}
        """Indexes on their way."""
        self._has_warned = False
        self._lock = threading.Lock()

    def known(self, shard: int) -> ShardIndex | None:
        """Return an index if it is kept; this is no use of it."""
        with self._lock:
            return self._indexes.get(shard)

    def get(self, shard: int) -> ShardIndex:
        """Return an index for one read. Of threads that ask at once for a new one, one loads it."""
        with self._lock:
            self._num_reads += 1
            known = self._indexes.get(shard)
            if known is not None:
                self._indexes.move_to_end(shard)
                self._last_read[shard] = self._num_reads
                return known
            under_way = self._loading.get(shard)
            loading = under_way or self._loading.setdefault(shard, Future())
        if under_way is not None:
            return _result_of(under_way)
        try:
            loaded = self._load(shard)
        except BaseException as error:
            with self._lock:
                del self._loading[shard]
            loading.set_exception(error)
            raise
        with self._lock:
            del self._loading[shard]
            self._keep(shard, loaded)
        loading.set_result(loaded)
        return loaded

    def _keep(self, shard: int, loaded: ShardIndex) -> None:
        """Keep an index, under the lock, and let go of others that there is no room for."""
        self._indexes[shard] = loaded
        self._last_read[shard] = self._num_reads
        self._num_rows += len(loaded.offsets)
        while self._num_rows > _MAX_IDLE_ROWS and len(self._indexes) > 1:
            oldest = next(iter(self._indexes))
            if self._num_reads - self._last_read[oldest] < _NUM_READS_IN_USE:
                if self._num_rows <= _MAX_ROWS:
                    return
                self._warn_once()
            self._num_rows -= len(self._indexes.pop(oldest).offsets)
            del self._last_read[oldest]

    def _warn_once(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the shards in use have more than %d rows together: their indexes are fetched again and "
                "again; lower num_lanes or shuffle_window, use more workers, or make smaller shards",
                _MAX_ROWS,
            )


def _result_of(under_way: Future[ShardIndex]) -> ShardIndex:
    try:
        return under_way.result()
    except (StoreError, InputError) as error:
        raise type(error)(str(error)) from None  # A new one: several threads must not share a traceback.
