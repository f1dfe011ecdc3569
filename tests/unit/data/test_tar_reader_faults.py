"""Every read is checked; damage of the cache heals, damage of the store is named."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from data.shard_cache import ShardCache
from data.shard_index import read_index
from data.snapshot import Snapshot
from data.store import StoreError
from data.tar_reader import CorruptShardError, ShardReader
from infra.folder_store import FolderStore
from tests.reading_store import CountingStore
from tests.small_dataset import Dataset, read_all, small_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A dataset of the test's own, to be damaged."""
    return small_dataset(tmp_path, num_train=24)


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
    named = shards[0].index_path if lost == "index" else shards[0].path
    if lost == "bit":
        damage(store.root / shards[0].path, first_offset(store, snapshot) + 5)
    elif lost == "end":
        store.put(shards[0].path, store.get(shards[0].path)[: first_offset(store, snapshot) + 5])
    else:
        store.delete(named)
    reader = ShardReader(store, shards, None, missing_shards="skip")
    first = reader.read(0, 0)
    assert first.image_bytes == b""
    assert named in first.problem
    assert (lost == "end") == ("the object is shorter" in first.problem)
    known = (whole[0].label, whole[0].name)
    assert (first.label, first.name) == ((0, f"{shards[0].path}#0") if lost == "index" else known)
    second = reader.read(0, 1)
    assert second == whole[1] if lost == "bit" else second.problem
    assert reader.read(1, 0) == whole[shards[0].num_samples]
    assert [record.getMessage() for record in caplog.records] == [
        f"its samples are left out: {first.problem}"
    ]
