import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from data import outcomes, spool
from data.outcomes import new_records, remember_rejects, write_outcomes
from data.shard_index import parquet_table
from data.snapshot import Snapshot, commit_snapshot, load_header, make_snapshot
from data.store import Store
from data.types import Record
from infra.store import open_store
from tests.listings import listing_of, records_in


def snapshot(dataset: Store, paths: tuple[str, ...], parent: Snapshot | None = None) -> Snapshot:
    made = make_snapshot(
        dataset, parent, {}, classes=("a",), stats={}, listing_digest=uuid.uuid4().hex, listing_paths=paths,
        quarantine_path=None,
    )  # fmt: skip
    return commit_snapshot(dataset, made)


def record(key: str, etag: str = "e", offset: int | None = None) -> Record:
    return Record(
        key=key, path=key, labels=("a",), split="train", size_bytes=1, etag=etag, offset=offset
    )  # fmt: skip


def new_paths(dataset: Store, head: Snapshot, *records: Record) -> list[str]:
    return [found.path for found in records_in(new_records(dataset, head, listing_of(records), ""))]


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_new_is_what_no_snapshot_of_the_chain_processed(dataset: Store) -> None:
    old, rejected, second = record("a/old.png"), record("a/bad.png"), record("a/second.png")
    paths = write_outcomes(dataset, listing_of([old, rejected]), {rejected.key: "unreadable"})
    first = snapshot(dataset, paths)
    head = snapshot(dataset, write_outcomes(dataset, listing_of([second]), {}), first)
    assert new_paths(dataset, head, old, rejected, second, record("a/new.png")) == ["a/new.png"]
    for changed in (replace(old, etag="changed"), replace(old, size_bytes=2), replace(old, offset=512)):
        (found,) = records_in(new_records(dataset, head, listing_of([changed, second]), ""))
        assert found.key.startswith("a/old.png@")
        assert replace(found, key=old.key) == changed
    # Moved to another key by an append, a record is still known by its path.
    assert new_paths(dataset, first, replace(old, key="a/old.png@0"), second) == [second.path]


def test_remembered_rejects_count_as_processed_but_accepted_ones_do_not(dataset: Store) -> None:
    """Were an append to stop before its commit, a note on accepted images would lose them."""
    first = snapshot(dataset, write_outcomes(dataset, listing_of([]), {}))
    good, bad = record("a/good.png"), record("a/bad.png")
    remember_rejects(dataset, first, listing_of([good, bad]), {bad.key: "unreadable"}, "")
    assert new_paths(dataset, first, good, bad) == [good.path]


def test_a_record_of_another_folder_is_another_record(dataset: Store) -> None:
    """A folder's etag is a time only, which many files may have."""
    old, bad = record("a/old.png"), record("a/bad.png")
    paths = write_outcomes(dataset, listing_of([old]), {})
    made = make_snapshot(
        dataset, None, {}, classes=("a",), stats={}, listing_digest="", listing_paths=paths,
        quarantine_path=None, listed_in="file:///one",
    )  # fmt: skip
    head = commit_snapshot(dataset, made)
    assert commit_snapshot(dataset, replace(made, listed_in="file:///two")).id == head.id
    remember_rejects(dataset, head, listing_of([bad]), {bad.key: "unreadable"}, "file:///two")

    def new_in(folder: str) -> list[str]:
        listing = new_records(dataset, load_header(dataset, "HEAD"), listing_of([old, bad]), folder)
        return [found.path for found in records_in(listing)]

    assert {folder: new_in(folder) for folder in ("", "file:///one", "file:///two")} == {
        "": ["a/bad.png", "a/old.png"], "file:///one": ["a/bad.png"], "file:///two": ["a/old.png"],
    }  # fmt: skip


def test_a_file_that_was_missing_is_not_processed(dataset: Store) -> None:
    lost, bad = record("a/lost.png"), record("a/bad.png")
    first = snapshot(dataset, write_outcomes(dataset, listing_of([lost]), {lost.key: "missing"}))
    remember_rejects(
        dataset, first, listing_of([bad, lost]), {bad.key: "unreadable", lost.key: "missing"}, ""
    )
    assert new_paths(dataset, first, lost, bad) == [lost.path]


def test_large_listings_are_several_files_and_as_new_as_small_ones(
    dataset: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of the listing and of what is known do not begin and end at the same digests."""
    records = [record(f"a/{number}.png", offset=number) for number in range(900)]
    whole = write_outcomes(dataset, listing_of(records), {"a/7.png": "unreadable"})
    monkeypatch.setattr(outcomes, "_ROWS_PER_FILE", 100)
    monkeypatch.setattr(spool.Spool.__init__, "__kwdefaults__", {"memory_bytes": 20_000, "num_parts": 4})
    cut = write_outcomes(dataset, listing_of(reversed(records)), {"a/7.png": "unreadable"})
    assert (len(whole), len(cut)) == (1, 9)
    rows = [row for path in cut for row in parquet_table(dataset.get(path)).to_pylist()]
    (expected,) = (parquet_table(dataset.get(path)).to_pylist() for path in whole)
    assert sorted(rows, key=lambda row: row["key"]) == expected
    assert [row["key"] for row in expected if row["outcome"] == "unreadable"] == ["a/7.png"]
    head = snapshot(dataset, cut[:5])
    known = {row["path"] for path in cut[:5] for row in parquet_table(dataset.get(path)).to_pylist()}
    assert set(new_paths(dataset, head, *records)) == {r.path for r in records} - known
    assert new_paths(dataset, snapshot(dataset, cut, head), *records) == []
