"""What decoding must know of a JPEG before its pixels: one walk over the markers in front of them.

Markers are those of ITU-T T.81, annex B; the EXIF orientation is tag 274 of EXIF 2.3, section 4.6.
"""

import struct
from dataclasses import dataclass

JPEG_SIGNATURE = b"\xff\xd8\xff"

_APP1, _START_OF_SCAN, _MARKER = 0xE1, 0xDA, 0xFF
_SEQUENTIAL_FRAMES = frozenset({0xC0, 0xC1})
_COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Sequential and progressive, Huffman-coded."""
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_FRAME = struct.Struct(">BHHB")  # precision, height, width, number of components
_ORIENTATION_TAG = 0x0112
_SHORT, _LONG = 3, 4
"""Types of a TIFF field."""
_EXIF = b"Exif\0\0"
_COMMON_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegHeader:
    """Sizes are of the pixels as stored, before they are turned upright."""

    height: int
    width: int
    orientation: int
    """EXIF's, 1 to 8; 1 where there is none or it makes no sense."""
    height_offset: int
    """Where the two bytes of the height stand."""
    block_height: int
    """Rows that are coded together: 8 or 16, rarely 32."""
    is_top_down: bool
    """All components of a row stand together, so that decoding can end at any block row."""
    common_mode: str | None
    """`L` or `RGB` as Pillow calls them, for an 8-bit file that is sequential or progressive, with its size
    and at most one plain piece of EXIF in front; None for whatever is rarer."""


def read_jpeg_header(jpeg_bytes: bytes) -> JpegHeader | None:
    """Read the segments up to the first scan; None where they make no sense."""
    try:
        return _walk(jpeg_bytes)
    except (IndexError, struct.error):  # The file ends too early.
        return None


def _walk(jpeg_bytes: bytes) -> JpegHeader | None:
    orientation, frame, frame_marker, is_odd = None, None, 0, False
    offset = 2
    while jpeg_bytes[offset] == _MARKER:
        marker = jpeg_bytes[offset + 1]
        if marker == _MARKER:  # Fill bytes may stand before a marker.
            offset += 1
            continue
        if marker in _FRAMES:
            frame, frame_marker = offset + 4, marker
        elif marker == _APP1 and jpeg_bytes.startswith(_EXIF, offset + 4):
            is_odd |= orientation is not None  # A second piece: large EXIF goes on there.
            if orientation is None:
                orientation, is_plain = _orientation(jpeg_bytes, offset + 4 + len(_EXIF))
                is_odd |= not is_plain
        elif marker == _APP1:  # XMP, which may tell an orientation as well.
            is_odd = True
        elif marker == _START_OF_SCAN:
            if frame is None:
                return None
            bits, height, width, num_components = _FRAME.unpack_from(jpeg_bytes, frame)
            samplings = jpeg_bytes[frame + _FRAME.size + 1 : frame + _FRAME.size + 3 * num_components : 3]
            is_common = frame_marker in _COMMON_FRAMES and bits == 8 and height * width > 0 and not is_odd
            return JpegHeader(
                height=height,
                width=width,
                orientation=orientation or 1,
                height_offset=frame + 1,
                block_height=8 * max(sampling & 15 for sampling in samplings),
                is_top_down=frame_marker in _SEQUENTIAL_FRAMES and jpeg_bytes[offset + 4] == num_components,
                common_mode=_COMMON_MODES.get(num_components) if is_common else None,
            )
        offset += 2 + int.from_bytes(jpeg_bytes[offset + 2 : offset + 4], "big")
    return None


def _orientation(jpeg_bytes: bytes, tiff: int) -> tuple[int, bool]:
    """Read the orientation from the first directory of the TIFF file that starts at `tiff`.

    Returns 1 where there is none or it makes no sense, and whether it is written as EXIF says, or not at all.
    """
    order = {b"II": "<", b"MM": ">"}.get(jpeg_bytes[tiff : tiff + 2])
    if order is None:
        return 1, False
    try:
        (first,) = struct.unpack_from(order + "I", jpeg_bytes, tiff + 4)
        (num_entries,) = struct.unpack_from(order + "H", jpeg_bytes, tiff + first)
        for number in range(num_entries):
            at = tiff + first + 2 + 12 * number
            tag, kind, count = struct.unpack_from(order + "HHI", jpeg_bytes, at)
            if tag == _ORIENTATION_TAG:
                (value,) = struct.unpack_from(order + ("I" if kind == _LONG else "H"), jpeg_bytes, at + 8)
                return value if 1 <= value <= 8 else 1, kind == _SHORT and count == 1
    except struct.error:  # The directory points out of the file.
        return 1, False
    return 1, True
