"""Whole shards on the node's disk, shared by all ranks of the node, within a byte budget.

Files are named by content (the shard's sha256) and appear by rename, so a crash leaves nothing that
could be mistaken for a shard. `flock` keeps two processes from fetching the same shard; the kernel
drops it with its process, so a kill -9 blocks nobody. An evicted file is emptied as well as unlinked:
readers of any process may have it open, and would keep its bytes on the disk, beyond the budget.

    FOLDER/shards/SHA256.tar            whole shards; modification time = last read
    FOLDER/incoming/SHA256-SIZE/        a download under way; counts as SIZE bytes of the budget
    FOLDER/locks/                       257 empty files
"""

import fcntl
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import InputError
from data.store import CorruptShardError, Store
from data.temporary_folder import DISK_FULL_ERRNOS
from data.types import ShardInfo

_log = logging.getLogger(__name__)

_BUDGET_LOCK = "budget"
_SILENT_WAIT_S = 10.0
_TOUCH_EVERY_NS = 10**9
"""So exactly a file tells when it was last read. A microsecond a shard in use; shards stay for minutes."""


class CachedShard:
    """An open shard. Reads come short once its file is evicted; closes with its last reference."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._touched_ns = 0
        self._touch()

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` bytes from `offset`; for several threads at once."""
        self._touch()
        return os.pread(self._descriptor, size_bytes, offset)

    def _touch(self) -> None:
        """Tell all processes, through the file, that the shard is in use: least recently read goes first."""
        now_ns = time.time_ns()  # The kernel's own stamps may be equal for some milliseconds.
        if abs(now_ns - self._touched_ns) >= _TOUCH_EVERY_NS:
            self._touched_ns = now_ns
            with suppress(OSError):  # Some file systems need room even for this: only the order suffers.
                os.utime(self._descriptor, ns=(now_ns, now_ns))

    @property
    def is_evicted(self) -> bool:
        """Say whether the file is gone: a short read is then no damage."""
        return os.fstat(self._descriptor).st_nlink == 0


class ShardCache:
    """A folder of shards with a budget. For any number of processes and threads; picklable.

    Raises `InputError` when the folder cannot be used.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise InputError(f"the cache's budget_bytes is {budget_bytes}; it must not be negative.")
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._has_warned = False
        try:
            for part in ("shards", "incoming", "locks"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            for name in (_BUDGET_LOCK, *(f"{number:02x}" for number in range(256))):
                (folder / "locks" / name).touch(0o600)  # Now: a full disk must not stop locking later.
        except OSError as error:
            raise InputError(
                f"the cache folder {folder} cannot be made: {error.strerror}; choose another one."
            ) from error
        self._sweep_incoming()

    def open(self, store: Store, shard: ShardInfo) -> CachedShard | None:
        """Open a shard, fetching it first if need be; None where it has no room: stream it.

        Waits while another process fetches it. Raises `StoreError` when it cannot be fetched.
        """
        cached = self._open_file(shard)
        if cached is not None:
            return cached
        if not self.has_room_for(shard):
            size = f"shard {shard.path} is larger than the budget of {self._budget_bytes} bytes"
            self._warn_once(f"{size}; reading from the store")
            return None
        with self._lock(shard.sha256[:2], f"shard {shard.path}"):
            cached = self._open_file(shard)  # The process that held the lock may have fetched it.
            if cached is None and self._fetch(store, shard):
                cached = self._open_file(shard)
            return cached

    def has_room_for(self, shard: ShardInfo) -> bool:
        """Say whether the budget is large enough for a shard; the disk may still be full."""
        return shard.size_bytes <= self._budget_bytes

    def discard(self, shard: ShardInfo) -> None:
        """Remove a shard whose file turned out to be damaged."""
        self._file(shard).unlink(missing_ok=True)

    def warn_of_thrashing(self, shard: ShardInfo) -> None:
        """Say, unless its size was told of before, that a shard is fetched again in the same epoch."""
        self._warn_once(
            f"shard {shard.path} was evicted and is needed again in the same epoch; give the cache more "
            f"(its budget is {self._budget_bytes} bytes), or lower shuffle_window"
        )

    def _file(self, shard: ShardInfo) -> Path:
        return self._folder / "shards" / f"{shard.sha256}.tar"

    def _open_file(self, shard: ShardInfo) -> CachedShard | None:
        try:
            descriptor = os.open(self._file(shard), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return CachedShard(descriptor)

    def _fetch(self, store: Store, shard: ShardInfo) -> bool:
        """Download a shard under its lock; False where neither budget nor disk has room."""
        incoming = self._folder / "incoming" / f"{shard.sha256}-{shard.size_bytes}"
        is_disk_full = False
        try:
            while True:
                try:
                    if not self._reserve(incoming, shard.size_bytes, is_disk_full=is_disk_full):
                        break
                    store.download(shard.path, incoming / "shard.tar")
                    self._check_size(incoming / "shard.tar", store, shard)
                    (incoming / "shard.tar").replace(self._file(shard))
                    return True
                except OSError as error:
                    if not _is_disk_full(error):
                        raise
                shutil.rmtree(incoming, ignore_errors=True)
                is_disk_full = True
            self._warn_once(
                f"no room for shard {shard.path} ({shard.size_bytes} bytes); reading from the store"
            )
            return False
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    @staticmethod
    def _check_size(file: Path, store: Store, shard: ShardInfo) -> None:
        size_bytes = file.stat().st_size
        if size_bytes != shard.size_bytes:
            raise CorruptShardError(
                f"{store.uri}/{shard.path} has {size_bytes} bytes, its snapshot says {shard.size_bytes}; "
                "restore it or build the dataset again"
            )

    def _reserve(self, incoming: Path, size_bytes: int, *, is_disk_full: bool) -> bool:
        """Evict until budget and disk have room for a download, and take that room.

        `is_disk_full`: a download has failed, whatever the disk says of its room (quotas, inodes).
        """
        with self._lock(_BUDGET_LOCK, "the budget"):
            while self._used_bytes() + size_bytes > self._budget_bytes:
                if not self._evict_oldest():
                    return False
            is_disk_full = is_disk_full or _free_bytes(self._folder) < size_bytes
            if is_disk_full and not self._make_room(size_bytes):
                return False
            incoming.mkdir(exist_ok=True)
            return True

    def _make_room(self, size_bytes: int) -> bool:
        """Evict at least one shard, and on until so much of the disk is free; False where that is in vain."""
        free_bytes = _free_bytes(self._folder)
        if free_bytes + sum(cached_bytes for _, cached_bytes, _ in self._files()) < size_bytes:
            return False
        while self._evict_oldest():
            before, free_bytes = free_bytes, _free_bytes(self._folder)
            if free_bytes >= size_bytes:
                return True
            if free_bytes <= before:  # Something else holds or takes the space.
                return False
        return False

    def _used_bytes(self) -> int:
        on_their_way = sum(
            int(entry.name.rpartition("-")[2]) for entry in os.scandir(self._folder / "incoming")
        )
        return on_their_way + sum(size_bytes for _, size_bytes, _ in self._files())

    def _files(self) -> list[tuple[int, int, str]]:
        """Return (last read in ns, size in bytes, path) of each shard."""
        found: list[tuple[int, int, str]] = []
        for entry in os.scandir(self._folder / "shards"):
            try:
                status = entry.stat()
            except FileNotFoundError:  # Another process discarded it meanwhile.
                continue
            found.append((status.st_mtime_ns, status.st_size, entry.path))
        return found

    def _evict_oldest(self) -> bool:
        files = self._files()
        if not files:
            return False
        _evict(min(files)[2])
        return True

    def _sweep_incoming(self) -> None:
        """Remove what killed processes left: downloads whose lock nobody holds."""
        for entry in os.scandir(self._folder / "incoming"):
            with self._lock(entry.name[:2], entry.name, wait=False) as is_held:
                if is_held:
                    shutil.rmtree(entry.path, ignore_errors=True)

    @contextmanager
    def _lock(self, name: str, what: str, *, wait: bool = True) -> Generator[bool]:
        """Hold a lock file, against threads as well as processes; False without `wait` if taken."""
        descriptor = os.open(self._folder / "locks" / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                _wait_for_lock(descriptor, what)
            yield True
        finally:
            os.close(descriptor)

    def _warn_once(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("the cache %s is too small for what is in use: %s", self._folder, reason)


def _evict(path: str) -> None:
    """Unlink a shard's file and free its space, whoever has it open."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # Another process discarded it meanwhile.
        return
    try:
        Path(path).unlink(missing_ok=True)  # First: readers must be able to tell a short read from damage.
        if os.fstat(descriptor).st_nlink == 0:  # Under another name the bytes are not ours alone.
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    if status.f_blocks == 0:  # A file system without a limit, or that does not tell.
        return sys.maxsize
    return status.f_bavail * status.f_frsize


def _wait_for_lock(descriptor: int, what: str) -> None:
    """Take a lock that another thread or process has; say so where that takes long."""
    message = "waiting since %.0f s for another process to be done with %s"
    warning = threading.Timer(_SILENT_WAIT_S, _log.warning, (message, _SILENT_WAIT_S, what))
    warning.daemon = True
    warning.start()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        warning.cancel()


def _is_disk_full(error: BaseException | None) -> bool:
    """Look through the causes: a store wraps the file system's error in its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
            return True
        error = error.__cause__ or error.__context__
    return False
