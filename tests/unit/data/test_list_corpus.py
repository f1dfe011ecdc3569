import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from data import spool
from data.corpora.manifest import ManifestReader
from data.corpus_listing import LEFT_OUT, CorpusListing
from data.errors import InputError
from data.list_corpus import list_for_append, list_for_build, local_folder
from data.listing import RecordBatch, batch_of
from data.sharding_config import ShardingConfig
from data.types import Record
from infra.s3_store import S3Store
from tests.image_samples import fill
from tests.listings import records_in


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Yields records, some a batch."""

    records: list[Record]
    batch_rows: int = 3
    uri: str = "list://records"

    def record_batches(self) -> Iterator[RecordBatch]:
        for first in range(0, len(self.records), self.batch_rows):
            yield batch_of(self.records[first : first + self.batch_rows])


def record(key: str, *labels: str, split: str | None = None) -> Record:
    return Record(key=key, path=key, labels=labels, split=split, size_bytes=len(key), etag="e")


def listed(folder: Path, paths: list[str], **options: Any) -> CorpusListing:
    return list_for_build(fill(folder, dict.fromkeys(paths, b"x")), ShardingConfig(**options))


def keys_of(listing: CorpusListing, split: str) -> set[str]:
    return {found.key for found in records_in(listing) if found.split == split}


def test_totals_and_counts(tmp_path: Path) -> None:
    listing = listed(tmp_path, ["train/cat/a.png", "train/dog/b.png", "test/cat/c.png"])
    assert listing.classes == ("cat", "dog")
    assert listing.counts == {("train", "cat"): 1, ("train", "dog"): 1, ("eval", "cat"): 1}
    assert (listing.num_images, listing.size_bytes) == (3, 3)
    assert listing.totals["train"].num_images == 2


def test_watched_prefix_may_be_empty(tmp_path: Path) -> None:
    assert list_for_append(fill(tmp_path / "absent", {}), ShardingConfig()).num_images == 0


def test_named_classes_keep_their_order_and_absent_ones_are_named(tmp_path: Path) -> None:
    paths = ["cat/a.png", "dog/b.png", "eel/c.png"]
    listing = listed(tmp_path, paths, classes=("eel", "cat"))
    assert listing.classes == ("eel", "cat")
    assert [found.key for found in records_in(listing)] == ["cat/a.png", "eel/c.png"]
    with pytest.raises(
        InputError, match=r"class 'cow' has no image in .*: the classes there are cat, dog, eel"
    ):
        listed(tmp_path, paths, classes=("cat", "cow"))


def test_labels_outside_of_the_class_list_are_skipped_rejected_or_an_error() -> None:
    reader = Reader(records=[record("1", "cat"), record("2", "cat", "dog"), record("3", "eel")])
    only = ShardingConfig(classes=("cat", "dog"))
    assert [found.key for found in records_in(list_for_build(reader, only))] == ["1", "2"]
    listing = list_for_build(reader, replace(only, unknown_labels="reject"))
    assert keys_of(listing, LEFT_OUT) == {"3"}
    assert listing.num_images == 3
    with pytest.raises(InputError, match=r"'3' has the labels \['eel'\], not all of them in classes"):
        list_for_build(reader, replace(only, unknown_labels="error"))
    with pytest.raises(InputError, match="'2' has the labels"):
        list_for_build(reader, ShardingConfig(classes=("cat",), unknown_labels="error"))


def test_only_a_local_corpus_has_a_folder_and_a_manifests_is_that_of_its_images(tmp_path: Path) -> None:
    """Next month's manifest of the same images is a file of another name, and they are not new."""
    images = fill(tmp_path / "images", {"a.png": b"a"})
    tables = fill(tmp_path / "tables", {"may.csv": b"uri,label\na.png,cat\n"})
    (manifest,) = tables.list()
    assert local_folder(images) == images.uri
    assert local_folder(ManifestReader(folder=tables, manifest=manifest, root=images)) == images.uri
    bucket = S3Store(bucket="b", prefix="p")
    assert local_folder(bucket) == ""
    assert local_folder(ManifestReader(folder=tables, manifest=manifest, root=bucket)) == ""


def test_cap_is_for_train_only_and_stable(tmp_path: Path) -> None:
    paths = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(20)]
    capped = listed(tmp_path, paths, max_train_per_class=5, seed=1)
    assert capped.counts == {
        ("train", "a"): 5, ("train", "b"): 5, ("eval", "a"): 20, ("eval", "b"): 20,
    }  # fmt: skip
    kept = {found.key for found in records_in(capped)}
    smaller = {found.key for found in records_in(listed(tmp_path, paths, max_train_per_class=3, seed=1))}
    assert smaller < kept
    assert {found.key for found in records_in(listed(tmp_path, paths, max_train_per_class=5, seed=2))} != kept


def test_capped_classes_of_different_sizes_are_mixed_in_the_order(tmp_path: Path) -> None:
    """Were the cap's hash the order's, the kept ones of a large class would all come first."""
    paths = [f"{name}/{i}.png" for name, count in (("large", 2000), ("small", 100)) for i in range(count)]
    listing = listed(tmp_path, paths, max_train_per_class=100, eval_fraction=0.0)
    (rows,) = listing.sorted_rows("train")
    first_half = [labels[0] for labels in rows.column("labels").to_pylist()[:100]]
    assert 30 < first_half.count("large") < 70


def test_eval_fraction_fills_the_split_before_the_cap(tmp_path: Path) -> None:
    paths = [f"a/{i}.png" for i in range(200)]
    whole = listed(tmp_path, paths, eval_fraction=0.2)
    listing = listed(tmp_path, paths, eval_fraction=0.2, max_train_per_class=10)
    assert keys_of(listing, "eval") == keys_of(whole, "eval")
    assert 20 < len(keys_of(whole, "eval")) < 60
    assert len(keys_of(listing, "train")) == 10


def test_digest_sees_content_changes_and_nothing_else(tmp_path: Path) -> None:
    paths = ["cat/a.png", "dog/b.png"]

    def digest(name: str, content: bytes, mtime_s: int, seed: int = 0) -> str:
        corpus = fill(tmp_path / name, dict.fromkeys(paths, content))
        for path in paths:
            os.utime(tmp_path / name / path, (mtime_s, mtime_s))
        return list_for_build(corpus, ShardingConfig(seed=seed, eval_fraction=0.0)).digest

    assert digest("one", b"x", 5) == digest("two", b"y", 5) == digest("one", b"x", 5, seed=1)
    assert digest("one", b"x", 5) != digest("one", b"x", 6)
    assert digest("one", b"x", 5) != digest("one", b"xx", 5)


def test_digest_and_rows_do_not_depend_on_order_batches_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(f"{i}.png", "ab"[i % 2], split=("train", "eval", None)[i % 3]) for i in range(600)]
    config = ShardingConfig(max_train_per_class=150, seed=4)
    first = list_for_build(Reader(records=records), config)
    monkeypatch.setattr(spool.Spool.__init__, "__kwdefaults__", {"memory_bytes": 9_000, "num_parts": 8})
    second = list_for_build(Reader(records=records[::-1], batch_rows=41), config)
    assert (first.digest, first.counts, first.totals) == (second.digest, second.counts, second.totals)
    assert first.counts["train", "a"] == 150
    for split in ("train", "eval"):
        orders = [
            [key for part in listing.sorted_rows(split) for key in part.column("key").to_pylist()]
            for listing in (first, second)
        ]
        assert orders[0] == orders[1]
    assert len(list(second.sorted_rows("train"))) > 1


@pytest.mark.parametrize("memory_bytes", [0, 10**6])
def test_two_images_of_one_key_are_named(monkeypatch: pytest.MonkeyPatch, memory_bytes: int) -> None:
    """Also across splits: a manifest may list an image for both."""
    monkeypatch.setattr(
        spool.Spool.__init__, "__kwdefaults__", {"memory_bytes": memory_bytes, "num_parts": 8}
    )
    records = [record(f"{i}.png", "a", split="train") for i in range(20)]
    elsewhere = replace(records[7], path="elsewhere")
    for twin in (replace(elsewhere, split="eval"), replace(elsewhere, offset=512)):
        with pytest.raises(InputError, match=r"two images have the key '7\.png' \(.*elsewhere"):
            list_for_build(Reader(records=[*records, twin]), ShardingConfig())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record("", "a"), "has an empty key"),
        (record("1"), "'1' .* has no label"),
        (record("1", "a", split="dev"), "a split other than train and eval, split 'dev'"),
    ],
)
def test_rows_that_cannot_be_used_are_one_clear_line(bad: Record, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list_for_build(Reader(records=[record("0", "a"), bad]), ShardingConfig())


def test_multi_label_records_keep_their_labels() -> None:
    records = [record("1", "b", "a"), record("2", "a"), record("3", "c", "b", "a")]
    listing = list_for_build(Reader(records=records), ShardingConfig(eval_fraction=0.0))
    assert [found.labels for found in records_in(listing)] == [r.labels for r in records]
    assert listing.counts == {("train", "a"): 3, ("train", "b"): 2, ("train", "c"): 1}
