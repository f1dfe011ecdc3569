"""Hold record batches until something is known about all of them."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from data.arrow import RecordBatch, Schema


class Backlog:
    """Batches that come back as they came, held in memory up to a size and beyond that on disk.

    The file, in the temporary folder (TMPDIR), is unlinked while it is open: whatever ends the process,
    it leaves nothing behind.
    """

    def __init__(self, schema: Schema, *, memory_bytes: int = 64 * 2**20) -> None:
        self._schema, self._room_bytes = schema, memory_bytes
        self._held: list[RecordBatch] = []
        self._sink: Any = None
        self._source: Any = None
        self._writer: Any = None

    def add(self, batch: RecordBatch) -> None:
        """Take a batch of the schema. Raises `OSError` where the temporary folder is full."""
        self._room_bytes -= batch.nbytes
        if self._room_bytes >= 0:
            self._held.append(batch)
            return
        if self._writer is None:
            descriptor, path = tempfile.mkstemp(prefix="coatnet-backlog-")
            os.close(descriptor)
            self._sink, self._source = pa.OSFile(path, "wb"), pa.OSFile(path, "rb")
            os.unlink(path)
            self._writer = pa.ipc.new_stream(self._sink, self._schema)
        self._writer.write_batch(batch)

    def drain(self) -> Iterator[RecordBatch]:
        """Yield all batches, once; nothing may be added after it."""
        yield from self._held
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            yield from pa.ipc.open_stream(self._source)
