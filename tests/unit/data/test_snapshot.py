import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data.corpus import make_listing
from data.errors import InputError
from data.snapshot import (
    Snapshot,
    SnapshotConflictError,
    commit_snapshot,
    list_snapshots,
    load_chain,
    load_snapshot,
    new_records,
    remember_rejects,
    write_outcomes,
)
from data.store import Store, StoreError
from data.types import Record, ShardInfo
from infra.store import open_store

SHARD = ShardInfo(
    path="shards/train-1.tar", index_path="shards/train-1.parquet", num_samples=3, size_bytes=10,
    crc32c=5, sha256="ab", index_sha256="cd",
)  # fmt: skip


def snapshot(
    number: int = 1, digest: str = "d", parent: str | None = None, listing_path: str = "l"
) -> Snapshot:
    return Snapshot(
        number=number, parent=parent, classes=("a", "b"), splits={"train": (SHARD,), "eval": ()},
        stats={"samples": {"train": 3, "eval": 0}}, listing_digest=digest, listing_path=listing_path,
        quarantine_path=None,
    )  # fmt: skip


def record(key: str, etag: str = "e") -> Record:
    return Record(key=key, path=key, labels=("a",), split=None, size_bytes=1, etag=etag)


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_committed_snapshot_comes_back_by_id_and_as_head(dataset: Store) -> None:
    first = commit_snapshot(dataset, snapshot())
    second = commit_snapshot(dataset, snapshot(2, "e", parent=first.id))
    assert load_snapshot(dataset, first.id) == first
    assert load_snapshot(dataset, "HEAD") == second
    assert list_snapshots(dataset) == [first, second]
    assert load_chain(dataset, second) == [second, first]


def test_id_names_number_and_content() -> None:
    assert snapshot().id.startswith("1-")
    assert len(snapshot().id) == len("1-") + 12
    assert snapshot(2).id.partition("-")[2] == snapshot().id.partition("-")[2]
    assert snapshot(digest="other").id != snapshot().id


def test_of_many_writers_exactly_one_wins(dataset: Store) -> None:
    outcomes: list[str] = []

    def commit(index: int) -> None:
        try:
            outcomes.append(commit_snapshot(dataset, snapshot(digest=str(index))).listing_digest)
        except SnapshotConflictError:
            outcomes.append("conflict")

    threads = [threading.Thread(target=commit, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (outcome for outcome in outcomes if outcome != "conflict")
    assert len(outcomes) == 8
    assert load_snapshot(dataset, "HEAD").listing_digest == winner


def test_committing_the_same_again_is_fine(dataset: Store) -> None:
    """A put whose answer got lost is retried, and then finds its own file."""
    assert commit_snapshot(dataset, snapshot()) == commit_snapshot(dataset, snapshot())


def test_unknown_ids_are_one_clear_line(dataset: Store) -> None:
    with pytest.raises(InputError, match="no snapshot in"):
        load_snapshot(dataset, "HEAD")
    first = commit_snapshot(dataset, snapshot())
    for unknown in ("7-000000000000", "1-000000000000", "main", "", "²-0"):
        with pytest.raises(InputError, match=f"there are {first.id}"):
            load_snapshot(dataset, unknown)


@pytest.mark.parametrize("damage", [lambda c: c.replace(b'"ab"', b'"ac"'), lambda c: c[:50], lambda c: b"[]"])
def test_damaged_file_is_noticed(dataset: Store, damage: Callable[[bytes], bytes]) -> None:
    commit_snapshot(dataset, snapshot())
    path = "snapshots/000001.json"
    dataset.put(path, damage(dataset.get(path)))
    with pytest.raises(StoreError, match=r"000001\.json"):
        load_snapshot(dataset, "HEAD")


def test_another_format_is_refused_by_name(dataset: Store) -> None:
    commit_snapshot(dataset, snapshot())
    path = "snapshots/000001.json"
    dataset.put(path, dataset.get(path).replace(b"coatnet-snapshot/1", b"coatnet-snapshot/9"))
    with pytest.raises(InputError, match="'coatnet-snapshot/9', this code reads 'coatnet-snapshot/1'"):
        load_snapshot(dataset, "HEAD")


def test_new_is_what_no_snapshot_of_the_chain_processed(dataset: Store) -> None:
    old, rejected = record("a/old.png"), record("a/bad.png")
    path = write_outcomes(dataset, [old, rejected], {rejected.key: "unreadable"})
    first = commit_snapshot(dataset, snapshot(listing_path=path))
    second_path = write_outcomes(dataset, [record("a/second.png")], {})
    second = commit_snapshot(dataset, snapshot(2, parent=first.id, listing_path=second_path))
    fresh = [record("a/new.png"), replace(old, etag="changed"), replace(old, size_bytes=2)]
    listing = make_listing([old, rejected, record("a/second.png"), *fresh], ("a",))
    assert sorted(new_records(dataset, second, listing), key=str) == sorted(fresh, key=str)
    # Moved to another key by an append, a record is still known by its path.
    assert new_records(dataset, first, make_listing([replace(old, key="a/old.png@0")], ("a",))) == []


def test_remembered_rejects_count_as_processed_but_accepted_ones_do_not(dataset: Store) -> None:
    """Were an append to stop before its commit, a note on accepted images would lose them."""
    first = commit_snapshot(dataset, snapshot(listing_path=write_outcomes(dataset, [], {})))
    good, bad = record("a/good.png"), record("a/bad.png")
    remember_rejects(dataset, first, [good, bad], {bad.key: "unreadable"})
    assert new_records(dataset, first, make_listing([good, bad], ("a",))) == [good]
