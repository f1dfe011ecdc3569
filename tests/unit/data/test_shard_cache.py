"""The node cache: bounded, crash-safe, shared, and never in the way when it has no room."""

import errno
import fcntl
import hashlib
import logging
import multiprocessing
import os
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from data import shard_cache
from data.errors import InputError
from data.shard_cache import ShardCache
from data.store import StoreError
from data.types import ShardInfo
from infra.folder_store import FolderStore

SHARD_BYTES = 1000


def put_shards(folder: Path, count: int) -> tuple[FolderStore, list[ShardInfo]]:
    store = FolderStore(root=folder / "store")
    shards: list[ShardInfo] = []
    for number in range(count):
        content = bytes([number]) * SHARD_BYTES
        store.put(f"shards/{number}.tar", content)
        shards.append(
            ShardInfo(
                path=f"shards/{number}.tar", index_path="", num_samples=1, size_bytes=SHARD_BYTES, crc32c=0,
                sha256=hashlib.sha256(content).hexdigest(), index_sha256="",
            )
        )  # fmt: skip
    return store, shards


def cached_files(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "shards").iterdir()}


@dataclass(frozen=True, kw_only=True)
class CountingStore(FolderStore):
    """Counts downloads in a file, across processes; slow enough for two to meet."""

    def download(self, path: str, target: Path) -> None:
        with (self.root.parent / "downloads").open("a") as file:
            file.write(f"{path}\n")
        time.sleep(0.2)
        super().download(path, target)


@dataclass(frozen=True, kw_only=True)
class FullDiskStore(FolderStore):
    """Fails as a store does whose target's disk is full, until `num_cached` shards are gone."""

    cache_folder: Path
    most_files: int

    def download(self, path: str, target: Path) -> None:
        if len(cached_files(self.cache_folder)) > self.most_files:
            target.write_bytes(b"half")
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise StoreError(f"{path}: disk full") from error
        super().download(path, target)


def test_reads_what_the_store_holds(tmp_path: Path) -> None:
    store, shards = put_shards(tmp_path, 2)
    cache = pickle.loads(pickle.dumps(ShardCache(tmp_path / "cache", 10_000)))  # noqa: S301
    for number, shard in enumerate(shards):
        cached = cache.open(store, shard)
        assert cached is not None
        assert cached.read(10, 5) == bytes([number]) * 5
    store.delete(shards[0].path)
    assert cache.open(store, shards[0]) is not None


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    store, shards = put_shards(tmp_path, 4)
    cache = ShardCache(tmp_path / "cache", 3 * SHARD_BYTES)
    for index in (0, 1, 2, 0, 3):
        cache.open(store, shards[index])
        time.sleep(0.01)
    assert cached_files(tmp_path / "cache") == {shards[index].sha256 for index in (0, 2, 3)}


def test_an_evicted_shard_stays_readable_while_open(tmp_path: Path) -> None:
    """Another rank's eviction must not break a read under way."""
    store, shards = put_shards(tmp_path, 2)
    cache = ShardCache(tmp_path / "cache", SHARD_BYTES)
    first = cache.open(store, shards[0])
    assert first is not None
    assert not first.is_evicted
    cache.open(store, shards[1])
    assert first.is_evicted
    assert first.read(0, 3) == b"\x00\x00\x00"


def test_no_room_means_streaming_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, shards = put_shards(tmp_path, 2)
    cache = ShardCache(tmp_path / "cache", SHARD_BYTES - 1)
    with caplog.at_level(logging.WARNING):
        assert [cache.open(store, shard) for shard in shards] == [None, None]
    assert len(caplog.records) == 1
    assert "larger than the budget" in caplog.text


def test_full_disk_evicts_then_streams(tmp_path: Path) -> None:
    store, shards = put_shards(tmp_path, 3)
    cache = ShardCache(tmp_path / "cache", 10 * SHARD_BYTES)
    for shard in shards[:2]:
        cache.open(store, shard)
        time.sleep(0.01)
    full = FullDiskStore(root=store.root, cache_folder=tmp_path / "cache", most_files=1)
    assert cache.open(full, shards[2]) is not None
    assert cached_files(tmp_path / "cache") == {shards[1].sha256, shards[2].sha256}
    never = FullDiskStore(root=store.root, cache_folder=tmp_path / "cache", most_files=-1)
    assert cache.open(never, shards[0]) is None
    assert list((tmp_path / "cache" / "incoming").iterdir()) == []


def test_a_fault_of_the_store_is_passed_on(tmp_path: Path) -> None:
    store, shards = put_shards(tmp_path, 2)
    store.delete(shards[0].path)
    store.put(shards[1].path, b"short")
    cache = ShardCache(tmp_path / "cache", 10_000)
    with pytest.raises(StoreError, match=r"0\.tar does not exist"):
        cache.open(store, shards[0])
    with pytest.raises(StoreError, match="has 5 bytes, its snapshot says 1000"):
        cache.open(store, shards[1])
    assert cached_files(tmp_path / "cache") == set()
    assert list((tmp_path / "cache" / "incoming").iterdir()) == []


def open_all(folder: Path, shards: list[ShardInfo]) -> None:
    cache = ShardCache(folder / "cache", 10_000)
    store = CountingStore(root=folder / "store")
    for shard in shards:
        assert cache.open(store, shard) is not None


def test_ranks_fetch_each_shard_once(tmp_path: Path) -> None:
    """Locks lie on files, so threads stand for processes here: each opens the lock anew."""
    _, shards = put_shards(tmp_path, 2)
    with ThreadPoolExecutor(3) as ranks:
        for done in [ranks.submit(open_all, tmp_path, shards) for _ in range(3)]:
            done.result()
    downloads = (tmp_path / "downloads").read_text().split()
    assert sorted(downloads) == sorted(shard.path for shard in shards)


def test_a_long_wait_for_another_process_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shard_cache, "_SILENT_WAIT_S", 0.05)
    store, shards = put_shards(tmp_path, 1)
    cache = ShardCache(tmp_path / "cache", 10_000)
    lock = os.open(tmp_path / "cache" / "locks" / shards[0].sha256[:2], os.O_RDWR)
    with ThreadPoolExecutor(1) as ranks:
        fcntl.flock(lock, fcntl.LOCK_EX)
        opened = ranks.submit(cache.open, store, shards[0])
        while not caplog.records:
            time.sleep(0.01)
        os.close(lock)
        assert opened.result() is not None
    assert "waiting since 0 s for another process to be done with shard shards/0.tar" in caplog.text


@dataclass(frozen=True, kw_only=True)
class StallingStore(FolderStore):
    """Writes half a shard and hangs."""

    def download(self, path: str, target: Path) -> None:
        target.write_bytes(b"half")
        (self.root.parent / "stalled").touch()
        time.sleep(60)


def stall(folder: Path, shard: ShardInfo) -> None:
    ShardCache(folder / "cache", SHARD_BYTES).open(StallingStore(root=folder / "store"), shard)


def test_kill_in_the_middle_of_a_fetch(tmp_path: Path) -> None:
    """The next start removes the half file, gets its room back, and is not blocked by a dead lock."""
    store, shards = put_shards(tmp_path, 1)
    process = multiprocessing.get_context("spawn").Process(target=stall, args=(tmp_path, shards[0]))
    process.start()
    while not (tmp_path / "stalled").exists():
        assert process.is_alive()
        time.sleep(0.02)
    assert process.pid is not None
    ShardCache(tmp_path / "cache", SHARD_BYTES)  # Another rank's start leaves a live download alone.
    assert len(list((tmp_path / "cache" / "incoming").iterdir())) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cache = ShardCache(tmp_path / "cache", SHARD_BYTES)
    assert list((tmp_path / "cache" / "incoming").iterdir()) == []
    cached = cache.open(store, shards[0])
    assert cached is not None
    assert cached.read(0, 10**6) == b"\x00" * SHARD_BYTES


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        ShardCache(tmp_path / "file" / "cache", 1)
    with pytest.raises(InputError, match="budget_bytes is -1"):
        ShardCache(tmp_path, -1)
