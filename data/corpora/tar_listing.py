"""Images in a tar as rows of a listing."""

from typing import Any

import pyarrow as pa

from data.arrow import Table
from data.corpora.tar_scan import TarSpan
from data.listing import LISTING_SCHEMA

MAX_BATCH_ROWS = 65_536


def listing_of_tar(
    span: TarSpan, *, keys: Any, offsets: Any, sizes_bytes: Any, labels: Any, split: str | None
) -> Table:
    """Return the columns of `LISTING_SCHEMA` for images that are ranges of one object."""
    num_rows = len(keys)
    columns = [
        keys, pa.repeat(span.path, num_rows), offsets, sizes_bytes, pa.repeat(span.etag, num_rows), labels,
        pa.repeat(split, num_rows) if split else pa.nulls(num_rows, pa.string()),
    ]  # fmt: skip
    return pa.table(dict(zip(LISTING_SCHEMA.names, columns, strict=True)), schema=LISTING_SCHEMA)
