"""Listings of a corpus's files, kept in the dataset: a file that was listed is not read again."""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from data.arrow import RecordBatch
from data.listing import BATCH_ROWS, LISTING_SCHEMA
from data.store import ObjectNotFoundError, Store

Item = TypeVar("Item")

_NUM_THREADS = 16
# As many are held at a time, compressed: some MB where a tar has a million images.
_AHEAD = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FileListings:
    """Kept listings: objects IDENTITY-CONTENT.parquet, by hashes of what decides the rows and of its bytes.

    A listing that is damaged does not have its own hash in its name, and is taken as absent. Two writers
    of one listing write the same bytes. It is picklable where its store is.
    """

    folder: Store
    is_read_only: bool = False
    """Keep nothing new: for a dry run."""

    def keep(self, identity: str, content: bytes) -> None:
        """Write what `encode_listing` returned."""
        if not self.is_read_only:
            self.folder.put(f"{identity}-{_content_hash(content)}.parquet", content)

    def batches(
        self, files: Mapping[str, Item], list_new: Callable[[Mapping[str, Item]], Iterable[RecordBatch]]
    ) -> Iterator[RecordBatch]:
        """Yield the rows of files, by identity: the kept ones, then what `list_new` yields for the rest."""
        new: dict[str, Item] = {}
        for identity, content in self._kept(list(files)):
            if content is None:
                new[identity] = files[identity]
            else:
                yield from batches_of(content)
        yield from list_new(new)

    def _kept(self, identities: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        paths: defaultdict[str, list[str]] = defaultdict(list)
        for info in self.folder.scan():
            paths[info.path.partition("-")[0]].append(info.path)

        def read(identity: str) -> bytes | None:
            # There are several only where versions of pyarrow encode the same rows otherwise.
            contents = (self._read(path) for path in paths.get(identity, ()))
            return next((content for content in contents if content is not None), None)

        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for first in range(0, len(identities), _AHEAD):
                some = identities[first : first + _AHEAD]
                yield from zip(some, pool.map(read, some), strict=True)

    def _read(self, path: str) -> bytes | None:
        try:
            content = self.folder.get(path)
        except ObjectNotFoundError:
            return None
        return content if path.endswith(f"-{_content_hash(content)}.parquet") else None


def identity_of(*decisive: object) -> str:
    """Return a hash of all that decides a file's rows: JSON values."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def encode_listing(batches: Iterable[RecordBatch]) -> bytes:
    """Return rows (`LISTING_SCHEMA`) as Parquet; a batch of them is held at a time, the rest compressed."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, LISTING_SCHEMA, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def batches_of(content: bytes) -> Iterator[RecordBatch]:
    """Yield the rows that `encode_listing` was given."""
    yield from pq.ParquetFile(pa.BufferReader(content)).iter_batches(BATCH_ROWS)


def _content_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
