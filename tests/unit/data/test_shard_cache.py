"""The node cache: bounded, crash-safe, shared, and never in the way when it has no room."""

import fcntl
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
from tests.cached_shards import SHARD_BYTES, CountingStore, cached_files, downloads, put_shards


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


@pytest.mark.parametrize("same_process", [True, False])
def test_a_shard_that_is_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_process: bool
) -> None:
    """A shard read at every step went first if it was opened first: only opening counted as use."""
    monkeypatch.setattr(shard_cache, "_TOUCH_EVERY_NS", 0)
    _, shards = put_shards(tmp_path, 13)
    store = CountingStore(root=tmp_path / "store")
    cache = ShardCache(tmp_path / "cache", 4 * SHARD_BYTES)
    read = cache.open(store, shards[0])
    assert read is not None
    other = cache if same_process else ShardCache(tmp_path / "cache", 4 * SHARD_BYTES)
    for shard in shards[1:]:
        assert len(read.read(0, 10)) == 10
        assert other.open(store, shard) is not None
    assert sorted(downloads(tmp_path)) == sorted(shard.path for shard in shards)
    assert cached_files(tmp_path / "cache") == {shards[index].sha256 for index in (0, 10, 11, 12)}


def test_reading_seldom_touches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each touch is a system call and a write to the disk's metadata. A clock set back must not stop them."""
    store, shards = put_shards(tmp_path, 1)
    cache = ShardCache(tmp_path / "cache", 10_000)
    now_ns, touches = 10**18, list[int]()
    real = os.utime

    def utime(descriptor: int, *, ns: tuple[int, int]) -> None:
        touches.append(ns[0])
        real(descriptor, ns=ns)

    monkeypatch.setattr(time, "time_ns", lambda: now_ns)
    monkeypatch.setattr(os, "utime", utime)
    cached = cache.open(store, shards[0])
    assert cached is not None
    for _ in range(3000):
        now_ns += 10**6
        assert len(cached.read(0, 10)) == 10
    assert touches == [10**18 + second * 10**9 for second in range(4)]
    now_ns = 10**17
    assert len(cached.read(0, 10)) == 10
    (file,) = (tmp_path / "cache" / "shards").iterdir()
    assert file.stat().st_mtime_ns == 10**17


def test_an_evicted_shard_takes_no_space_while_it_is_open(tmp_path: Path) -> None:
    """An idle reader, or another rank, kept the bytes of evicted shards on the disk, beyond the budget."""
    store, shards = put_shards(tmp_path, 2)
    cache = ShardCache(tmp_path / "cache", SHARD_BYTES)
    first = cache.open(store, shards[0])
    assert first is not None
    assert not first.is_evicted
    cache.open(store, shards[1])
    assert first.is_evicted
    assert os.fstat(first._descriptor).st_blocks == 0
    assert first.read(0, 3) == b""


def test_eviction_leaves_bytes_alone_that_have_another_name(tmp_path: Path) -> None:
    store, shards = put_shards(tmp_path, 2)
    cache = ShardCache(tmp_path / "cache", SHARD_BYTES)
    cache.open(store, shards[0])
    os.link(tmp_path / "cache" / "shards" / f"{shards[0].sha256}.tar", tmp_path / "kept")
    cache.open(store, shards[1])
    assert cached_files(tmp_path / "cache") == {shards[1].sha256}
    assert (tmp_path / "kept").read_bytes() == store.get(shards[0].path)


def test_no_room_means_streaming_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, shards = put_shards(tmp_path, 2)
    cache = ShardCache(tmp_path / "cache", SHARD_BYTES - 1)
    with caplog.at_level(logging.WARNING):
        assert [cache.open(store, shard) for shard in shards] == [None, None]
    assert len(caplog.records) == 1
    assert "larger than the budget" in caplog.text


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
    store = CountingStore(root=folder / "store", delay_s=0.2)
    for shard in shards:
        assert cache.open(store, shard) is not None


def test_ranks_fetch_each_shard_once(tmp_path: Path) -> None:
    """Locks lie on files, so threads stand for processes here: each opens the lock anew."""
    _, shards = put_shards(tmp_path, 2)
    with ThreadPoolExecutor(3) as ranks:
        for done in [ranks.submit(open_all, tmp_path, shards) for _ in range(3)]:
            done.result()
    assert sorted(downloads(tmp_path)) == sorted(shard.path for shard in shards)


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
