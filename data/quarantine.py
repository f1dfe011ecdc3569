"""Keep a list of the images that were left out, why, and what the first of them look like."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from data.arrow import Table, compute
from data.html_page import Figure, figures, page, table
from data.image_check import ImageLimits
from data.reject_pictures import picture_rejects
from data.shard_index import get_parquet, parquet_bytes, parquet_table, put_table
from data.store import ImageSource, ObjectNotFoundError, Store
from data.types import Reject

REJECT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),  # of the image; null: it was put aside after it was written
        # Of its bytes in the object at `path`, of Parquet's in the copies (the key tells the row); null: the
        # object is the image.
        ("offset", pa.int64()),
    ]
)
_BATCH_ROWS = 4096
_PICTURE_SCHEMA = pa.schema([("key", pa.string()), ("picture", pa.binary())])


def write_quarantine(dataset: Store, rejects: Iterable[Reject], left_out: Table | None = None) -> str:
    """Write the rejects, sorted by key, as `quarantine/HASH.parquet` and return that path.

    `left_out` are more of them, as `REJECT_SCHEMA`: too many for an object each.
    """
    rows = pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=REJECT_SCHEMA)
    together = pa.concat_tables([rows, left_out]) if left_out is not None else rows
    return put_table(dataset, "quarantine", together.sort_by("key").combine_chunks())


def rejects_of(rows: Table) -> Iterator[Reject]:
    """Yield rows of `REJECT_SCHEMA` as objects, some at a time."""
    for batch in rows.to_batches(max_chunksize=_BATCH_ROWS):
        yield from (Reject(**row) for row in batch.to_pylist())


def picture_quarantine(dataset: Store, path: str, *, corpus: ImageSource, limits: ImageLimits) -> None:
    """Write pictures beside a quarantine, unless they are there.

    `HASH-pictures.parquet` has small JPEGs of the first few hundred that can be drawn, read from the corpus
    again, and `HASH.html` is a page of them.
    """
    if dataset.exists(quarantine_page_path(path)):
        return
    rejects = get_parquet(dataset, path)
    pictures = picture_rejects(corpus, rejects_of(rejects), limits)
    rows = [{"key": key, "picture": picture} for key, picture in pictures.items()]
    dataset.put(_pictures_path(path), parquet_bytes(rows, _PICTURE_SCHEMA))
    dataset.put(quarantine_page_path(path), _page(rejects, pictures).encode())


def read_quarantine(dataset: Store, path: str, *, max_rows: int) -> list[dict[str, Any]]:
    """Return the first rows (`REJECT_SCHEMA`) that were written, each with its `picture` or None."""
    rows = get_parquet(dataset, path).slice(0, max_rows).to_pylist()
    try:
        drawn = parquet_table(dataset.get(_pictures_path(path))).to_pylist()
    except ObjectNotFoundError:
        drawn = []  # a snapshot without a card
    pictures = {row["key"]: row["picture"] for row in drawn}
    return [{**row, "picture": pictures.get(row["key"])} for row in rows]


def quarantine_page_path(path: str) -> str:
    """Return where the page beside a quarantine's Parquet is."""
    return f"{path.removesuffix('.parquet')}.html"


def picture_paths(path: str) -> tuple[str, str]:
    """Return where `picture_quarantine` writes, beside a quarantine's Parquet."""
    return _pictures_path(path), quarantine_page_path(path)


def _pictures_path(path: str) -> str:
    return f"{path.removesuffix('.parquet')}-pictures.parquet"


def _page(rejects: Table, pictures: dict[str, bytes]) -> str:
    reasons = Counter(rejects.column("reason").to_pylist()).most_common()
    drawn = rejects.filter(
        compute.is_in(rejects.column("key"), value_set=pa.array(list(pictures), pa.string()))
    )
    shown = [
        Figure(picture=pictures[reject.key], title=reject.reason, lines=(reject.key, reject.detail))
        for reject in rejects_of(drawn)
    ]
    title = f"<h1>Left out: {rejects.num_rows:,} images</h1>"
    note = f"<p>{len(shown):,} of them are shown; the Parquet file beside this page lists all.</p>"
    counts = table(("reason", "images"), [(reason, f"{count:,}") for reason, count in reasons])
    return page("Left out", [title, counts, note, figures(shown, "whole")])
