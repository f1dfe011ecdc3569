"""A folder, local or on NFS, as a `data.store.Store`."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.store import (
    ObjectInfo,
    ObjectNotFoundError,
    ObjectTooShortError,
    StoreError,
    StoreRefusedError,
)
from data.temporary_folder import DISK_FULL_ERRNOS

# Half-written files carry this prefix until they are renamed; listings leave them out.
_PARTIAL_PREFIX = ".coatnet-partial-"
_ABSENT_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_FORBIDDEN_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def check_object_path(path: str) -> str:
    """Return `path` unchanged, or raise `InputError` where it could leave the store's root.

    The rules are S3's and a file system's at once, so that a dataset can move between both.
    """
    segments = path.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or "\0" in path:
        raise InputError(
            f"object path {path!r} is not allowed: it must be relative, with no empty, '.' or '..' part"
        )
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderStore:
    """A store below the absolute folder `root`, which is made on the first write.

    Writes go to a hidden neighbour that is flushed to the disk and renamed, so a reader sees an
    object whole or not at all, also after a crash of the machine.
    """

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_absolute():
            raise InputError(f"store folder {str(self.root)!r} is not absolute: give the whole path")

    @property
    def uri(self) -> str:
        """`file:///path`, percent-encoded: a space reads `%20`."""
        return self.root.as_uri().rstrip("/")

    def sub(self, path: str) -> "FolderStore":
        """Return the store rooted at `path` below this one."""
        return FolderStore(root=self._locate(path))

    def get(self, path: str) -> bytes:
        """Return the object's bytes."""
        # Neither buffered nor by `Path.read_bytes`, which takes twice as long for a small image.
        with self._faults_named(path), open(f"{self.root}/{check_object_path(path)}", "rb", 0) as file:
            return file.read()

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        """Return exactly `size_bytes` bytes from `start`; a shorter object is an `ObjectTooShortError`."""
        with self._faults_named(path), self._locate(path).open("rb") as file:
            file.seek(start)
            content = file.read(size_bytes)
        if len(content) != size_bytes:
            raise ObjectTooShortError(
                f"{self.uri}/{path}: wanted {size_bytes} bytes from {start}, found {len(content)}; "
                "the object is shorter than its index says"
            )
        return content

    def download(self, path: str, target: Path) -> None:
        """Copy an object to a file that appears whole or not at all."""
        with self._faults_named(path, written=target), _whole_file(target) as partial:
            shutil.copyfile(self._locate(path), partial)

    def put(self, path: str, content: bytes) -> None:
        """Write or replace an object."""
        with self._faults_named(path), _whole_file(self._locate(path)) as partial:
            partial.write_bytes(content)

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Write unless the object exists; of several writers exactly one gets True.

        It needs a file system with hard links, as every local Unix one and NFS have.
        """
        target = self._locate(path)
        with self._faults_named(path):
            partial = _partial_beside(target)
            try:
                partial.write_bytes(content)
                _flush(partial)
                try:
                    os.link(partial, target)
                except FileExistsError:
                    # NFS may repeat a link whose answer got lost, and then refuses its own work.
                    return partial.stat().st_nlink > 1
                _flush(target.parent)
                return True
            finally:
                partial.unlink(missing_ok=True)

    def upload(self, source: Path, path: str, *, keep_source: bool = True) -> None:
        """Write the file `source` as an object; one that need not be kept is moved, on the same disk."""
        with self._faults_named(path), _whole_file(self._locate(path)) as partial:
            if keep_source or not _moved(source, partial):
                shutil.copyfile(source, partial)

    def exists(self, path: str) -> bool:
        """Say whether the object is there."""
        return self._locate(path).is_file()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below the folder `prefix` ("" for all), sorted by path.

        Links to folders are followed; a link to a folder above itself is an `InputError`.
        """
        folder = self._locate(prefix) if prefix else self.root
        with self._faults_named(prefix):
            if folder.is_dir():
                yield from _walk(folder, f"{prefix}/" if prefix else "", ())

    def scan(self) -> Iterator[ObjectInfo]:
        """Yield every object; a folder at a time is held in memory."""
        return self.list()

    def delete(self, path: str) -> None:
        """Remove an object; absent is fine."""
        with contextlib.suppress(ObjectNotFoundError), self._faults_named(path):
            self._locate(path).unlink()

    def _locate(self, path: str) -> Path:
        return self.root / check_object_path(path)

    @contextmanager
    def _faults_named(self, path: str, written: Path | None = None) -> Generator[None]:
        """Turn an `OSError` into a `StoreError` that names the object, or the full disk's file `written`."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            uri = f"{self.uri}/{path}"
            if error.errno in _ABSENT_ERRNOS:
                raise ObjectNotFoundError(f"{uri} does not exist") from error
            is_full = written is not None and error.errno in DISK_FULL_ERRNOS
            raise named_fault(str(written) if is_full else uri, error) from error


def named_fault(what: str, error: OSError) -> StoreError:
    """Return the file system's error as a `StoreError` that names its object and keeps the errno."""
    kind = StoreRefusedError if error.errno in DISK_FULL_ERRNOS | _FORBIDDEN_ERRNOS else StoreError
    fault = kind(f"{what}: {error.strerror or error}")
    fault.errno = error.errno
    return fault


def _partial_beside(target: Path) -> Path:
    """Name a file in the target's folder, so that the rename stays in one file system."""
    _make_folder(target.parent)
    return target.parent / f"{_PARTIAL_PREFIX}{uuid.uuid4().hex}"


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each flushed: a crash of the machine loses none with its files."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _moved(source: Path, target: Path) -> bool:
    """Rename a file; False where the two are on different disks."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


@contextmanager
def _whole_file(target: Path) -> Generator[Path]:
    """Give a path to write to, and rename it to `target` when the block ends well."""
    partial = _partial_beside(target)
    try:
        yield partial
        _flush(partial)
        partial.replace(target)
        _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[ObjectInfo]:
    """Yield the objects below `folder` sorted by path; `above` identifies the folders around it."""
    stat = folder.stat()
    identity = (stat.st_dev, stat.st_ino)
    if identity in above:
        raise InputError(f"{folder} links to a folder above itself: remove the link")
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(_PARTIAL_PREFIX)]
    except PermissionError as error:
        raise named_fault(str(folder), error) from error
    # A folder sorts as its contents do: "a.png" stands before "a/b" because "." < "/".
    for entry in sorted(entries, key=lambda e: f"{e.name}/" if e.is_dir() else e.name):
        if not _is_utf8(entry.name):
            raise InputError(f"the name of {entry.path!r} is not valid UTF-8: rename it")
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, identity))
        elif entry.is_file() or entry.is_symlink():  # a link to nothing: whoever reads it finds it missing
            try:
                info = entry.stat(follow_symlinks=entry.is_file())
            except FileNotFoundError:
                continue  # deleted since the folder was read
            yield ObjectInfo(
                path=f"{prefix}{entry.name}",
                size_bytes=info.st_size,
                etag=str(info.st_mtime_ns),
                modified_s=info.st_mtime,
            )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
