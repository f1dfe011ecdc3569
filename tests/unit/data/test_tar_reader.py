"""The reader gives what the tars hold, through a cache that fits, is too small, or is not there."""

import io
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from data import index_cache, shard_cache, tar_reader
from data.shard_cache import CachedShard, ShardCache
from data.snapshot import Snapshot
from data.store import StoreError
from data.tar_reader import ShardReader
from infra.folder_store import FolderStore
from tests.reading_store import CountingStore
from tests.small_dataset import Dataset, read_all, small_dataset


def images_in_tars(store: FolderStore, snapshot: Snapshot) -> list[bytes]:
    """Read the images with the standard library, in order."""
    images: list[bytes] = []
    for shard in snapshot.splits["train"]:
        with tarfile.open(fileobj=io.BytesIO(store.get(shard.path))) as tar:
            for member in tar:
                if member.name.endswith((".png", ".jpg")):
                    file = tar.extractfile(member)
                    assert file is not None
                    images.append(file.read())
    return images


@pytest.mark.parametrize("cached", [True, False])
def test_reads_the_images_and_labels(pristine: Dataset, tmp_path: Path, cached: bool) -> None:
    store, snapshot = pristine
    assert len(snapshot.splits["train"]) > 1
    cache = ShardCache(tmp_path / "cache", 10**9) if cached else None
    read = read_all(ShardReader(store, snapshot.splits["train"], cache), snapshot)
    assert [image.image_bytes for image in read] == images_in_tars(store, snapshot)
    for image in read:
        assert snapshot.classes[image.label] == image.name.split("/")[-2]


def test_few_indexes_are_kept(pristine: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    store, snapshot = pristine
    expected = read_all(ShardReader(store, snapshot.splits["train"], None), snapshot)
    monkeypatch.setattr(index_cache, "_MAX_IDLE_ROWS", 1)
    monkeypatch.setattr(index_cache, "_NUM_READS_IN_USE", 1)
    reader = ShardReader(store, snapshot.splits["train"], None)
    assert read_all(reader, snapshot) == expected
    kept = [reader.is_open(shard) for shard in range(len(snapshot.splits["train"]))]
    assert kept == [False] * (len(kept) - 1) + [True]


@pytest.mark.parametrize("max_open", [1, 128])
def test_a_small_budget_and_few_open_shards(
    pristine: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    max_open: int,
) -> None:
    """A cache that is too small for the window fetched whole shards over and over, and said nothing."""
    store, snapshot = pristine
    monkeypatch.setattr(tar_reader, "_MAX_OPEN_SHARDS", max_open)
    shards = snapshot.splits["train"]
    cache = ShardCache(tmp_path / "cache", max(shard.size_bytes for shard in shards))
    reader = ShardReader(store, shards, cache)
    rng = np.random.default_rng(0)
    for shard in rng.integers(0, len(shards), 30).tolist():
        assert (
            reader.read(shard, 0).image_bytes == ShardReader(store, shards, None).read(shard, 0).image_bytes
        )
        # Evicted shards must not keep their space occupied through open files.
        assert not any(opened is not None and opened.is_evicted for opened in reader._open.values())
        assert len(reader._open) <= max_open
    warnings = [record for record in caplog.messages if "is needed again in the same epoch" in record]
    assert len(warnings) == 1


def test_a_full_disk_evicts_one_shard_for_one(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader's open files kept evicted shards on the disk: every shard was evicted in vain, again and
    again, with a download after each, and then this one was streamed."""
    made, snapshot = small_dataset(tmp_path, num_train=200)
    store, shards = CountingStore(root=made.root), snapshot.splits["train"]
    reader = ShardReader(store, shards, ShardCache(small_disk, 10**9))
    fewest = len(shards)
    for number in range(len(shards)):
        assert reader.read(number, 0).is_cached
        if number > 3:
            fewest = min(fewest, len(list((small_disk / "shards").iterdir())))
    assert len(shards) > 20
    assert fewest >= 4
    assert [store.asked[shard.path] for shard in shards] == [1] * len(shards)
    assert caplog.messages == []


def test_an_eviction_between_opening_and_reading_is_no_damage(
    pristine: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another rank may evict at any time: the image comes from the store, and nothing is called damaged."""
    store, snapshot = pristine
    shards = snapshot.splits["train"]
    expected = ShardReader(store, shards, None).read(0, 0)
    cache = ShardCache(tmp_path / "cache", max(shard.size_bytes for shard in shards))
    reader = ShardReader(store, shards, cache)
    real = reader._cached

    def cached_then_evicted(shard: int) -> CachedShard | None:
        file = real(shard)
        cache.open(store, shards[1])
        return file

    with monkeypatch.context() as patch:
        patch.setattr(reader, "_cached", cached_then_evicted)
        assert reader.read(0, 0) == expected
    assert not reader.is_open(0), "it is to be fetched again, ahead of its next use"
    assert reader.read(0, 0).is_cached
    assert "damaged" not in caplog.text


def test_a_shard_of_every_step_is_fetched_once(
    pristine: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was evicted as the first that was opened, fetched again, and the cache was said to be too small."""
    monkeypatch.setattr(shard_cache, "_TOUCH_EVERY_NS", 0)
    store, snapshot = CountingStore(root=pristine[0].root), pristine[1]
    shards = snapshot.splits["train"]
    budget_bytes = 3 * max(shard.size_bytes for shard in shards)
    assert sum(shard.size_bytes for shard in shards) > budget_bytes
    reader = ShardReader(store, shards, ShardCache(tmp_path / "cache", budget_bytes))
    for other in range(1, len(shards)):
        assert reader.read(0, 0).is_cached
        assert reader.read(other, 0).is_cached
        assert reader.read(0, 1).is_cached
    assert [store.asked[shard.path] for shard in shards] == [1] * len(shards)
    assert caplog.messages == []


def test_what_another_reader_evicts_between_epochs_is_no_thrashing(
    pristine: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, snapshot = pristine
    shards = snapshot.splits["train"]
    cache = ShardCache(tmp_path / "cache", max(shard.size_bytes for shard in shards))
    idle, busy = ShardReader(store, shards, cache), ShardReader(store, shards, cache)
    for _ in range(2):
        idle.start_epoch()
        assert idle.read(0, 0).is_cached
        busy.start_epoch()
        assert busy.read(1, 0).is_cached
    assert caplog.messages == []


def test_a_dataset_larger_than_the_cache_is_no_thrashing(
    pristine: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each epoch fetches every shard once: nothing that a smaller window would cure."""
    store, snapshot = pristine
    shards = snapshot.splits["train"]
    cache = ShardCache(tmp_path / "cache", sum(shard.size_bytes for shard in shards[1:]))
    reader = ShardReader(store, shards, cache)
    for _ in range(2):
        reader.start_epoch()
        for shard in range(len(shards)):
            reader.read(shard, 0)
    assert "is needed again in the same epoch" not in caplog.text


@pytest.mark.parametrize(("budget_bytes", "is_streamed"), [(None, True), (1, True), (10**9, False)])
def test_what_cannot_be_cached_is_streamed(
    pristine: Dataset, tmp_path: Path, budget_bytes: int | None, is_streamed: bool
) -> None:
    store, snapshot = pristine
    cache = None if budget_bytes is None else ShardCache(tmp_path / "cache", budget_bytes)
    reader = ShardReader(store, snapshot.splits["train"], cache)
    assert reader.is_streamed(0) == is_streamed, "known before the first image is read"


@dataclass(frozen=True, kw_only=True)
class SlowStore(FolderStore):
    """Takes its time, and may then fail."""

    asked: list[str] = field(default_factory=list[str])
    fails: bool = False

    def get(self, path: str) -> bytes:
        self.asked.append(path)
        time.sleep(0.2)
        if self.fails:
            raise StoreError("the store is away")
        return super().get(path)


@pytest.mark.parametrize("fails", [False, True])
def test_threads_fetch_an_index_once(pristine: Dataset, fails: bool) -> None:
    """32 images read ahead as an epoch starts each fetched and parsed it, or waited for a store in turn."""
    store, snapshot = pristine
    slow = SlowStore(root=store.root, fails=fails)
    reader = ShardReader(slow, snapshot.splits["train"], None)

    def read(row: int) -> bool:
        try:
            return len(reader.read(0, row).image_bytes) > 0
        except StoreError:
            return False

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read, [0, 1] * 8)) == [not fails] * 16
    assert slow.asked == [snapshot.splits["train"][0].index_path]
