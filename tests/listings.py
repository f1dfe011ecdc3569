"""Listings for tests: made of records, and read back as records."""

from collections.abc import Iterable, Sequence

from data.corpus_listing import CorpusListing
from data.list_corpus import collect
from data.listing import LISTING_SCHEMA, batch_of, records_of
from data.types import Record


def listing_of(
    records: Iterable[Record], classes: Sequence[str] | None = None, *, seed: int = 0
) -> CorpusListing:
    """Return a listing of records that have a split."""
    return collect(CorpusListing(seed), [batch_of(records)], classes)


def records_in(listing: CorpusListing) -> list[Record]:
    """Return a listing's records, sorted by key."""
    found = [
        record
        for split in listing.totals
        for rows in listing.sorted_rows(split)
        for batch in rows.select(LISTING_SCHEMA.names).to_batches()
        for record in records_of(batch)
    ]
    return sorted(found, key=lambda record: record.key)
