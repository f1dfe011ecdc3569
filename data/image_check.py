"""Decode an image once, whole, and decide whether its bytes can be kept as they are."""

import io
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data.errors import InputError

# Pillow refuses to open more pixels than this, whatever we allow (twice Image.MAX_IMAGE_PIXELS).
_PILLOW_MAX_PIXELS = 178_956_970

# Only these parsers see foreign bytes; Pillow has some 40, and its EPS one runs Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

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
    """What an image of a corpus may be; others are rejected, never scaled."""

    max_pixels: int = 50_000_000
    max_bytes: int = 64 * 2**20
    min_side_px: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= _PILLOW_MAX_PIXELS:
            raise InputError(f"max_pixels is {self.max_pixels}: give 1 to {_PILLOW_MAX_PIXELS}")
        if self.max_bytes < 1:
            raise InputError(f"max_bytes is {self.max_bytes}: give at least 1")
        if self.min_side_px < 1:
            raise InputError(f"min_side_px is {self.min_side_px}: give at least 1")


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


class BadImageError(Exception):
    """This image cannot be used; `reason` is for machines, `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def check_image(content: bytes, limits: ImageLimits) -> CheckedImage:
    """Decode the image and return its own bytes, or new ones where it needs a change.

    Changed are: other formats than PNG and JPEG, other modes than 8-bit grey and RGB (palette,
    alpha, 16-bit, CMYK, ...), an EXIF orientation, animations (their first frame is kept).
    Transparency is laid over white. A JPEG becomes a JPEG (quality 95, 4:4:4), all else PNG.

    Raises `BadImageError` with reason `empty`, `too_large`, `too_small`, `unsupported_mode` or
    `unreadable`. Call it inside `quiet_pillow()`.
    """
    if not content:
        raise BadImageError("empty", "0 bytes")
    if len(content) > limits.max_bytes:
        raise BadImageError("too_large", f"{len(content)} bytes, allowed {limits.max_bytes}")
    try:
        return _check(content, limits)
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


def _check(content: bytes, limits: ImageLimits) -> CheckedImage:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        _check_size(image, limits)
        if image.format == "PNG":
            # Loading a PNG does not look at its checksums.
            image.verify()
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        image.load()
        is_jpeg = image.format in ("JPEG", "MPO")
        orientation = _orientation(image)
        if _is_plain(image, content) and orientation not in _UPRIGHT:
            width, height = image.size
            return CheckedImage(
                image_bytes=content, extension="jpg" if is_jpeg else "png",
                width=width, height=height, reencoded=False,
            )  # fmt: skip
        upright = _to_grey_or_rgb(image)
    if orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[orientation])
    return _encode(upright, is_jpeg)


def _check_size(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
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


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:
        return 1  # Broken metadata beside good pixels: as if there were none.


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
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


def _encode(image: Image.Image, is_jpeg: bool) -> CheckedImage:
    buffer = io.BytesIO()
    # A fresh image carries no EXIF, profile or comment of the old one.
    plain = Image.fromarray(np.asarray(image))
    if is_jpeg:
        plain.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        plain.save(buffer, "PNG", compress_level=6)
    return CheckedImage(
        image_bytes=buffer.getvalue(), extension="jpg" if is_jpeg else "png",
        width=plain.width, height=plain.height, reencoded=True,
    )  # fmt: skip


def _one_line(error: BaseException) -> str:
    # Pillow names the in-memory file by its address, which would differ between runs.
    text = " ".join(str(error).split())
    text = text.partition(" <_io.BytesIO")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
