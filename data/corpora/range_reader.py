"""Read an object of a store by ranges: in big pieces front to back, or as a file."""

import io
from typing import Any

from data.store import ObjectInfo, RangeSource, Store

_PIECE_BYTES = 4 << 20
# What a request costs, in bytes that would be read meanwhile: about 10 ms at 100 MB/s. Over a longer
# gap a request of its own, for little, is cheaper than reading through.
_LONG_GAP_BYTES = 1 << 20
_SHORT_PIECE_BYTES = 64 << 10


class RangeReader:
    """Reads parts of an object, mostly forward; holds one piece of it (4 MiB, or one longer part)."""

    def __init__(self, store: RangeSource, path: str, size_bytes: int) -> None:
        """`size_bytes` is the object's size, as its listing says."""
        self._store, self._path, self._object_size_bytes = store, path, size_bytes
        self._piece, self._piece_start = b"", 0
        self._last_end = 0

    def read(self, start: int, size_bytes: int) -> bytes:
        """Return `size_bytes` bytes from `start`, fewer at the object's end. Raises `StoreError`."""
        size_bytes = max(min(size_bytes, self._object_size_bytes - start), 0)
        if not size_bytes:
            return b""
        begin = start - self._piece_start
        if begin < 0 or begin + size_bytes > len(self._piece):
            self._fetch(start, size_bytes)
            begin = 0
        self._last_end = start + size_bytes
        return self._piece[begin : begin + size_bytes]

    def _fetch(self, start: int, size_bytes: int) -> None:
        is_long_gap = start - self._last_end > _LONG_GAP_BYTES
        piece_bytes = max(_SHORT_PIECE_BYTES if is_long_gap else _PIECE_BYTES, size_bytes)
        piece_bytes = min(piece_bytes, self._object_size_bytes - start)
        self._piece = self._store.get_range(self._path, start, piece_bytes)
        self._piece_start = start


class _RangeFile(io.RawIOBase):
    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info = store, info
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        size_bytes = max(min(len(buffer), self._info.size_bytes - self._position), 0)
        if size_bytes:
            buffer[:size_bytes] = self._store.get_range(self._info.path, self._position, size_bytes)
        self._position += size_bytes
        return size_bytes


def open_file(store: Store, info: ObjectInfo) -> io.BufferedReader:
    """Return an object as a seekable binary file, read by ranges of at least 1 MiB."""
    return io.BufferedReader(_RangeFile(store, info), buffer_size=1 << 20)
