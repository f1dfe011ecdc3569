"""Listings kept beside a dataset: found again, noticed where they are damaged, harmless where two write."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.arrow import RecordBatch
from data.corpora.file_listings import FileListings, batches_of, encode_listing, identity_of
from data.corpora.tar_samples import scan_samples
from data.corpora.webdataset_tars import SampleLabels, list_samples
from data.listing import LISTING_SCHEMA, batch_of
from data.types import Record
from infra.folder_store import FolderStore
from tests.image_samples import fill
from tests.tar_samples import span_of, tar_bytes


def rows_of_a_file(name: str) -> RecordBatch:
    return batch_of([Record(key=name, path="p", labels=("a",), split=None, size_bytes=1, etag="e")])


class Shelf:
    """Files that are listed by their names, and which of them were."""

    def __init__(self, folder: Path) -> None:
        self.store = FolderStore(root=folder)
        self.listings = FileListings(folder=self.store)
        self.listed: list[str] = []

    def _list_new(self, new: Mapping[str, str]) -> Iterator[RecordBatch]:
        for identity, name in new.items():
            self.listed.append(name)
            content = encode_listing([rows_of_a_file(name)])
            self.listings.keep(identity, content)
            yield from batches_of(content)

    def keys(self, *names: str) -> list[str]:
        files = {identity_of(name): name for name in names}
        batches = self.listings.batches(files, self._list_new)
        return sorted(key for batch in batches for key in batch.column("key").to_pylist())


def test_a_file_is_listed_once(tmp_path: Path) -> None:
    shelf, names = Shelf(tmp_path), [f"file{number:03}" for number in range(100)]
    assert shelf.keys(*names[:90]) == names[:90]
    shelf.listed.clear()
    assert shelf.keys(*names) == names
    assert shelf.listed == names[90:]


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_listing_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    """Also one that is sound Parquet, of other rows: no reader of Parquet would notice."""
    shelf = Shelf(tmp_path)
    shelf.keys("a", "b")
    path = next(info.path for info in shelf.store.list() if info.path.startswith(identity_of("a")))
    content = shelf.store.get(path)
    shelf.store.put(path, encode_listing([rows_of_a_file("x")]) if damage is None else damage)
    shelf.listed.clear()
    assert shelf.keys("a", "b") == ["a", "b"]
    assert shelf.listed == ["a"]
    assert shelf.store.get(path) == content, "mended"


def test_two_writers_are_one(tmp_path: Path) -> None:
    """Also where their pyarrows encode the same rows otherwise: either is taken, none twice."""
    shelf = Shelf(tmp_path)
    shelf.keys("a")
    Shelf(tmp_path / "other").keys("a")
    assert [info.path for info in shelf.store.list() if "/" not in info.path] == [
        info.path for info in FolderStore(root=tmp_path / "other").list()
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_batches([rows_of_a_file("a")], schema=LISTING_SCHEMA), sink)
    shelf.listings.keep(identity_of("a"), sink.getvalue())
    assert len([info for info in shelf.store.list() if "/" not in info.path]) == 2
    assert shelf.keys("a") == ["a"]
    assert shelf.listed == ["a"]


def test_a_tar_of_many_members_is_streamed(tmp_path: Path) -> None:
    """All samples of a tar were once held as dicts: 1 kB each, a gigabyte for a million."""
    count = 10_000
    members = {f"{i:05}.{kind}": b"0" for i in range(count) for kind in ("jpg", "cls")}
    store = fill(tmp_path, {"0.tar": tar_bytes(members)})
    span = span_of(store, "0.tar")
    sizes = [batch.num_rows for batch in scan_samples(span, store=store)]
    assert sum(sizes) == count
    assert max(sizes) <= 4096
    batches = list_samples(span, store=store, labels=SampleLabels(), image_extension="")
    assert next(batches).num_rows <= 4096
