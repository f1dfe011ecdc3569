"""What became of each listed record, and which records a dataset has processed already."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.arrow import RecordBatch, Table, compute
from data.corpus_listing import LEFT_OUT, CorpusListing
from data.left_out import UNKNOWN_LABEL
from data.list_corpus import collect
from data.listing import LISTING_SCHEMA
from data.shard_index import get_parquet, put_table
from data.snapshot import SnapshotHeader, load_chain, seen_paths
from data.split import SPLITS
from data.spool import Spool
from data.stable_hash import digest_rows
from data.store import Store

OUTCOME_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("outcome", pa.string()),  # "accepted", or the reject's reason
    ]
)

_IDENTITY = ("path", "offset", "size_bytes", "etag", "folder")
"""What makes a record another one: a file uploaded again under its name has another size or etag.

`folder` is what `data.list_corpus.local_folder` says: unpacked archives often give all files one time.
"""

_NOT_JUDGED: Any = pa.array([UNKNOWN_LABEL, "missing"])
"""Outcomes of records whose image was not looked at: taken once their label is known, the file is there."""

_DIGEST_SCHEMA: Any = pa.schema([("high", pa.uint64()), ("low", pa.uint64())])
_MARKED_SCHEMA: Any = pa.schema([*LISTING_SCHEMA, *_DIGEST_SCHEMA])
_ROWS_PER_FILE = 2**18


def write_outcomes(dataset: Store, listing: CorpusListing, reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Write what became of each record (`reasons`: rejects by key) and return the Parquet files' paths.

    Records that the listing left out for their label need no reason.
    Each of the files holds up to 262,144 records, sorted by key: they compress better so.
    """
    return tuple(
        put_table(dataset, "listings", rows.sort_by("key")) for rows in _in_files(_judged(listing, reasons))
    )


def remember_rejects(
    dataset: Store, snapshot: SnapshotHeader, listing: CorpusListing, reasons: Mapping[str, str], folder: str
) -> None:
    """Note rejected records outside of any snapshot, for an append that added nothing.

    They count as processed for `snapshot`, against which they were judged, and all that follow it: once it
    is retired, what was a duplicate of its images may be new.
    """
    rejected = (
        rows.filter(compute.not_equal(rows["outcome"], "accepted")) for rows in _judged(listing, reasons)
    )
    for rows in _in_files(rejected):
        put_table(dataset, f"seen/{snapshot.id}", _in_folder(rows.sort_by("key"), folder))


def new_records(
    dataset: Store, snapshot: SnapshotHeader, listing: CorpusListing, folder: str
) -> CorpusListing:
    """Return the records whose (path, offset, size, etag, folder) no snapshot of the chain has processed.

    `folder` is the listed corpus's `local_folder`: what was moved is new, and a duplicate by its bytes.
    One that was left out for its label is new once the label is known, and one whose file was missing stays
    new. To each key a hash of them is added: a file uploaded again under its name is another sample.
    Memory does not grow with the listing or the chain: both are sorted by the digest, on disk if large.
    """
    judged, processed = _processed(dataset, snapshot)
    parts = chain(
        _absent(_marked(listing, SPLITS, folder), judged),
        _absent(_marked(listing, (LEFT_OUT,), folder), processed),
    )
    fresh = (rekeyed for part in parts for rekeyed in _rekeyed(part))
    return collect(CorpusListing(listing.seed), fresh, None)


def relabelled_records(
    dataset: Store, snapshot: SnapshotHeader, listing: CorpusListing, classes: Sequence[str], folder: str
) -> Counter[str]:
    """Count, by class, the records of classes unknown to the chain that it has accepted under another one.

    Those of several labels are left out.
    """
    accepted = Spool(_DIGEST_SCHEMA, ("high", "low"))
    for table in _outcomes(dataset, snapshot):
        _add_digests(accepted, table.filter(compute.equal(table.column("outcome"), "accepted")))
    listed = _marked(listing, SPLITS, folder, only=classes)
    counts = Counter[str]()
    for part in listed.parts():
        counts.update(label for (label,) in part.column("labels").to_pylist())
    for part in _absent(listed, accepted):
        counts.subtract(label for (label,) in part.column("labels").to_pylist())
    return +counts


def _processed(dataset: Store, snapshot: SnapshotHeader) -> tuple[Spool, Spool]:
    """Return the digests of the records whose images were judged, and of all that were processed."""
    judged, processed = (Spool(_DIGEST_SCHEMA, ("high", "low")) for _ in range(2))
    for table in _outcomes(dataset, snapshot):
        is_unread = compute.is_in(table.column("outcome"), value_set=_NOT_JUDGED)
        _add_digests(judged, table.filter(compute.invert(is_unread)))
        _add_digests(processed, table)
    return judged, processed


def _outcomes(dataset: Store, snapshot: SnapshotHeader) -> Iterator[Table]:
    """Yield what became of the records of a snapshot and its ancestors, with their folder."""
    headers = load_chain(dataset, snapshot)
    listed = (
        _in_folder(get_parquet(dataset, path), header.listed_in)
        for header in headers
        for path in header.listing_paths
    )
    yield from listed
    yield from (get_parquet(dataset, path) for path in seen_paths(dataset, headers))


def _add_digests(spool: Spool, rows: Table) -> None:
    for batch in rows.select(_IDENTITY).to_batches():
        spool.add(pa.RecordBatch.from_arrays(_digests(batch), schema=_DIGEST_SCHEMA))


def _in_folder(rows: Table, folder: str) -> Table:
    return rows.append_column("folder", pa.repeat(folder, rows.num_rows))


def _marked(
    listing: CorpusListing, splits: Iterable[str], folder: str, *, only: Sequence[str] | None = None
) -> Spool:
    """Return listed rows with their digests; with `only`, those whose single label is among it."""
    listed = Spool(_MARKED_SCHEMA, ("high", "low", "key"))
    for split in splits:
        for rows in listing.sorted_rows(split):
            if only is not None:
                rows = rows.filter(compute.equal(compute.list_value_length(rows["labels"]), 1))
                rows = rows.filter(compute.is_in(compute.list_flatten(rows["labels"]), pa.array(only)))
            for batch in _in_folder(rows.select(LISTING_SCHEMA.names), folder).to_batches():
                marked = [*batch.select(LISTING_SCHEMA.names).columns, *_digests(batch)]
                listed.add(pa.RecordBatch.from_arrays(marked, schema=_MARKED_SCHEMA))
    return listed


def _digests(rows: RecordBatch) -> list[Any]:
    return [pa.array(digest) for digest in digest_rows(rows.column(name) for name in _IDENTITY)]


def _absent(listed: Spool, known: Spool) -> Iterator[Table]:
    """Yield the listed rows whose digest is not known; both come in the order of the digest."""
    upcoming = (_sortable(part) for part in known.parts())
    some = next(upcoming, None)
    for part in listed.parts():
        digests = _sortable(part)
        is_known = np.zeros(len(digests), dtype=np.bool_)
        while some is not None:
            # Both are sorted; numpy's isin would sort the known ones again for each part.
            place = np.minimum(np.searchsorted(some, digests), len(some) - 1)
            is_known |= some[place] == digests
            if some[-1] > digests[-1]:
                break  # it may hold digests of the next part as well
            some = next(upcoming, None)
        yield part.filter(pa.array(~is_known))


def _sortable(part: Table) -> NDArray[np.bytes_]:
    """Return the digests as 16 bytes each, which compare as (high, low) does."""
    lanes = np.stack([part.column(name).to_numpy() for name in _DIGEST_SCHEMA.names], axis=1)
    return lanes.astype(">u8").view("S16").ravel()


def _rekeyed(part: Table) -> Iterator[RecordBatch]:
    marks = [f"@{high >> 32:08x}" for high in part.column("high").to_pylist()]
    keys = compute.binary_join_element_wise(part.column("key"), pa.array(marks, pa.string()), "")
    rows = part.select(LISTING_SCHEMA.names).set_column(0, "key", keys)
    yield from rows.combine_chunks().to_batches()


def _judged(listing: CorpusListing, reasons: Mapping[str, str]) -> Iterator[Table]:
    rejected = pa.array(list(reasons), pa.string())
    for split in (*SPLITS, LEFT_OUT):
        otherwise = UNKNOWN_LABEL if split == LEFT_OUT else "accepted"
        why = pa.array([*reasons.values(), otherwise], pa.string())
        for rows in listing.sorted_rows(split):
            place = compute.fill_null(compute.index_in(rows.column("key"), value_set=rejected), len(reasons))
            columns = [rows.column(name) for name in OUTCOME_SCHEMA.names if name != "outcome"]
            yield pa.table([*columns, why.take(place.combine_chunks())], schema=OUTCOME_SCHEMA)


def _in_files(tables: Iterator[Table]) -> Iterator[Table]:
    """Join and cut to the size of a file."""
    waiting: list[Table] = [OUTCOME_SCHEMA.empty_table()]
    num_waiting = 0
    for table in tables:
        waiting.append(table)
        num_waiting += table.num_rows
        while num_waiting >= _ROWS_PER_FILE:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, _ROWS_PER_FILE)
            waiting, num_waiting = [joined.slice(_ROWS_PER_FILE)], num_waiting - _ROWS_PER_FILE
    if num_waiting:
        yield pa.concat_tables(waiting)
