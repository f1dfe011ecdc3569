"""Temporary folders that say whose disk is full."""

import errno
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


class TemporaryFolderFullError(OSError):
    """The disk for temporary files is full. The message says which, and what to do."""


@contextmanager
def temporary_folder(prefix: str) -> Generator[Path]:
    """Give a folder that is removed at the end. Raises `TemporaryFolderFullError`."""
    with naming_full_folder(), tempfile.TemporaryDirectory(prefix=prefix) as folder:
        yield Path(folder)


@contextmanager
def naming_full_folder() -> Generator[None]:
    """Raise `TemporaryFolderFullError` where the temporary folder's disk is full in the block, or before."""
    root = _temporary_root()
    try:
        yield
    except OSError as error:
        # A store's own error tells of another disk.
        if type(error) is not OSError or error.errno not in DISK_FULL_ERRNOS:
            raise
        raise _full(f"no space left in the temporary folder {root}", error) from error


def _temporary_root() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:  # it tries each by writing a few bytes
        raise _full(" ".join(str(error.strerror).split()), error) from error


def _full(what: str, error: OSError) -> TemporaryFolderFullError:
    full = TemporaryFolderFullError(f"{what}: make room there, or set TMPDIR to a folder with more")
    full.errno = error.errno
    return full
