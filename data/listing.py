"""A corpus listing as columns: what a reader of some corpus format yields, batch by batch.

Ten million images fit in some columns, not in as many Python objects.
"""

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

# pyarrow ships no types: this name says what is meant, checkers see Any.
RecordBatch: TypeAlias = Any

LISTING_SCHEMA: Any = pa.schema(
    [
        ("key", pa.string()),  # unique name in the dataset, extension included; decides split and order
        ("path", pa.string()),  # the object in the corpus store
        ("offset", pa.int64()),  # of the image's bytes in that object; null: the object is the image
        ("size_bytes", pa.int64()),  # of the image
        ("etag", pa.string()),  # of the object
        ("labels", pa.list_(pa.string())),  # class names
        ("split", pa.string()),  # "train" or "eval" where the corpus says so, else null
    ]
)


class CorpusReader(Protocol):
    """Lists a corpus of one format; reads no image."""

    def record_batches(self) -> Iterator[RecordBatch]:
        """Yield batches of `LISTING_SCHEMA`, in any order, each of at most about 65,536 rows.

        Raises `InputError` for what the format does not allow.
        """
        ...
