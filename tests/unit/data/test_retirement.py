"""A snapshot's retirement: one entry after the other, each won by exactly one."""

import threading
from pathlib import Path

import pytest

from data.append import append_snapshot
from data.build import ShardingConfig
from data.errors import InputError
from data.lease import pin
from data.retirement import (
    check_live,
    damaged_entries,
    mark_collected,
    restore_snapshot,
    retire_snapshot,
    retired_ids,
    retirement,
    retirements,
)
from data.shard_write import write_shards_here
from data.snapshot import Snapshot, load_snapshot
from data.store import Store, StoreError
from infra.store import open_store
from tests.image_samples import fill, png
from tests.small_dataset import small_dataset

CONFIG = ShardingConfig()


def append(dataset: Store, parent: Snapshot, folder: Path, seed: int) -> Snapshot:
    incoming = fill(folder / f"incoming-{seed}", {f"train/a/{seed}.png": png(seed)})
    run_all = write_shards_here(incoming, dataset, CONFIG.limits)
    appended = append_snapshot(parent, incoming, dataset, CONFIG, run_all)
    assert appended is not None
    return appended


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_retired_brought_back_retired_again_and_collected(dataset: Store) -> None:
    check_live(dataset, "1-a")
    retire_snapshot(dataset, "1-a", "wrong labels")
    with pytest.raises(InputError, match=r"1-a .* is retired \(wrong labels\): .* --undo --snapshot 1-a"):
        check_live(dataset, "1-a")
    assert retired_ids(dataset) == {"1-a"}
    restore_snapshot(dataset, "1-a")
    check_live(dataset, "1-a")
    assert retired_ids(dataset) == set()
    assert mark_collected(dataset, retire_snapshot(dataset, "1-a", "after all"))
    assert [(r.number, r.state) for r in retirements(dataset).values()] == [(4, "collected")]
    with pytest.raises(InputError, match="gc has freed its shards"):
        check_live(dataset, "1-a")
    with pytest.raises(InputError, match="cannot come back"):
        restore_snapshot(dataset, "1-a")


def test_what_makes_no_sense_is_refused(dataset: Store) -> None:
    with pytest.raises(InputError, match="say why"):
        retire_snapshot(dataset, "1-a", " ")
    with pytest.raises(InputError, match="nothing to undo"):
        restore_snapshot(dataset, "1-a")
    retire_snapshot(dataset, "1-a", "x")
    with pytest.raises(InputError, match=r"is retired already \(x\)"):
        retire_snapshot(dataset, "1-a", "y")
    assert not list(dataset.list("retirements/1-b"))


def test_of_an_undo_and_a_collection_that_cross_exactly_one_happens(dataset: Store) -> None:
    for number in range(20):
        record = retire_snapshot(dataset, f"{number}-a", "x")
        happened: list[str] = []
        barrier = threading.Barrier(2)

        def undo(snapshot_id: str, happened: list[str], barrier: threading.Barrier) -> None:
            barrier.wait()
            try:
                restore_snapshot(dataset, snapshot_id)
            except InputError:
                return
            happened.append("restored")

        thread = threading.Thread(target=undo, args=(f"{number}-a", happened, barrier))
        thread.start()
        barrier.wait()
        if mark_collected(dataset, record):
            happened.append("collected")
        thread.join()
        last = retirement(dataset, f"{number}-a")
        assert last is not None
        assert happened == [last.state]


def test_a_damaged_record_stops_whoever_asks(dataset: Store) -> None:
    record = retire_snapshot(dataset, "1-a", "x")
    for content in (b"{", b"[]", dataset.get(record.path).replace(b"1-a", b"1-b")):
        dataset.put(record.path, content)
        with pytest.raises(StoreError, match=r"000001\.json"):
            retired_ids(dataset)


def test_what_a_file_browser_leaves_is_no_entry(dataset: Store) -> None:
    """A `.DS_Store` ended everything that looks at a dataset in a traceback."""
    record = retire_snapshot(dataset, "1-a", "x")
    for path in (".DS_Store", "1-a/.DS_Store", "1-a/._000002.json"):
        dataset.put(f"retirements/{path}", b"\xff")
    assert retirement(dataset, "1-a") == record
    assert retired_ids(dataset) == {"1-a"}
    assert damaged_entries(dataset) == []


def test_head_is_the_newest_that_is_not_retired_and_numbers_go_on(tmp_path: Path) -> None:
    """A bad append is retired; the next one goes on from the snapshot before, under a new number."""
    dataset, first = small_dataset(tmp_path, num_train=12, num_eval=4)
    bad = append(dataset, first, tmp_path, 1)
    retire_snapshot(dataset, bad.id, "wrong labels")
    assert load_snapshot(dataset, "HEAD") == first
    assert load_snapshot(dataset, bad.id) == bad
    good = append(dataset, first, tmp_path, 2)
    assert (good.number, good.parent) == (3, first.id)
    assert load_snapshot(dataset, "HEAD") == good


def test_a_retired_snapshot_is_neither_pinned_nor_appended_to(tmp_path: Path) -> None:
    dataset, first = small_dataset(tmp_path, num_train=12, num_eval=4)
    retire_snapshot(dataset, first.id, "old")
    with pytest.raises(InputError, match="is retired"), pin(dataset, first.id):
        pytest.fail("pinned")
    assert not list(dataset.list("leases"))
    with pytest.raises(InputError, match="is retired"):
        append(dataset, first, tmp_path, 1)
    with pytest.raises(InputError, match=r"all 1 snapshots .* are retired: bring one back"):
        load_snapshot(dataset, "HEAD")
