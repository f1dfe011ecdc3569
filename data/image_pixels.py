"""Image files to pixels, strictly, and pixels to image files.

A JPEG is decoded by libjpeg-turbo, and what it calls corrupt is unreadable here: stricter and quicker
than Pillow. Where the file's own bytes are kept, only a grey picture of an eighth of the size is made: all
coded data is read as for the whole, and only the arithmetic that cannot fail is left out.
Shape letters: H height, W width.
"""

import io
import struct
import zlib
from typing import TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from data.jpeg_header import read_jpeg_header

Pixels: TypeAlias = NDArray[np.uint8]

# The perceptual hash reduces to 32 px: more is needed, but not much.
_LUMA_SIDE_PX = 64

# PNG specification (W3C, third edition), section 5.3: length, name, data, CRC over name and data.
_PNG_SIGNATURE_BYTES = 8
_PNG_LENGTH = struct.Struct(">I")
_PNG_AROUND_DATA_BYTES = 12
_END_OF_IMAGE = "0xd9"


class BadImageError(Exception):
    """This image cannot be used; `reason` is for machines, `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def jpeg_luma(content: bytes, height: int, width: int) -> Pixels | None:
    """Decode all of a JPEG of a known size to a small grey picture, uint8 [H, W].

    None for one that Pillow has to judge. Raises `BadImageError` for one whose coded data is damaged.
    """
    pixels_HWC = _decode_jpeg(content, "GRAY", height, width, _LUMA_SIDE_PX)
    return None if pixels_HWC is None else pixels_HWC[..., 0]


def load_image(image: Image.Image, content: bytes, max_side_px: int | None) -> Image.Image:
    """Decode all of an opened image; a JPEG much larger than `max_side_px` comes out smaller."""
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        colours = "GRAY" if image.mode == "L" else "RGB"
        side_px = max(image.size)
        # Scaled so that the longer side still has twice what is wanted: the rest is for a better filter.
        least = side_px if max_side_px is None else min(side_px, 2 * max_side_px)
        shortest = max(1, least * min(image.size) // side_px)
        pixels_HWC = _decode_jpeg(content, colours, image.height, image.width, shortest)
        if pixels_HWC is not None:
            return Image.fromarray(pixels_HWC[..., 0] if colours == "GRAY" else pixels_HWC)
    if image.format == "PNG":
        _check_png_crcs(content)
    image.load()
    return image


def _decode_jpeg(content: bytes, colours: str, height: int, width: int, min_side_px: int) -> Pixels | None:
    """Decode at the smallest DCT scale whose shorter side has `min_side_px`, uint8 [H, W, C].

    None where libjpeg-turbo complains of something that Pillow may allow, e.g. stray bytes between markers.
    """
    try:
        return simplejpeg.decode_jpeg(
            content, colours, min_height=min(height, min_side_px), min_width=min(width, min_side_px)
        )
    except ValueError as error:
        if _is_damage(str(error), content):
            raise BadImageError("unreadable", str(error)) from None
        return None


def _is_damage(message: str, content: bytes) -> bool:
    """Say whether libjpeg-turbo's complaint (its `jerror.h`) is of the coded data, which Pillow would pass.

    Extraneous bytes at the very end are what some cameras leave behind, and between the segments in front
    of the first scan they harm nothing; between scans or restarts they are data that made no sense.
    """
    if "extraneous bytes" in message:
        return not message.endswith(_END_OF_IMAGE) and read_jpeg_header(content) is not None
    return message.startswith("Corrupt JPEG data") or "remature end" in message


def _check_png_crcs(content: bytes) -> None:
    """Raise `BadImageError` unless all chunks to the end are whole: decoders do not look at the checksums."""
    view = memoryview(content)
    start = _PNG_SIGNATURE_BYTES
    while start + _PNG_AROUND_DATA_BYTES <= len(content):
        (length,) = _PNG_LENGTH.unpack_from(content, start)
        end = start + _PNG_AROUND_DATA_BYTES + length
        if end > len(content):
            break
        name = content[start + 4 : start + 8]
        if _PNG_LENGTH.unpack_from(content, end - 4)[0] != zlib.crc32(view[start + 4 : end - 4]):
            raise BadImageError("unreadable", f"PNG chunk {name!r} at byte {start}: wrong checksum")
        if name == b"IEND":
            return
        start = end
    raise BadImageError("unreadable", f"PNG ends at byte {len(content)} without its last chunk")


def small_luma(image: Image.Image) -> Pixels:
    """Return a decoded grey or RGB image as a small grey picture, uint8 [H, W]."""
    factor = max(1, min(image.size) // _LUMA_SIDE_PX)
    small = image.reduce(factor) if factor > 1 else image
    return np.asarray(small.convert("L"))


def to_grey_or_rgb(image: Image.Image, image_format: str | None) -> Image.Image:
    """Return a decoded image as 8-bit grey or RGB; transparency is laid over white.

    Raises `BadImageError` with reason `unsupported_mode` where the range of values is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image_format == "PNG"):
        # Pillow's own conversion clips at 255 instead of scaling: all but white would be lost.
        values_HW = np.asarray(image).astype(np.uint32)
        return Image.fromarray((values_HW >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadImageError("unsupported_mode", f"mode {image.mode}: the range of its values is not known")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def scale_down(image: Image.Image, max_side_px: int | None) -> Image.Image:
    """Return a grey or RGB image whose longer side has at most `max_side_px`, antialiased (Lanczos)."""
    longer = max(image.size)
    if max_side_px is None or longer <= max_side_px:
        return image
    width, height = (max(1, round(side * max_side_px / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def encode_image(image: Image.Image, *, jpeg_quality: int | None) -> bytes:
    """Return a PNG, or with a quality a JPEG with whole colour resolution; nothing but the pixels is kept."""
    buffer = io.BytesIO()
    # A fresh image carries no EXIF, profile or comment of the old one.
    plain = Image.fromarray(np.asarray(image))
    if jpeg_quality is None:
        plain.save(buffer, "PNG", compress_level=6)
    else:
        plain.save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    return buffer.getvalue()
