"""Sort more rows than fit in memory, by a hash: in memory while they are few, else by parts on disk."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.arrow import RecordBatch, Schema, Table, compute
from data.scratch import write_scratch

_MEMORY_BYTES = 64 * 2**20
_NUM_PARTS = 512


class Spool:
    """Rows that come back in the order of `order_by`, of which the first column is a uint64 hash.

    Past `memory_bytes` the rows go to scratch files, each cut into `num_parts` ranges of the hash; coming
    back, one range of all files is sorted at a time. So memory is bounded by `memory_bytes` and by the
    rows of a range.
    """

    def __init__(
        self,
        schema: Schema,
        order_by: Sequence[str],
        *,
        memory_bytes: int = _MEMORY_BYTES,
        num_parts: int = _NUM_PARTS,
    ) -> None:
        """`num_parts` is a power of two."""
        self._schema, self._order_by = schema, tuple(order_by)
        self._memory_bytes, self._num_parts = memory_bytes, num_parts
        self._waiting: list[RecordBatch] = []
        self._waiting_bytes = 0
        self._runs: list[Any] = []
        self.num_rows = 0

    def add(self, batch: RecordBatch) -> None:
        """Take a batch of the schema. Raises `TemporaryFolderFullError`."""
        if not batch.num_rows:
            return
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes
        self.num_rows += batch.num_rows
        if self._waiting_bytes > self._memory_bytes:
            self._flush()

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Table]:
        """Yield all rows, sorted, in tables of ascending hash ranges; only some columns if they are named.

        It can be called again, and `add` too, before the next call.
        """
        if not self._runs:
            yield from self._sorted(pa.Table.from_batches(self._waiting, schema=self._schema), columns)
            return
        if self._waiting:
            self._flush()
        for part in range(self._num_parts):
            batches = [run.get_batch(part) for run in self._runs]
            yield from self._sorted(pa.Table.from_batches(batches, schema=self._schema), columns)

    def _sorted(self, table: Table, columns: Sequence[str] | None) -> Iterator[Table]:
        if not table.num_rows:
            return
        hashes = _hashes(table, self._order_by[0])
        order = np.argsort(hashes, kind="stable")
        in_order = hashes[order]
        if len(self._order_by) > 1 and (in_order[1:] == in_order[:-1]).any():
            order = compute.sort_indices(table, [(name, "ascending") for name in self._order_by])
        wanted = table.select(list(columns)) if columns is not None else table
        yield wanted.combine_chunks().take(order)

    def _flush(self) -> None:
        """Write what waits as one more file: a batch for each range of the hash, also an empty one."""
        table = pa.Table.from_batches(self._waiting, schema=self._schema).combine_chunks()
        shift = np.uint64(64 - (self._num_parts - 1).bit_length())
        parts = (_hashes(table, self._order_by[0]) >> shift).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        bounds = np.searchsorted(parts[order], np.arange(self._num_parts + 1))
        (batch,) = table.take(order).combine_chunks().to_batches()
        ranges = zip(bounds[:-1].tolist(), np.diff(bounds).tolist(), strict=True)
        self._runs.append(write_scratch(self._schema, (batch.slice(start, size) for start, size in ranges)))
        self._waiting, self._waiting_bytes = [], 0


def _hashes(table: Table, column: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return table.column(column).combine_chunks().to_numpy(zero_copy_only=False)
