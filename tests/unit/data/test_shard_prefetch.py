"""Shards come into the cache before the order reaches them, and faults are left to the reader."""

import threading
import time
from pathlib import Path

import pytest

from data.shard_cache import ShardCache
from data.shard_prefetch import ShardPrefetch
from data.store import StoreError
from data.tar_reader import ShardReader
from infra.folder_store import FolderStore
from tests.small_dataset import small_dataset


def cached_files(folder: Path) -> set[str]:
    return {file.name for file in (folder / "shards").iterdir()}


def test_wanted_shards_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, snapshot = small_dataset(tmp_path / "data")
    shards = snapshot.splits["train"]
    assert len(shards) >= 3
    downloads: list[str] = []
    real = FolderStore.download

    def download(self: FolderStore, path: str, target: Path) -> None:
        downloads.append(path)
        real(self, path, target)

    monkeypatch.setattr(FolderStore, "download", download)
    reader = ShardReader(store, shards, ShardCache(tmp_path / "cache", 10**9))
    prefetch = ShardPrefetch(reader)
    for _ in range(50):
        prefetch.want([2, 0])
    while not (reader.is_open(2) and reader.is_open(0)):
        time.sleep(0.01)
    prefetch.want([0, 2])
    prefetch.close()
    assert cached_files(tmp_path / "cache") == {f"{shards[index].sha256}.tar" for index in (0, 2)}
    assert sorted(downloads) == sorted(shards[index].path for index in (0, 2))
    assert not reader.is_open(1)


def test_without_a_cache_only_the_index_comes(tmp_path: Path) -> None:
    store, snapshot = small_dataset(tmp_path / "data")
    reader = ShardReader(store, snapshot.splits["train"], None)
    prefetch = ShardPrefetch(reader)
    prefetch.want([0])
    while not reader.is_open(0):
        time.sleep(0.01)
    prefetch.close()
    for shard in snapshot.splits["train"]:
        (store.root / shard.index_path).unlink()
    assert reader.read(0, 0).image_bytes


def test_a_fault_is_logged_and_raised_where_the_shard_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, snapshot = small_dataset(tmp_path / "data")
    shards = snapshot.splits["train"]
    (store.root / shards[1].path).unlink()
    reader = ShardReader(store, shards, ShardCache(tmp_path / "cache", 10**9))
    prefetch = ShardPrefetch(reader)
    prefetch.want([1])
    while "could not be fetched" not in caplog.text:
        time.sleep(0.01)
    prefetch.close()
    assert "could not be fetched ahead of its use" in caplog.text
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    with pytest.raises(StoreError, match=shards[1].path):
        reader.read(1, 0)
