"""A corpus listing as columns: what a reader of some corpus format yields, batch by batch.

Ten million images fit in some columns, not in as many Python objects.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from data.arrow import RecordBatch, Schema
from data.types import Record

LISTING_SCHEMA: Schema = pa.schema(
    [
        ("key", pa.string()),  # unique name in the dataset, extension included; decides split and order
        ("path", pa.string()),  # the object in the corpus store
        # Of the image's bytes in that object, of Parquet's in the copies; null: the object is the image.
        ("offset", pa.int64()),
        ("size_bytes", pa.int64()),  # of the image
        ("etag", pa.string()),  # of the object
        ("labels", pa.list_(pa.string())),  # class names
        ("split", pa.string()),  # "train" or "eval" where the corpus says so, else null
    ]
)

BATCH_ROWS = 65_536


@runtime_checkable
class CorpusReader(Protocol):
    """Lists a corpus of one format; reads no image."""

    @property
    def uri(self) -> str:
        """Where the corpus is, for messages."""
        ...

    def record_batches(self) -> Iterator[RecordBatch]:
        """Yield batches of `LISTING_SCHEMA`, in any order, each of at most about 65,536 rows.

        Raises `InputError` for what the format does not allow.
        """
        ...


def batch_of(records: Iterable[Record]) -> RecordBatch:
    """Return records as a batch of `LISTING_SCHEMA`."""
    return pa.RecordBatch.from_pylist([asdict(record) for record in records], schema=LISTING_SCHEMA)


def records_of(batch: RecordBatch) -> tuple[Record, ...]:
    """Return the rows of a batch of `LISTING_SCHEMA`."""
    rows: list[dict[str, Any]] = batch.to_pylist()
    for row in rows:
        row["labels"] = tuple(row["labels"])
    return tuple(Record(**row) for row in rows)
