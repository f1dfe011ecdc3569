"""List a corpus once for several uses."""

from collections.abc import Iterator

from data.arrow import RecordBatch
from data.backlog import Backlog
from data.listing import LISTING_SCHEMA, CorpusReader


class KeptListing:
    """A reader that remembers what another one listed; memory is bounded, the rest is on disk."""

    def __init__(self, reader: CorpusReader) -> None:
        self._reader = reader
        self._kept: Backlog | None = None

    @property
    def uri(self) -> str:
        """The corpus's."""
        return self._reader.uri

    def record_batches(self) -> Iterator[RecordBatch]:
        """Yield the images; the first call reads the corpus, and raises what its reader raises."""
        if self._kept is None:
            kept = Backlog(LISTING_SCHEMA)
            for batch in self._reader.record_batches():
                kept.add(batch)
            self._kept = kept
        yield from self._kept
