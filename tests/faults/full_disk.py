"""Take a disk's space away, and give it back."""

import errno
from pathlib import Path


def fill_disk(folder: Path) -> Path:
    """Write until nothing more fits; return the file to remove."""
    target = folder / "everything-else"
    with target.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return target
