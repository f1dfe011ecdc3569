"""Every read is checked; damage of the cache heals, damage of the store is named."""

import io
import tarfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import index_cache, shard_cache, tar_reader
from data.shard_cache import CachedShard, ShardCache
from data.shard_index import read_index
from data.snapshot import Snapshot
from data.store import StoreError
from data.tar_reader import CorruptShardError, ShardReader, StoredImage
from infra.folder_store import FolderStore
from tests.small_dataset import small_dataset

Dataset = tuple[FolderStore, Snapshot]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("pristine"), num_train=24)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A dataset of the test's own, to be damaged."""
    return small_dataset(tmp_path, num_train=24)


def read_all(reader: ShardReader, snapshot: Snapshot) -> list[StoredImage]:
    shards = snapshot.splits["train"]
    return [reader.read(i, row) for i, shard in enumerate(shards) for row in range(shard.num_samples)]


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


def damage(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def first_offset(store: FolderStore, snapshot: Snapshot) -> int:
    return read_index(store, snapshot.splits["train"][0]).column("offset")[0].as_py()


@pytest.mark.parametrize("fault", ["bit", "short"])
def test_a_damaged_cache_heals(pristine: Dataset, tmp_path: Path, fault: str) -> None:
    store, snapshot = pristine
    shards = snapshot.splits["train"]
    cache = ShardCache(tmp_path / "cache", 10**9)
    expected = read_all(ShardReader(store, shards, cache), snapshot)
    for file in (tmp_path / "cache" / "shards").iterdir():
        if fault == "bit":
            damage(file, first_offset(store, snapshot) + 5)
        else:
            file.write_bytes(file.read_bytes()[:1000])
    healed = read_all(ShardReader(store, shards, cache), snapshot)
    assert [image[:3] for image in healed] == [image[:3] for image in expected]
    assert any(image.is_fetched_again for image in healed)
    assert read_all(ShardReader(store, shards, cache), snapshot) == expected
    assert not any(image.is_fetched_again for image in expected)


@pytest.mark.parametrize("cached", [True, False])
def test_a_damaged_shard_is_named(dataset: Dataset, tmp_path: Path, cached: bool) -> None:
    store, snapshot = dataset
    shards = snapshot.splits["train"]
    damage(store.root / shards[0].path, first_offset(store, snapshot) + 5)
    cache = ShardCache(tmp_path / "cache", 10**9) if cached else None
    reader = ShardReader(store, shards, cache)
    with pytest.raises(CorruptShardError, match=rf"{shards[0].path} is damaged: row 0 .* its index says"):
        reader.read(0, 0)
    reader.read(0, 1)


def test_a_vanished_shard_is_named(dataset: Dataset, tmp_path: Path) -> None:
    store, snapshot = dataset
    shard = snapshot.splits["train"][1]
    store.delete(shard.path)
    reader = ShardReader(store, snapshot.splits["train"], ShardCache(tmp_path / "cache", 10**9))
    with pytest.raises(StoreError, match=rf"{shard.path} does not exist"):
        reader.read(1, 0)


def test_a_wrong_index_is_refused(dataset: Dataset) -> None:
    store, snapshot = dataset
    shards = snapshot.splits["train"]
    wrong_count = replace(shards[0], num_samples=shards[0].num_samples + 1)
    with pytest.raises(CorruptShardError, match=f"its snapshot says {wrong_count.num_samples}"):
        ShardReader(store, [wrong_count], None).read(0, 0)
    store.put(shards[1].index_path, store.get(shards[0].index_path))
    with pytest.raises(StoreError, match="is damaged: sha256"):
        ShardReader(store, shards, None).read(1, 0)


@dataclass(frozen=True, kw_only=True)
class NoisyIndexes(FolderStore):
    """Damages the first readings of an index, each elsewhere or all alike."""

    num_damaged: int
    elsewhere: bool = True
    reads: list[str] = field(default_factory=list[str])

    def get(self, path: str) -> bytes:
        content = bytearray(super().get(path))
        self.reads.append(path)
        if len(self.reads) <= self.num_damaged:
            content[len(self.reads) if self.elsewhere else 0] ^= 1
        return bytes(content)


def test_an_index_damaged_on_its_way_is_not_a_lost_shard(pristine: Dataset) -> None:
    shards = pristine[1].splits["train"]

    def reader(**choices: Any) -> ShardReader:
        store = NoisyIndexes(root=pristine[0].root, **choices)
        return ShardReader(store, shards, None, missing_shards="skip")

    assert reader(num_damaged=1).read(0, 0).image_bytes
    with pytest.raises(StoreError, match="came wrong twice, each time another way"):
        reader(num_damaged=2).read(0, 0)
    assert "is damaged: sha256" in reader(num_damaged=2, elsewhere=False).read(0, 0).problem


@dataclass(frozen=True, kw_only=True)
class CountingStore(FolderStore):
    """Counts what is asked of it, by path."""

    asked: Counter[str] = field(default_factory=Counter[str])

    def get(self, path: str) -> bytes:
        self.asked[path] += 1
        return super().get(path)

    def download(self, path: str, target: Path) -> None:
        self.asked[path] += 1
        super().download(path, target)


@pytest.mark.parametrize("lost", ["tar", "short tar", "index", "damaged index"])
def test_a_wholly_lost_shard_is_not_asked_for_again(dataset: Dataset, tmp_path: Path, lost: str) -> None:
    store, snapshot = CountingStore(root=dataset[0].root), dataset[1]
    shard = snapshot.splits["train"][0]
    path = shard.path if "tar" in lost else shard.index_path
    if lost in ("tar", "index"):
        store.delete(path)
    else:
        store.put(path, (store.root / path).read_bytes()[:-100])
    cache = ShardCache(tmp_path / "cache", 10**9)
    reader = ShardReader(store, snapshot.splits["train"], cache, missing_shards="skip")
    assert not reader.is_open(0)
    problems = {reader.read(0, row).problem for row in range(shard.num_samples) for _ in range(3)}
    assert len(problems) == 1
    assert path in problems.pop()
    assert store.asked[path] == (2 if lost == "damaged index" else 1)
    assert reader.is_open(0), "there is nothing to fetch ahead"


def test_a_cached_copy_of_a_damaged_shard_stays(dataset: Dataset, tmp_path: Path) -> None:
    store, snapshot = CountingStore(root=dataset[0].root), dataset[1]
    shard = snapshot.splits["train"][0]
    damage(store.root / shard.path, first_offset(store, snapshot) + 5)
    cache = ShardCache(tmp_path / "cache", 10**9)
    reader = ShardReader(store, snapshot.splits["train"], cache, missing_shards="skip")
    for _ in range(3):
        assert reader.read(0, 0).problem
        assert reader.read(0, 1).is_cached
    assert store.asked[shard.path] == 1


@dataclass(frozen=True, kw_only=True)
class NoisyStore(FolderStore):
    """Damages three answers of four, each elsewhere."""

    reads: list[str] = field(default_factory=list[str])

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        content = bytearray(super().get_range(path, start, size_bytes))
        self.reads.append(path)
        if len(self.reads) % 4:
            content[len(self.reads) % len(content)] ^= 1
        return bytes(content)


def test_bytes_damaged_on_their_way_are_read_again(pristine: Dataset) -> None:
    """Two damaged answers in a row once counted as damage of the store."""
    store, snapshot = pristine
    noisy = NoisyStore(root=store.root)
    expected = read_all(ShardReader(store, snapshot.splits["train"], None), snapshot)
    found = read_all(ShardReader(noisy, snapshot.splits["train"], None), snapshot)
    assert found == [image._replace(is_fetched_again=True) for image in expected]
    assert len(noisy.reads) == 4 * len(expected)


@pytest.mark.parametrize("lost", ["tar", "index", "bit", "end"])
def test_a_lost_shard_is_skipped_by_config(
    dataset: Dataset, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, snapshot = dataset
    shards = snapshot.splits["train"]
    whole = read_all(ShardReader(store, shards[:2], None), replace(snapshot, splits={"train": shards[:2]}))
    if lost == "bit":
        damage(store.root / shards[0].path, first_offset(store, snapshot) + 5)
    elif lost == "end":
        store.put(shards[0].path, store.get(shards[0].path)[: first_offset(store, snapshot) + 5])
    else:
        store.delete(shards[0].path if lost == "tar" else shards[0].index_path)
    reader = ShardReader(store, shards, None, missing_shards="skip")
    first = reader.read(0, 0)
    assert first.image_bytes == b""
    assert f"{shards[0].path[:-4]}." in first.problem
    assert (lost == "end") == ("the object is shorter" in first.problem)
    known = (whole[0].label, whole[0].name)
    assert (first.label, first.name) == ((0, f"{shards[0].path}#0") if lost == "index" else known)
    second = reader.read(0, 1)
    assert second == whole[1] if lost == "bit" else second.problem
    assert reader.read(1, 0) == whole[shards[0].num_samples]
    assert [record.getMessage() for record in caplog.records] == [
        f"its samples are left out: {first.problem}"
    ]
