from collections.abc import Iterator

import pytest

from data.arrow import RecordBatch
from data.backlog import Backlog
from data.corpora.kept_listing import KeptListing
from data.listing import LISTING_SCHEMA, batch_of
from data.types import Record
from tests.corpus_listing import listed


class CountingReader:
    """Lists 30 images in batches of three, and counts how often."""

    uri = "memory"

    def __init__(self) -> None:
        self.num_calls = 0

    def record_batches(self) -> Iterator[RecordBatch]:
        self.num_calls += 1
        for first in range(0, 30, 3):
            yield batch_of(
                Record(key=f"{i:02}", path="p", labels=("a",), split=None, size_bytes=i, etag="e", offset=i)
                for i in range(first, first + 3)
            )


@pytest.mark.parametrize("memory_bytes", [0, 1000, 2**20])
def test_a_corpus_is_listed_once(memory_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "data.corpora.kept_listing.Backlog", lambda schema: Backlog(schema, memory_bytes=memory_bytes)
    )
    reader = CountingReader()
    kept = KeptListing(reader)
    rows = listed(kept)
    assert [row["key"] for row in rows] == [f"{i:02}" for i in range(30)]
    assert listed(kept) == rows
    assert reader.num_calls == 1
    assert kept.uri == "memory"
    assert next(kept.record_batches()).schema == LISTING_SCHEMA
