"""Take a disk's space away, and give it back."""

import errno
from pathlib import Path


def fill_disk(folder: Path, *, leave_bytes: int = 0) -> Path:
    """Write until nothing more fits; return the file to remove. With `leave_bytes` so much is then free."""
    target = folder / "everything-else"
    with target.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(file.tell() - leave_bytes)
    return target
