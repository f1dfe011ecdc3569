"""JPEG to pixels through libjpeg-turbo, no larger and no further down than a crop needs.

simplejpeg frees the interpreter lock, and scales while it decodes. It cannot decode a region; but a
file whose header names fewer rows is decoded only so far, which the decoder's own region decode gains
as well. Shape letters: H height, W width, C channels (RGB).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data.jpeg_header import JpegHeader

Pixels = NDArray[np.uint8]

_FACTORS = (8, 4, 2)
"""libjpeg-turbo has others, but no fast inverse DCT for them."""
_MIN_SAVED_SHARE = 0.05
"""Of the rows; for fewer the copy of the file does not pay."""
_END_OF_IMAGE = b"\xff\xd9"
# EXIF 2.3, tag 274: how to turn the stored pixels upright, as views without a copy.
_TO_UPRIGHT: Mapping[int, Callable[[Pixels], Pixels]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}
_SWAPS_SIDES = 5
"""Orientations from this number on exchange height and width."""


@dataclass(frozen=True, slots=True)
class ScaledPixels:
    """A decoded image, upright; its lowest rows may be missing."""

    pixels_HWC: Pixels
    height: int
    """Of the whole image at this scale."""
    width: int


def upright_size(header: JpegHeader) -> tuple[int, int]:
    """Return (height, width) of the upright image."""
    swaps = header.orientation >= _SWAPS_SIDES
    return (header.width, header.height) if swaps else (header.height, header.width)


def decode_jpeg(
    jpeg_bytes: bytes,
    header: JpegHeader,
    *,
    min_height: int = 0,
    min_width: int = 0,
    end_row: int | None = None,
) -> ScaledPixels | None:
    """Decode to RGB, upright, at the smallest scale of 1, 1/2, 1/4 or 1/8 that reaches both minima.

    Minima of 0 mean full size. Rows from `end_row` of the full-size image on may be left out. None
    when libjpeg-turbo refuses the file (CMYK, trailing garbage, ...): Pillow is more lenient.
    """
    if header.orientation >= _SWAPS_SIDES:
        min_height, min_width = min_width, min_height
    factor = _factor(header, min_height, min_width)
    num_rows = header.height
    if end_row is not None and header.orientation == 1:
        num_rows = _rows_to_decode(jpeg_bytes, header, end_row)
    is_cut = num_rows < header.height
    try:
        pixels_HWC = simplejpeg.decode_jpeg(
            _with_height(jpeg_bytes, header, num_rows) if is_cut else jpeg_bytes,
            "RGB",
            min_height=-(-num_rows // factor),
            min_width=-(-header.width // factor),
            min_factor=factor,
            strict=not is_cut,  # What stands below the cut is reported as a fault.
        )
    except ValueError:
        return None
    height, width = -(-header.height // factor), -(-header.width // factor)
    if header.orientation == 1:
        return ScaledPixels(pixels_HWC, height, width)
    upright_HWC = _TO_UPRIGHT[header.orientation](pixels_HWC)
    return ScaledPixels(upright_HWC, *upright_HWC.shape[:2])


def _factor(header: JpegHeader, min_height: int, min_width: int) -> int:
    if min_height and min_width:
        for factor in _FACTORS:
            if -(-header.height // factor) >= min_height and -(-header.width // factor) >= min_width:
                return factor
    return 1


def _rows_to_decode(jpeg_bytes: bytes, header: JpegHeader, end_row: int) -> int:
    """Return a height that leaves the rows above `end_row` as they are in the whole image.

    Colour is interpolated from the block row below as well. A file without its end is decoded in
    full: only so is it found to be broken.
    """
    block = header.block_height
    num_rows = (-(-end_row // block) + 1) * block
    worth_it = header.height - num_rows >= _MIN_SAVED_SHARE * header.height
    if not (worth_it and header.is_top_down and jpeg_bytes.endswith(_END_OF_IMAGE)):
        return header.height
    return num_rows


def _with_height(jpeg_bytes: bytes, header: JpegHeader, num_rows: int) -> bytearray:
    changed = bytearray(jpeg_bytes)
    changed[header.height_offset : header.height_offset + 2] = num_rows.to_bytes(2, "big")
    return changed
