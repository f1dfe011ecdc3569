"""Write a tar whose bytes depend on nothing but its members."""

import hashlib
import tarfile
from pathlib import Path
from types import TracebackType

import google_crc32c

_BLOCK_BYTES = 512
_RECORD_BYTES = 20 * _BLOCK_BYTES


class TarWriter:
    """Write members one after another, hashing what is written.

    A context manager over a new file at `path`. After the block `size_bytes`, `sha256` and
    `crc32c` describe the file. Every header has time 0, user 0 and mode 0644.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0
        self.crc32c = 0

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                # Two empty blocks end a tar; readers expect whole records of 20 blocks.
                end = self.size_bytes + 2 * _BLOCK_BYTES
                self._write(bytes(2 * _BLOCK_BYTES + -end % _RECORD_BYTES))

    @property
    def sha256(self) -> str:
        """The hash (hex) of what was written so far."""
        return self._sha256.hexdigest()

    def add(self, name: str, content: bytes) -> int:
        """Append a member and return the byte offset of its content in the tar."""
        header = tarfile.TarInfo(name)
        header.size = len(content)
        header.mode = 0o644
        # GNU headers spell names over 100 bytes out in a block before; POSIX ones would need pax
        # records, which simple header parsers do not read.
        head = header.tobuf(tarfile.GNU_FORMAT)
        offset = self.size_bytes + len(head)
        self._write(b"".join((head, content, bytes(-len(content) % _BLOCK_BYTES))))
        return offset

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)
        self.crc32c = google_crc32c.extend(self.crc32c, content)
        self.size_bytes += len(content)
