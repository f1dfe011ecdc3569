"""A folder that this process may not read, also where the tests run as root."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def forbidden_folder(path: str) -> Generator[Path]:
    """Give a folder that everybody may enter, with one at `path` below it that nobody may."""
    with tempfile.TemporaryDirectory(prefix="forbidden-") as name:
        root = Path(name)
        (root / path).mkdir(parents=True)
        folders = [root, *(root / part for part in list(Path(path).parents)[:-1])]
        (root / path).chmod(0o000)
        for folder in folders:
            folder.chmod(0o555)
        yield root
        for folder in (*folders, root / path):
            folder.chmod(0o700)


@contextmanager
def without_rights() -> Generator[None]:
    """Drop root's right to read everything for the length of the block."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
