"""Write a tar whose bytes depend on nothing but its members."""

import hashlib
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import google_crc32c

_BLOCK_BYTES = 512
_RECORD_BYTES = 20 * _BLOCK_BYTES
_NAME_BYTES = 100
_MAX_OCTAL_SIZE = 8**11


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

    def add(self, members: Iterable[tuple[str, bytes]]) -> list[int]:
        """Append members (name, content) and return the byte offset of each content in the tar."""
        parts: list[bytes] = []
        offsets: list[int] = []
        end = self.size_bytes
        for name, content in members:
            head = _head(name, len(content))
            offsets.append(end + len(head))
            parts += (head, content, bytes(-len(content) % _BLOCK_BYTES))
            end = offsets[-1] + len(content) + len(parts[-1])
        self._write(b"".join(parts))
        return offsets

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)
        self.crc32c = google_crc32c.extend(self.crc32c, content)
        self.size_bytes += len(content)


def _head(name: str, size_bytes: int) -> bytes:
    """Return the blocks before a member's content, as `TarInfo.tobuf` does ten times slower."""
    encoded = name.encode()
    if len(encoded) >= _NAME_BYTES or size_bytes >= _MAX_OCTAL_SIZE:
        # GNU headers spell long names out in a block before; POSIX ones would need pax records, which
        # simple header parsers do not read.
        return _tar_info(name, size_bytes).tobuf(tarfile.GNU_FORMAT, errors="strict")
    named = encoded.ljust(_NAME_BYTES, b"\0")
    size = b"%011o" % size_bytes
    # The checksum is the sum of the header's bytes, with its own field as spaces.
    checksum = _REST_SUM + sum(named) + sum(size)
    return b"".join((named, _MODE_TO_GROUP, size, b"\0", _TIME, b"%06o\0" % checksum, _AFTER_CHECKSUM))


def _tar_info(name: str, size_bytes: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = 0o644
    return info


# The fields of a header (POSIX ustar and GNU alike): name, mode to group, size, time, checksum, the rest.
_EMPTY = _tar_info("", 0).tobuf(tarfile.GNU_FORMAT)
_MODE_TO_GROUP, _TIME, _AFTER_CHECKSUM = _EMPTY[100:124], _EMPTY[136:148], _EMPTY[155:512]
_REST_SUM = sum(_MODE_TO_GROUP) + sum(_TIME) + sum(b" " * 8) + sum(_AFTER_CHECKSUM[1:])
