"""gc frees what nothing reaches, and nothing else."""

import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from data.append import append_snapshot
from data.build import ShardingConfig, build_snapshot
from data.collect import collect_garbage, find_garbage, is_ours
from data.errors import InputError
from data.lease import BUILDS, hold, pin
from data.quarantine import picture_quarantine
from data.retirement import restore_snapshot, retire_snapshot
from data.shard_plan import ShardPlan
from data.shard_write import ShardResult, write_shard, write_shards_here
from data.snapshot import Snapshot, commit_snapshot, load_snapshot, make_snapshot
from data.store import Store
from data.verify import verify_lists, verify_shard
from infra.folder_store import FolderStore
from tests.image_samples import fill, photos
from tests.unit.data.test_lease import age

CONFIG = ShardingConfig(shard_size_bytes=8000)
FILES = photos("train/cat", 8, 0) | photos("train/dog", 8, 100) | photos("test/cat", 3, 200)
DAY_S = 86400.0
WEEK_S = 7 * DAY_S


@pytest.fixture
def corpus(tmp_path: Path) -> Store:
    return fill(tmp_path / "corpus", FILES)


@pytest.fixture
def dataset(tmp_path: Path) -> FolderStore:
    return FolderStore(root=tmp_path / "dataset")


def build(corpus: Store, dataset: Store, config: ShardingConfig = CONFIG) -> Snapshot:
    return build_snapshot(corpus, dataset, config, write_shards_here(corpus, dataset, config.limits))


def append(parent: Snapshot, corpus: Store, dataset: Store) -> Snapshot:
    appended = append_snapshot(
        parent, corpus, dataset, CONFIG, write_shards_here(corpus, dataset, CONFIG.limits)
    )
    assert appended is not None
    return appended


def age_all(dataset: FolderStore, seconds: float) -> None:
    for info in list(dataset.list()):
        age(dataset, info.path, seconds)


def damages(snapshot: Snapshot, dataset: Store) -> list[str]:
    shards = [shard for found in snapshot.splits.values() for shard in found]
    found = [damage for shard in shards for damage in verify_shard(shard, dataset=dataset)]
    return [damage.path for damage in (*found, *verify_lists(snapshot, dataset))]


def paths(dataset: Store) -> set[str]:
    return {info.path for info in dataset.list()}


def test_of_a_live_chain_nothing_goes(tmp_path: Path, corpus: Store, dataset: FolderStore) -> None:
    first = build(corpus, dataset)
    second = append(first, fill(tmp_path / "more", photos("train/cat", 3, 500)), dataset)
    age_all(dataset, 30 * DAY_S)
    before = paths(dataset)
    assert collect_garbage(dataset, grace_s=WEEK_S).objects == ()
    retire_snapshot(dataset, first.id, "an ancestor of a live one: it is only not to be pinned any more")
    assert collect_garbage(dataset, grace_s=0).ending == ()
    assert before <= paths(dataset)
    assert damages(second, dataset) == []
    restore_snapshot(dataset, first.id)


def test_what_only_a_retired_snapshot_reaches_goes_after_the_grace_period(
    tmp_path: Path, corpus: Store, dataset: FolderStore
) -> None:
    first = build(corpus, dataset)
    bad = append(first, fill(tmp_path / "bad", photos("train/cat", 3, 500)), dataset)
    retire_snapshot(dataset, bad.id, "wrong labels")
    found = collect_garbage(dataset, grace_s=WEEK_S)
    assert (found.objects, found.held_back) == ((), {bad.id: "retired within the grace period"})
    age_all(dataset, 8 * DAY_S)
    planned = find_garbage(dataset, grace_s=WEEK_S)
    freed = collect_garbage(dataset, grace_s=WEEK_S)
    assert planned == freed
    assert freed.ending == (bad.id,)
    new = set(bad.splits["train"]) - set(first.splits["train"])
    gone = {shard.path for shard in new} | {shard.index_path for shard in new} | set(bad.listing_paths)
    assert gone == {i.path for i in freed.objects if not i.path.startswith("receipts/")}
    assert not gone & paths(dataset)
    assert freed.size_bytes > 0
    assert damages(first, dataset) == []
    assert load_snapshot(dataset, "HEAD") == first
    with pytest.raises(InputError, match="cannot come back"):
        restore_snapshot(dataset, bad.id)
    # The same images once more: another number, and all there.
    again = append(first, fill(tmp_path / "bad", {}), dataset)
    assert again.number == 3
    assert damages(again, dataset) == []


def test_a_leased_snapshot_stays_until_the_lease_ends(corpus: Store, dataset: FolderStore) -> None:
    snapshot = build(corpus, dataset)
    with pin(dataset, snapshot.id) as lease:
        retire_snapshot(dataset, snapshot.id, "old")
        age_all(dataset, 2 * 3600.0)
        held = collect_garbage(dataset, grace_s=3600)
        assert held.objects == ()
        assert held.held_back == {snapshot.id: f"leased by {lease.owner}"}
        assert damages(snapshot, dataset) == []
    assert collect_garbage(dataset, grace_s=3600).ending == (snapshot.id,)
    assert not list(dataset.list("shards"))


def test_a_collection_stopped_in_the_middle_goes_on(corpus: Store, dataset: FolderStore) -> None:
    snapshot = build(corpus, dataset)
    retire_snapshot(dataset, snapshot.id, "old")
    planned = find_garbage(dataset, grace_s=0)

    def stop(freed: int, total: int) -> None:
        raise KeyboardInterrupt

    for info in planned.objects[:3]:
        dataset.delete(info.path)
    with pytest.raises(KeyboardInterrupt):
        collect_garbage(dataset, grace_s=0, on_batch=stop)
    with pytest.raises(InputError, match="cannot come back"):
        restore_snapshot(dataset, snapshot.id)
    collect_garbage(dataset, grace_s=0)
    # A snapshot's own file and shard lists stay, as a record.
    assert {path.partition("/")[0] for path in paths(dataset) if is_ours(path)} == {"shard_lists"}


def test_what_a_stopped_build_left_goes_once_it_is_old(corpus: Store, dataset: FolderStore) -> None:
    def stop(plans: Iterable[ShardPlan]) -> list[ShardResult]:
        for plan in islice(plans, 2):
            write_shard(plan, corpus=corpus, dataset=dataset, limits=CONFIG.limits)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_snapshot(corpus, dataset, CONFIG, stop)
    assert find_garbage(dataset, grace_s=WEEK_S).objects == ()
    age_all(dataset, 8 * DAY_S)
    assert len(collect_garbage(dataset, grace_s=WEEK_S).objects) == 6
    assert damages(build(corpus, dataset), dataset) == []


def test_objects_that_are_not_ours_stay(corpus: Store, dataset: FolderStore) -> None:
    """Also an adopted tar that somebody named as we name ours."""
    theirs = [
        "shards/000.tar", "readme.txt", "train/0.tar", "shards/train-0123456789abcdef.tar.bak",
        "staging/notes.txt", "staging/part-0.tar", "staging/0123456789abcdef/0.tar", "quarantine/notes.html",
    ]  # fmt: skip
    lookalike = "shards/train-0123456789abcdef.tar"
    for path in (*theirs, lookalike):
        dataset.put(path, b"x")
    snapshot = build(corpus, dataset)
    shard = replace(
        snapshot.splits["train"][0], path=lookalike, index_path="indexes/train-0123456789abcdef.parquet"
    )
    adopted = make_snapshot(
        dataset, None, {"train": (shard,), "eval": ()}, number=2, classes=snapshot.classes,
        stats=snapshot.stats, listing_digest="d", listing_paths=(), quarantine_path=None,
    )  # fmt: skip
    commit_snapshot(dataset, adopted)
    retire_snapshot(dataset, adopted.id, "x")
    retire_snapshot(dataset, snapshot.id, "x")
    collect_garbage(dataset, grace_s=0)
    assert {*theirs, lookalike} <= paths(dataset)


def test_of_staged_files_the_tars_go_and_the_listings_stay(corpus: Store, dataset: FolderStore) -> None:
    build(corpus, dataset)
    tar, listing = "staging/0123456789abcdef.tar", "staging/0123456789abcdef-0123456789abcdef.parquet"
    for path in (tar, listing):
        dataset.put(path, b"x")
    assert find_garbage(dataset, grace_s=WEEK_S).objects == ()
    age_all(dataset, 8 * DAY_S)
    assert [info.path for info in collect_garbage(dataset, grace_s=WEEK_S).objects] == [tar]
    assert dataset.exists(listing)


def test_pictures_of_rejects_stay_and_go_with_their_snapshot(tmp_path: Path, dataset: FolderStore) -> None:
    corpus = fill(tmp_path / "corpus", FILES | {"train/dog/twice.png": FILES["train/dog/000.png"]})
    snapshot = build(corpus, dataset)
    assert snapshot.quarantine_path is not None
    picture_quarantine(dataset, snapshot.quarantine_path, corpus=corpus, limits=CONFIG.limits)
    found = {info.path for info in dataset.list("quarantine")}
    assert len(found) == 3
    age_all(dataset, 8 * DAY_S)
    collect_garbage(dataset, grace_s=WEEK_S)
    assert {info.path for info in dataset.list("quarantine")} == found
    retire_snapshot(dataset, snapshot.id, "old")
    collect_garbage(dataset, grace_s=0)
    assert not list(dataset.list("quarantine"))


@pytest.mark.parametrize("content", [b"", b"no", b"[]", b"{}", b'{"info": {"path": []}}', b'{"info": 3}'])
def test_damaged_receipts_and_records_are_garbage(dataset: FolderStore, content: bytes) -> None:
    paths = [f"{folder}/{'0' * 32}.json" for folder in ("builds", "receipts")]
    for path in paths:
        dataset.put(path, content)
    assert [info.path for info in find_garbage(dataset, grace_s=0).objects] == paths


def test_gc_refuses_while_a_build_is_going_on(corpus: Store, dataset: FolderStore) -> None:
    with hold(dataset, BUILDS) as lease, pytest.raises(InputError, match=rf"1 build.*first: {lease.owner}"):
        collect_garbage(dataset, grace_s=0)
    with hold(dataset, "gc"), pytest.raises(InputError, match="another gc"):
        collect_garbage(dataset, grace_s=0)
    assert not list(dataset.list("leases"))


def test_objects_that_a_build_finds_again_are_not_freed_under_it(corpus: Store, dataset: FolderStore) -> None:
    """Old garbage becomes needed again while gc runs: the shards' names are those of their content."""
    snapshot = build(corpus, dataset)
    for number in range(5):
        retire_snapshot(dataset, snapshot.id, "old")
        age_all(dataset, 8 * DAY_S)
        outcomes: list[str] = []
        start = threading.Barrier(2)

        def collect(outcomes: list[str], start: threading.Barrier) -> None:
            start.wait()
            try:
                collect_garbage(dataset, grace_s=WEEK_S)
            except InputError:
                outcomes.append("refused")

        thread = threading.Thread(target=collect, args=(outcomes, start))
        thread.start()
        start.wait()
        snapshot = build(corpus, dataset)
        thread.join()
        assert snapshot.number == number + 2
        assert damages(snapshot, dataset) == []
        assert os.path.exists(dataset.root / snapshot.splits["train"][0].path)
