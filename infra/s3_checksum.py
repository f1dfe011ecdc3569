"""The checksum of an object that went up in parts, which boto3 leaves unchecked."""

import base64
import zlib

from botocore.exceptions import FlexibleChecksumError

PART_BYTES = 32 << 20
PART_BYTES_KEY = "part-bytes"
"""Metadata of what we upload: without the parts' size the checksum cannot be computed again."""


class PartsChecksum:
    """S3's composite CRC32: that of the parts' own, with their number."""

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes = self._left_bytes = part_bytes
        self._crc = 0
        self._parts = b""

    def add(self, block: bytes) -> None:
        """Take note of the object's next bytes."""
        rest = memoryview(block)
        while rest:
            piece, rest = rest[: self._left_bytes], rest[self._left_bytes :]
            self._crc = zlib.crc32(piece, self._crc)
            self._left_bytes -= len(piece)
            if not self._left_bytes:
                self._end_part()

    def value(self) -> str:
        """Return it as S3 writes it, once all bytes are in."""
        if self._left_bytes < self._part_bytes:
            self._end_part()
        checksum = base64.b64encode(zlib.crc32(self._parts).to_bytes(4, "big")).decode()
        return f"{checksum}-{len(self._parts) // 4}"

    def check(self, expected: str) -> None:
        """Raise boto3's own error, which is worth another try, unless the bytes are what the store has."""
        if self.value() != expected:
            raise FlexibleChecksumError(error_msg=f"CRC32 is {self.value()}, the store says {expected}")

    def _end_part(self) -> None:
        self._parts += self._crc.to_bytes(4, "big")
        self._crc, self._left_bytes = 0, self._part_bytes
