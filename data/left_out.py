"""Images whose label is not among the given classes, as rows of a quarantine; only `reject` keeps them."""

import pyarrow as pa

from data.arrow import Column, Table, compute
from data.corpus_listing import LEFT_OUT, CorpusListing
from data.quarantine import REJECT_SCHEMA

UNKNOWN_LABEL = "unknown_label"
"""Their reason."""


def num_left_out(listing: CorpusListing) -> int:
    """Return how many there are, without a look at the rows."""
    return listing.totals[LEFT_OUT].num_images


def left_out_rows(listing: CorpusListing) -> Table:
    """Return them as `REJECT_SCHEMA`: they may be most of the corpus, so there is no object for each."""
    tables = [_rejected(rows) for rows in listing.sorted_rows(LEFT_OUT)]
    return pa.concat_tables([REJECT_SCHEMA.empty_table(), *tables])


def _rejected(rows: Table) -> Table:
    columns = {name: rows.column(name) for name in ("key", "path", "etag", "size_bytes", "offset")}
    columns |= {"reason": pa.repeat(UNKNOWN_LABEL, rows.num_rows), "detail": _details(rows.column("labels"))}
    return pa.table({name: columns[name] for name in REJECT_SCHEMA.names}, schema=REJECT_SCHEMA)


def _details(labels: Column) -> Column:
    """Return a line for each row; one is made for each set of labels."""
    sets = compute.binary_join(labels.combine_chunks(), "\0").dictionary_encode()
    lines = [
        f"the labels {joined.split(chr(0))!r} are not all among the given classes"
        for joined in sets.dictionary.to_pylist()
    ]
    return pa.array(lines, pa.string()).take(sets.indices)
