"""Decide which images go into which shard, from the listing alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.arrow import RecordBatch, Table
from data.corpus_listing import CorpusListing
from data.listing import LISTING_SCHEMA, records_of
from data.split import SPLITS
from data.types import Record

# Three tar headers, the label and JSON members, and the padding of the image, on average.
MEMBER_OVERHEAD_BYTES = 3 * 512 + 2 * 512 + 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One shard to be written: everything `write_shard` must know but the stores."""

    split: str
    rows: RecordBatch
    """A batch of `LISTING_SCHEMA`, in the shard's order."""
    classes: tuple[str, ...]
    """A label's index is its place here."""

    @property
    def records(self) -> tuple[Record, ...]:
        """The rows as objects."""
        return records_of(self.rows)


class ShardPlans:
    """The plans for a listing, train first, each of about `shard_size_bytes` or a little less.

    The order is that of a hash of key and seed, so neither the listing's order nor a second run
    matters, and classes are mixed. A split's last shard is as large as the others: all aim at the same
    share of the split's bytes. Plans are made as they are asked for; a second iteration gives them again.
    """

    def __init__(self, listing: CorpusListing, *, classes: Iterable[str], shard_size_bytes: int) -> None:
        self._listing, self._classes = listing, tuple(classes)
        self._shard_size_bytes = shard_size_bytes
        totals = [listing.totals[split] for split in SPLITS]
        self.num_images = sum(total.num_images for total in totals)
        self.size_bytes = sum(total.size_bytes for total in totals)

    def __iter__(self) -> Iterator[ShardPlan]:
        for split in SPLITS:
            total = self._listing.totals[split]
            total_bytes = total.size_bytes + MEMBER_OVERHEAD_BYTES * total.num_images
            num_shards = -(-total_bytes // self._shard_size_bytes)
            for rows in _cut(self._listing.sorted_rows(split), total_bytes, num_shards):
                yield ShardPlan(split=split, rows=rows, classes=self._classes)


def _cut(parts: Iterable[Table], total_bytes: int, num_shards: int) -> Iterator[RecordBatch]:
    """Cut at equal shares of the total; no shard is empty."""
    before, share = 0, -1
    pieces: list[Table] = []
    for part in parts:
        sizes = part.column("size_bytes").to_numpy() + MEMBER_OVERHEAD_BYTES
        ends = np.cumsum(sizes)
        # Python's integers: bytes times shards passes 64 bits at some hundred terabytes.
        shares = [(before + start) * num_shards // total_bytes for start in (ends - sizes).tolist()]
        bounds = [row for row in range(len(shares)) if shares[row] != (shares[row - 1] if row else share)]
        first = 0
        for bound in bounds:
            pieces.append(part.slice(first, bound - first))
            yield from _joined(pieces)
            pieces, first = [], bound
        pieces.append(part.slice(first))
        before, share = before + int(ends[-1]), shares[-1]
    yield from _joined(pieces)


def _joined(pieces: list[Table]) -> Iterator[RecordBatch]:
    table = pa.concat_tables(pieces) if pieces else None
    if table is not None and table.num_rows:
        # A slice would be sent to its worker with all of the part's buffers; `take` copies its own rows.
        rows = table.select(LISTING_SCHEMA.names).combine_chunks().take(np.arange(table.num_rows))
        yield from rows.combine_chunks().to_batches()
