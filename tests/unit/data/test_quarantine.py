from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from data.image_check import ImageLimits
from data.quarantine import (
    REJECT_SCHEMA,
    picture_quarantine,
    quarantine_page_path,
    read_quarantine,
    rejects_of,
    write_quarantine,
)
from data.shard_index import parquet_table
from data.types import Reject
from infra.store import open_store
from tests.image_samples import fill, png


def reject(key: str, size_bytes: int | None, **more: int) -> Reject:
    return Reject(
        key=key, path=key, reason="unreadable", detail=f"é {key}", etag="1", size_bytes=size_bytes, **more
    )


def test_order_does_not_matter_and_nothing_is_lost(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    rejects = [reject("b", 3), reject("a", None)]
    path = write_quarantine(store, rejects)
    assert path == write_quarantine(store, reversed(rejects))
    assert parquet_table(store.get(path)).to_pylist() == [asdict(rejects[1]), asdict(rejects[0])]
    assert write_quarantine(store, rejects[:1]) != path


def test_rows_without_an_object_each_stand_among_the_others(tmp_path: Path) -> None:
    """Of a corpus of which most has an unknown label there were millions of objects."""
    store = open_store(str(tmp_path))
    rejects = [reject(key, 3) for key in "dbca"]
    rows = pa.Table.from_pylist([asdict(one) for one in rejects[:2]], schema=REJECT_SCHEMA)
    assert write_quarantine(store, rejects[2:], rows) == write_quarantine(store, rejects)
    assert list(rejects_of(rows)) == rejects[:2]


def test_pictures_of_files_and_of_parts_of_files(tmp_path: Path) -> None:
    image = png(1, height=64, width=64)
    cut = image[:-100]
    corpus = fill(tmp_path / "corpus", {"whole.png": image, "many.bin": b"#" * 1000 + cut + b"#" * 1000})
    dataset = open_store(str(tmp_path / "dataset"))
    rejects = [
        reject("whole.png", len(image)),
        Reject(
            key="part", path="many.bin", reason="unreadable", detail="<b>cut</b>", etag="",
            size_bytes=len(cut), offset=1000,
        ),
        reject("gone.png", 5),
        reject("not read again.png", None),
    ]  # fmt: skip
    path = write_quarantine(dataset, rejects)
    picture_quarantine(dataset, path, corpus=corpus, limits=ImageLimits())
    rows = {row["key"]: row["picture"] for row in read_quarantine(dataset, path, max_rows=10)}
    assert {key for key, picture in rows.items() if picture} == {"whole.png", "part"}
    page = dataset.get(quarantine_page_path(path)).decode()
    assert page.count("<img") == 2
    assert "&lt;b&gt;cut&lt;/b&gt;" in page
    assert "<b>cut</b>" not in page


def test_pictures_that_are_there_are_not_drawn_again(tmp_path: Path) -> None:
    """A finished build that runs again must end in seconds, without reading images."""
    image = png(1)
    corpus = fill(tmp_path / "corpus", {"a.png": image})
    dataset = open_store(str(tmp_path / "dataset"))
    rejects = [reject("a.png", len(image))]
    path = write_quarantine(dataset, rejects)
    assert read_quarantine(dataset, path, max_rows=1)[0]["picture"] is None
    picture_quarantine(dataset, path, corpus=corpus, limits=ImageLimits())
    corpus.delete("a.png")
    picture_quarantine(dataset, path, corpus=corpus, limits=ImageLimits())
    assert read_quarantine(dataset, path, max_rows=1)[0]["picture"] is not None


def test_a_file_over_the_byte_cap_is_not_read(tmp_path: Path) -> None:
    image = png(1)
    corpus = fill(tmp_path / "corpus", {"a.png": image})
    dataset = open_store(str(tmp_path / "dataset"))
    path = write_quarantine(dataset, [reject("a.png", len(image))])
    picture_quarantine(dataset, path, corpus=corpus, limits=ImageLimits(max_bytes=10))
    assert read_quarantine(dataset, path, max_rows=1)[0]["picture"] is None
