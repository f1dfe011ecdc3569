"""Hold record batches until something is known about all of them."""

from collections.abc import Iterator
from typing import Any

from data.arrow import RecordBatch, Schema
from data.scratch import write_scratch


class Backlog:
    """Batches that come back as they came, held in memory up to a size, beyond that in scratch files."""

    def __init__(self, schema: Schema, *, memory_bytes: int = 64 * 2**20) -> None:
        self._schema, self._memory_bytes = schema, memory_bytes
        self._held: list[RecordBatch] = []
        self._held_bytes = 0
        self._runs: list[Any] = []

    def add(self, batch: RecordBatch) -> None:
        """Take a batch of the schema. Raises `TemporaryFolderFullError`."""
        self._held.append(batch)
        self._held_bytes += batch.nbytes
        if self._held_bytes > self._memory_bytes:
            self._runs.append(write_scratch(self._schema, self._held))
            self._held, self._held_bytes = [], 0

    def __iter__(self) -> Iterator[RecordBatch]:
        for run in self._runs:
            for number in range(run.num_record_batches):
                yield run.get_batch(number)
        yield from self._held
