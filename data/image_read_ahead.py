"""Images that no cache holds, read from the store ahead of their use by many threads.

The order draws within a window, so that the images of a batch lie apart in their shards: one long read
for several of them would fetch many times what is used. A store's latency is hidden by single reads at
the same time instead.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from data.tar_reader import StoredImage

Place = tuple[int, int]
"""Shard and row."""

_NUM_THREADS = 32
"""At 30 ms a read, as object stores have, about 1,000 images/s."""
_MAX_HELD_BYTES = 256 * 2**20
"""Of images read and not used yet, for each rank; what is under way comes on top."""


class ImageReadAhead:
    """Reads images that will be asked for soon, in the order of their use. For several threads at once."""

    def __init__(
        self, read: Callable[[int, int], StoredImage], *, max_held_bytes: int = _MAX_HELD_BYTES
    ) -> None:
        self._read_now = read
        self._max_held_bytes = max_held_bytes
        self._executor = ThreadPoolExecutor(_NUM_THREADS, "read-ahead")
        self._lock = threading.Lock()
        self._wanted: OrderedDict[Place, None] = OrderedDict()
        """Not begun yet."""
        self._begun: dict[Place, Future[StoredImage]] = {}
        self._num_under_way = 0
        self._held_bytes = 0
        self._is_closed = False

    def want(self, places: Iterable[Place]) -> None:
        """Ask for images, most urgent first. Returns at once."""
        with self._lock:
            self._wanted.update(dict.fromkeys(places))
        self._begin_some()

    def read(self, shard: int, row: int) -> StoredImage:
        """Return an image, waiting for it if it is under way. Raises what its reading raised."""
        place = (shard, row)
        with self._lock:
            begun = self._begun.pop(place, None)
            if begun is None:
                self._wanted.pop(place, None)
        if begun is None:
            return self._read_now(shard, row)
        stored = begun.result()
        with self._lock:
            self._held_bytes -= len(stored.image_bytes)
        self._begin_some()
        return stored

    def close(self) -> None:
        """Wait for what is under way; forget the rest."""
        with self._lock:
            self._is_closed = True
            self._wanted.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _begin_some(self) -> None:
        with self._lock:
            while (
                self._wanted
                and not self._is_closed
                and self._num_under_way < _NUM_THREADS
                and self._held_bytes < self._max_held_bytes
            ):
                # A mixture may use an image twice; the second use reads it itself.
                place, _ = self._wanted.popitem(last=False)
                if place not in self._begun:
                    self._num_under_way += 1
                    self._begun[place] = self._executor.submit(self._read, place)

    def _read(self, place: Place) -> StoredImage:
        num_bytes = 0
        try:
            stored = self._read_now(*place)
            num_bytes = len(stored.image_bytes)
            return stored
        finally:
            with self._lock:
                self._num_under_way -= 1
                self._held_bytes += num_bytes
            self._begin_some()
