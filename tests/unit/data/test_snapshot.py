import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from data.errors import InputError
from data.snapshot import (
    Snapshot,
    SnapshotConflictError,
    commit_snapshot,
    list_snapshots,
    load_chain,
    load_snapshot,
    make_snapshot,
    reachable_paths,
)
from data.store import Store, StoreError
from data.types import ShardInfo
from infra.store import open_store

SHARD = ShardInfo(
    path="shards/train-1.tar", index_path="shards/train-1.parquet", num_samples=3, size_bytes=10,
    crc32c=5, sha256="ab", index_sha256="cd",
)  # fmt: skip
OTHER = replace(SHARD, path="shards/train-2.tar", index_path="shards/train-2.parquet", sha256="ef")


def snapshot(
    dataset: Store,
    digest: str = "d",
    parent: Snapshot | None = None,
    shards: tuple[ShardInfo, ...] = (SHARD,),
) -> Snapshot:
    return make_snapshot(
        dataset, parent, {"train": shards, "eval": ()}, classes=("a", "b"),
        stats={"samples": {"train": 3, "eval": 0}}, listing_digest=digest, listing_paths=("l",),
        quarantine_path=None,
    )  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_committed_snapshot_comes_back_by_id_and_as_head(dataset: Store) -> None:
    first = commit_snapshot(dataset, snapshot(dataset))
    second = commit_snapshot(dataset, snapshot(dataset, "e", first, (OTHER,)))
    assert load_snapshot(dataset, first.id) == first
    assert load_snapshot(dataset, "HEAD") == second
    assert second.splits == {"train": (SHARD, OTHER), "eval": ()}
    assert [header.id for header in list_snapshots(dataset)] == [first.id, second.id]
    assert [header.id for header in load_chain(dataset, second)] == [second.id, first.id]


def test_id_names_number_and_content(dataset: Store) -> None:
    first = snapshot(dataset)
    assert first.id.startswith("1-")
    assert len(first.id) == len("1-") + 12
    assert replace(first, number=2).id.partition("-")[2] == first.id.partition("-")[2]
    assert snapshot(dataset, digest="other").id != first.id


@pytest.mark.parametrize("field", [field.name for field in fields(ShardInfo)])
def test_id_sees_every_field_of_every_shard(dataset: Store, field: str) -> None:
    changed = replace(OTHER, **{field: 9 if isinstance(getattr(OTHER, field), int) else "changed"})
    assert snapshot(dataset, shards=(SHARD, OTHER)).id != snapshot(dataset, shards=(SHARD, changed)).id


def test_an_append_names_its_parents_shard_lists_until_they_are_many(dataset: Store) -> None:
    """A chain of thousands of small appends must not take as many reads to open."""
    head = commit_snapshot(dataset, snapshot(dataset))
    shards = [replace(SHARD, path=f"shards/train-{number}.tar") for number in range(40)]
    for shard in shards:
        parent, head = head, commit_snapshot(dataset, snapshot(dataset, "d", head, (shard,)))
        grown = len(parent.shard_lists) + 1
        assert head.shard_lists[: grown - 1] == parent.shard_lists or len(head.shard_lists) == 1
        assert len(head.shard_lists) <= 32
    assert load_snapshot(dataset, "HEAD").splits["train"] == (SHARD, *shards)
    numbers = sum(one.num_shards["train"] for one in head.shard_lists)
    assert numbers == len(head.splits["train"])


def test_reachable_is_what_a_reader_and_an_append_need(dataset: Store) -> None:
    first = commit_snapshot(dataset, snapshot(dataset))
    second = commit_snapshot(dataset, snapshot(dataset, "e", first, (OTHER,)))
    dataset.put(f"seen/{first.id}/x.parquet", b"")
    assert reachable_paths(dataset, second) == {
        "snapshots/000001.json", "snapshots/000002.json", "l", f"seen/{first.id}/x.parquet",
        SHARD.path, SHARD.index_path, OTHER.path, OTHER.index_path,
        *(one.path for one in second.shard_lists),
    }  # fmt: skip


def test_of_many_writers_exactly_one_wins(dataset: Store) -> None:
    outcomes: list[str] = []

    def commit(index: int) -> None:
        try:
            outcomes.append(commit_snapshot(dataset, snapshot(dataset, digest=str(index))).listing_digest)
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
    assert commit_snapshot(dataset, snapshot(dataset)) == commit_snapshot(dataset, snapshot(dataset))


def test_unknown_ids_are_one_clear_line(dataset: Store) -> None:
    with pytest.raises(InputError, match="no snapshot in"):
        load_snapshot(dataset, "HEAD")
    first = commit_snapshot(dataset, snapshot(dataset))
    for unknown in ("7-000000000000", "1-000000000000", "main", "", "²-0"):
        with pytest.raises(InputError, match=f"there are {first.id}"):
            load_snapshot(dataset, unknown)


@pytest.mark.parametrize("damage", [lambda c: c.replace(b'"l"', b'"m"'), lambda c: c[:50], lambda c: b"[]"])
def test_damaged_file_is_noticed(dataset: Store, damage: Callable[[bytes], bytes]) -> None:
    commit_snapshot(dataset, snapshot(dataset))
    path = "snapshots/000001.json"
    dataset.put(path, damage(dataset.get(path)))
    with pytest.raises(StoreError, match=r"000001\.json"):
        load_snapshot(dataset, "HEAD")


def test_another_format_is_refused_by_name(dataset: Store) -> None:
    commit_snapshot(dataset, snapshot(dataset))
    path = "snapshots/000001.json"
    dataset.put(path, dataset.get(path).replace(b"coatnet-snapshot/4", b"coatnet-snapshot/9"))
    with pytest.raises(InputError, match="'coatnet-snapshot/9', this code reads 'coatnet-snapshot/4'"):
        load_snapshot(dataset, "HEAD")


def test_damaged_shard_list_is_noticed_when_shards_are_wanted(dataset: Store) -> None:
    first = commit_snapshot(dataset, snapshot(dataset))
    path = first.shard_lists[0].path
    dataset.put(path, dataset.get(path)[:-1] + b"x")
    assert [header.id for header in list_snapshots(dataset)] == [first.id]
    with pytest.raises(StoreError, match=path):
        load_snapshot(dataset, "HEAD")
