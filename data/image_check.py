"""Decode an image once, whole, and decide whether its bytes can be kept as they are."""

import io
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from data.errors import InputError
from data.image_pixels import (
    BadImageError,
    Pixels,
    encode_image,
    jpeg_luma,
    load_image,
    scale_down,
    small_luma,
    to_grey_or_rgb,
)
from data.jpeg_header import JPEG_SIGNATURE, read_jpeg_header
from data.perceptual_hash import perceptual_hash

# Pillow refuses to open more pixels than this, whatever we allow (twice Image.MAX_IMAGE_PIXELS).
_PILLOW_MAX_PIXELS = 178_956_970

# Only these parsers see foreign bytes; Pillow has some 40, and its EPS one runs Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Without slots: jsonargparse reads a default's values from its `__dict__`.
@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image of a corpus may be, and how closely it is looked at."""

    max_pixels: int = 50_000_000
    """A larger image is rejected before it is decoded."""
    max_bytes: int = 64 * 2**20
    """A larger file is rejected before it is read."""
    min_side_px: int = 1
    """A smaller image is rejected."""
    max_side_px: int | None = None
    """An image whose longer side has more is scaled down to it and encoded again; null: never."""
    jpeg_quality: int = 95
    """Of JPEGs that must be encoded again, 1 to 100; always with full colour resolution (4:4:4)."""
    validate: Literal["full", "header"] = "full"
    """`header` decodes only what must change: faster, but truncated or damaged pixels are not found, and
    without a perceptual hash neither are near duplicates."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= _PILLOW_MAX_PIXELS:
            raise InputError(f"max_pixels is {self.max_pixels}: give 1 to {_PILLOW_MAX_PIXELS}")
        if self.max_bytes < 1:
            raise InputError(f"max_bytes is {self.max_bytes}: give at least 1")
        if self.min_side_px < 1:
            raise InputError(f"min_side_px is {self.min_side_px}: give at least 1")
        if self.max_side_px is not None and self.max_side_px < self.min_side_px:
            raise InputError(
                f"max_side_px is {self.max_side_px}: give at least min_side_px = {self.min_side_px}, or null"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"jpeg_quality is {self.jpeg_quality}: give 1 to 100")
        if self.validate not in ("full", "header"):
            raise InputError(f"validate is {self.validate!r}: give 'full' or 'header'")


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalInfo:
    """What the corpus's file is, before any change."""

    width: int
    """As its header says."""
    height: int
    mode: str
    """Pillow's name: `RGB`, `L`, `CMYK`, `P`, `RGBA`, `I;16`, ..."""
    exif_orientation: int
    """1 to 8; 1 is upright, or not said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedImage:
    """An image that decodes: 8-bit grey or RGB, upright, one frame, as PNG or JPEG."""

    image_bytes: bytes
    extension: str
    """`png` or `jpg`, by content."""
    width: int
    height: int
    reencoded: bool
    """Whether the bytes are ours and not the corpus's."""
    original: OriginalInfo
    perceptual_hash: int | None
    """None where the image was not decoded, or is too plain to tell from others."""


def check_image(content: bytes, limits: ImageLimits) -> CheckedImage:
    """Decode the image and return its own bytes, or new ones where it needs a change.

    Changed are: other formats than PNG and JPEG, other modes than 8-bit grey and RGB (palette,
    alpha, 16-bit, CMYK, ...), an EXIF orientation, animations (their first frame is kept), a longer
    side than `max_side_px`. Transparency is laid over white. A JPEG becomes a JPEG, all else PNG.

    Raises `BadImageError` with reason `empty`, `too_large`, `too_small`, `unsupported_mode` or
    `unreadable`. Call it inside `quiet_pillow()`.
    """
    if not content:
        raise BadImageError("empty", "0 bytes")
    if len(content) > limits.max_bytes:
        raise BadImageError("too_large", f"{len(content)} bytes, allowed {limits.max_bytes}")
    try:
        if (checked := _check_common_jpeg(content, limits)) is not None:
            return checked
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _check(image, content, limits)
    except (BadImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError("too_large", _one_line(error)) from error
    except Exception as error:
        # Pillow's parsers raise some ten unrelated types on broken bytes. Nothing here reads
        # a store or a disk, so this can only be the image.
        raise BadImageError("unreadable", _one_line(error)) from error


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters = warnings.catch_warnings()


@contextmanager
def quiet_pillow() -> Generator[None]:
    """Silence Pillow's warnings about odd images: what matters ends as a reject, with its reason.

    `warnings.catch_warnings` alone is not safe where threads overlap: the last to leave could
    restore the silence of another for good. So the first in and the last out do it.
    """
    global _quiet_depth, _quiet_filters
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_filters.__exit__(None, None, None)


def _check_common_jpeg(content: bytes, limits: ImageLimits) -> CheckedImage | None:
    """Do what `_check` does for a JPEG that stays as it is, without Pillow; None for any other image.

    Opening a file takes Pillow as long as decoding a small one.
    """
    header = read_jpeg_header(content) if content.startswith(JPEG_SIGNATURE) else None
    if header is None or header.common_mode is None or header.orientation != 1:
        return None
    size = header.width, header.height
    _check_size(size, limits)
    if not _fits(size, limits):
        return None
    luma_HW = None
    if limits.validate == "full" and (luma_HW := jpeg_luma(content, header.height, header.width)) is None:
        return None
    original = OriginalInfo(
        width=header.width, height=header.height, mode=header.common_mode, exif_orientation=1
    )
    return _kept(content, original, True, luma_HW)


def _check(image: Image.Image, content: bytes, limits: ImageLimits) -> CheckedImage:
    _check_size(image.size, limits)
    is_jpeg = image.format in ("JPEG", "MPO")
    is_plain = _is_plain(image, content) and _fits(image.size, limits)
    told = _orientation(image)
    original = OriginalInfo(width=image.width, height=image.height, mode=image.mode, exif_orientation=told)
    if is_plain and told not in _UPRIGHT:
        if limits.validate == "header":
            return _kept(content, original, is_jpeg, None)
        if is_jpeg and (luma_HW := jpeg_luma(content, image.height, image.width)) is not None:
            return _kept(content, original, is_jpeg, luma_HW)
    pixels = load_image(image, content, limits.max_side_px)
    # Loading a TIFF has turned it upright; a PNG may tell its orientation after its pixels.
    turn = _orientation(image)
    original = replace(original, exif_orientation=told if told in _UPRIGHT else turn)
    if is_plain and turn not in _UPRIGHT:
        return _kept(content, original, is_jpeg, small_luma(pixels))
    upright = to_grey_or_rgb(pixels, image.format)
    if turn in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[turn])
    return _changed(scale_down(upright, limits.max_side_px), original, is_jpeg, limits)


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise BadImageError("too_large", f"{width}x{height} pixels, allowed {limits.max_pixels} in all")
    if min(width, height) < limits.min_side_px:
        raise BadImageError("too_small", f"{width}x{height} pixels, a side must have {limits.min_side_px}")


def _is_plain(image: Image.Image, content: bytes) -> bool:
    if image.mode not in ("L", "RGB"):
        return False
    if image.format != "PNG":
        return image.format in ("JPEG", "MPO")
    bits_per_channel = content[24]  # In the IHDR chunk, which stands first.
    return (
        bits_per_channel == 8
        and "transparency" not in image.info
        and not getattr(image, "is_animated", False)
    )


def _fits(size: tuple[int, int], limits: ImageLimits) -> bool:
    return limits.max_side_px is None or max(size) <= limits.max_side_px


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Not told so far; asking Pillow would decode the image.
    try:
        orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:
        return 1  # Broken metadata beside good pixels: as if there were none.
    return orientation if orientation in _UPRIGHT else 1


def _kept(content: bytes, original: OriginalInfo, is_jpeg: bool, luma_HW: Pixels | None) -> CheckedImage:
    return CheckedImage(
        image_bytes=content, extension="jpg" if is_jpeg else "png",
        width=original.width, height=original.height, reencoded=False, original=original,
        perceptual_hash=None if luma_HW is None else perceptual_hash(luma_HW),
    )  # fmt: skip


def _changed(image: Image.Image, original: OriginalInfo, is_jpeg: bool, limits: ImageLimits) -> CheckedImage:
    return CheckedImage(
        image_bytes=encode_image(image, jpeg_quality=limits.jpeg_quality if is_jpeg else None),
        extension="jpg" if is_jpeg else "png", width=image.width, height=image.height, reencoded=True,
        original=original, perceptual_hash=perceptual_hash(small_luma(image)),
    )  # fmt: skip


def _one_line(error: BaseException) -> str:
    # Pillow names the in-memory file by its address, which would differ between runs.
    text = " ".join(str(error).split())
    text = text.partition(" <_io.BytesIO")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
