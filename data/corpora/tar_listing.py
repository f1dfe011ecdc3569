"""Tars as listings of the images in them, each kept so that its tar is read once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa

from data.arrow import RecordBatch
from data.corpora.file_listings import FileListings, batches_of, encode_listing, identity_of
from data.corpora.tar_scan import TarSpan
from data.corpora.tasks import MapTasks
from data.listing import LISTING_SCHEMA

# Raise it when the rows listed for the same tar change.
_LISTING_VERSION = 2

ScanTar: TypeAlias = Callable[[TarSpan], Iterator[RecordBatch]]


def list_tars(
    spans: Sequence[TarSpan],
    scan: ScanTar,
    *,
    decided_by: Sequence[object],
    listings: FileListings,
    run: MapTasks,
) -> Iterator[RecordBatch]:
    """Yield the rows that `scan` (picklable) yields for tars, in any order; known tars are not read.

    `decided_by` says, as JSON values, whatever decides the rows beside the tar itself.
    """
    decisive = (_LISTING_VERSION, *decided_by)

    def list_new(new: Mapping[str, TarSpan]) -> Iterator[RecordBatch]:
        task = partial(_list_tar, scan=scan, listings=listings)
        for content in run(task, list(new.items()), size_bytes=sum(s.size_bytes for s in new.values())):
            yield from batches_of(content)

    yield from listings.batches({identity_of(*decisive, asdict(s)): s for s in spans}, list_new)


def _list_tar(item: tuple[str, TarSpan], *, scan: ScanTar, listings: FileListings) -> bytes:
    identity, span = item
    content = encode_listing(scan(span))
    listings.keep(identity, content)
    return content


def listing_of_tar(
    span: TarSpan, *, keys: Any, offsets: Any, sizes_bytes: Any, labels: Any, split: str | None
) -> RecordBatch:
    """Return the columns of `LISTING_SCHEMA` for images that are ranges of one object."""
    num_rows = len(keys)
    columns = [
        keys, pa.repeat(span.path, num_rows), offsets, sizes_bytes, pa.repeat(span.etag, num_rows), labels,
        pa.repeat(split, num_rows) if split else pa.nulls(num_rows, pa.string()),
    ]  # fmt: skip
    return pa.record_batch(dict(zip(LISTING_SCHEMA.names, columns, strict=True)), schema=LISTING_SCHEMA)
