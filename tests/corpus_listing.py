"""What a reader of a corpus lists, and the bytes that its rows stand for."""

from typing import Any

from data.listing import LISTING_SCHEMA, CorpusReader
from data.store import ImageSource


def listed(reader: CorpusReader) -> list[dict[str, Any]]:
    """Return the rows, sorted by key."""
    rows: list[dict[str, Any]] = []
    for batch in reader.record_batches():
        assert batch.schema == LISTING_SCHEMA
        assert batch.num_rows <= 65_536
        rows += batch.to_pylist()
    return sorted(rows, key=lambda row: row["key"])


def content_of(store: ImageSource, row: dict[str, Any]) -> bytes:
    if row["offset"] is None:
        return store.get(row["path"])
    return store.get_range(row["path"], row["offset"], row["size_bytes"])
