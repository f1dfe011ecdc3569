"""On a disk without room the cache evicts what frees it, and no more."""

import os
import subprocess
from pathlib import Path

import pytest

from data import shard_cache
from data.shard_cache import CachedShard, ShardCache
from infra.folder_store import FolderStore
from tests.cached_shards import CountingStore, cached_files, downloads, put_shards
from tests.faults.full_disk import fill_disk

DISK_SHARD_BYTES = 16384


def test_a_full_disk_evicts_one_shard_for_one(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Unlinked shards stayed on the disk in readers of any process: each eviction, and each download
    after it, was in vain, until the cache was empty."""
    _, shards = put_shards(tmp_path, 13, DISK_SHARD_BYTES)
    store = CountingStore(root=tmp_path / "store")
    fill_disk(small_disk, leave_bytes=5 * DISK_SHARD_BYTES + 4096)
    cache = ShardCache(small_disk, 10**9)
    held: list[CachedShard] = []
    for number, shard in enumerate(shards):
        cached = cache.open(store, shard)
        assert cached is not None
        assert cached.read(0, DISK_SHARD_BYTES) == bytes([number]) * DISK_SHARD_BYTES
        held.append(cached)
    assert downloads(tmp_path) == [shard.path for shard in shards]
    assert [cached.is_evicted for cached in held] == [True] * 8 + [False] * 5
    assert cached_files(small_disk) == {shard.sha256 for shard in shards[-5:]}
    assert list((small_disk / "incoming").iterdir()) == []
    assert caplog.messages == []


def test_a_shard_larger_than_the_disk_evicts_nothing(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole cache went for a shard that could never have room."""
    _, shards = put_shards(tmp_path, 3, DISK_SHARD_BYTES)
    _, large = put_shards(tmp_path / "large", 2, 8 * DISK_SHARD_BYTES)
    cache = ShardCache(small_disk, 10**9)
    for shard in shards:
        assert cache.open(FolderStore(root=tmp_path / "store"), shard) is not None
    for shard in large:
        assert cache.open(CountingStore(root=tmp_path / "large" / "store"), shard) is None
    assert not (tmp_path / "large" / "downloads").exists()
    assert cached_files(small_disk) == {shard.sha256 for shard in shards}
    assert list((small_disk / "incoming").iterdir()) == []
    (warning,) = caplog.messages
    assert "no room for shard" in warning


def test_eviction_on_a_full_disk_stops_where_it_frees_nothing(small_disk: Path, tmp_path: Path) -> None:
    """Here something else holds the bytes: one eviction shows it, and the other shards stay."""
    _, shards = put_shards(tmp_path, 5, DISK_SHARD_BYTES)
    store = CountingStore(root=tmp_path / "store")
    cache = ShardCache(small_disk, 10**9)
    for shard in shards[:4]:
        assert cache.open(store, shard) is not None
        os.link(small_disk / "shards" / f"{shard.sha256}.tar", small_disk / shard.sha256)
    fill_disk(small_disk)
    assert cache.open(store, shards[4]) is None
    assert len(downloads(tmp_path)) == 4
    assert cached_files(small_disk) == {shard.sha256 for shard in shards[1:4]}


def test_a_disk_that_is_full_but_says_otherwise(small_disk: Path, tmp_path: Path) -> None:
    """Without inodes no folder can be made, which stopped the reader; then no file can be written."""
    _, shards = put_shards(tmp_path, 4)
    store = CountingStore(root=tmp_path / "store")
    cache = ShardCache(small_disk, 10**9)
    for shard in shards[:3]:
        assert cache.open(store, shard) is not None
    status = os.statvfs(small_disk)
    options = f"remount,nr_inodes={status.f_files - status.f_ffree}"
    subprocess.run(["mount", "-o", options, str(small_disk)], check=True)
    assert cache.open(store, shards[3]) is not None
    assert downloads(tmp_path)[3:] == [shards[3].path] * 2
    assert cached_files(small_disk) == {shard.sha256 for shard in shards[2:]}


def test_a_file_system_that_does_not_tell_its_size_is_not_full() -> None:
    assert os.statvfs("/proc").f_bavail == 0
    assert shard_cache._free_bytes(Path("/proc")) > 2**60
