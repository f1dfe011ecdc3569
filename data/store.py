"""What the pipeline needs of an object store; `infra.store` implements it for S3 and folders."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One object of a listing."""

    path: str
    """Relative to the store's root, with `/` as separator."""
    size_bytes: int
    etag: str
    """The store's etag, or the modification time in ns for a folder."""
    modified_s: float
    """When it was last written, by the store's clock: seconds since 1970, in S3 whole ones."""


class StoreError(OSError):
    """A fault of the store that retries did not cure."""


class StoreRefusedError(StoreError):
    """No space left, or no right to read or write: no retry helps, a person must act."""


class ObjectNotFoundError(StoreError):
    """The object does not exist. The message names its full URI."""


class ObjectTooShortError(StoreError):
    """The object ends before the range that was asked for. The message names its full URI."""


class CorruptShardError(StoreError):
    """A shard's bytes are not those that its index or snapshot names, in the store as well."""


class RangeSource(Protocol):
    """What can be read by ranges: every `Store`, and less than one."""

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        """Read part of an object."""
        ...


class ImageSource(RangeSource, Protocol):
    """Where the images of a listing are read: every `Store`, and less than one. It is picklable."""

    @property
    def uri(self) -> str:
        """Of the corpus, for messages and receipts."""
        ...

    def get(self, path: str) -> bytes:
        """Read an object. Raises `ObjectNotFoundError`."""
        ...


class Store(Protocol):
    """A prefix in an object store. Paths are relative to it. Implementations are picklable.

    A reader never sees half an object. Transient faults are retried inside; what is raised
    after that is a `StoreError`.
    """

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix` or `file:///path`, without a trailing slash."""
        ...

    def sub(self, path: str) -> "Store":
        """Return the store rooted at `path` below this one."""
        ...

    def get(self, path: str) -> bytes:
        """Read an object. Raises `ObjectNotFoundError`."""
        ...

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        """Read exactly `size_bytes` bytes from `start`. Raises `ObjectTooShortError`."""
        ...

    def download(self, path: str, target: Path) -> None:
        """Copy an object to a file that appears whole or not at all."""
        ...

    def put(self, path: str, content: bytes) -> None:
        """Write an object, replacing what is there."""
        ...

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Write unless the object exists; of several writers exactly one gets True."""
        ...

    def upload(self, source: Path, path: str, *, keep_source: bool = True) -> None:
        """Write an object from a file, which may become the object unless it is to be kept."""
        ...

    def exists(self, path: str) -> bool:
        """Return whether there is an object of exactly this path."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below `prefix` (a folder, or "" for all), sorted by path."""
        ...

    def scan(self) -> Iterator[ObjectInfo]:
        """Yield every object in whatever order the store has, without holding them all in memory."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object; absent is fine."""
        ...
