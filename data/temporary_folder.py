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
    try:
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            yield Path(folder)
    except OSError as error:
        # A store's own error tells of another disk.
        if type(error) is not OSError or error.errno not in DISK_FULL_ERRNOS:
            raise
        full = TemporaryFolderFullError(
            f"no space left in the temporary folder {tempfile.gettempdir()}: "
            "make room there, or set TMPDIR to a folder with more"
        )
        full.errno = error.errno
        raise full from error
