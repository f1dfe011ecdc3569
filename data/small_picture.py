"""A small picture of whatever of an image file can be decoded; never of a bomb."""

import io

import simplejpeg
from PIL import Image, ImageFile

from data.image_check import FORMATS

PICTURE_SIDE_PX = 160
_JPEG_QUALITY = 80
# libjpeg scales while decoding by at most this.
_MAX_DRAFT = 8


def small_picture(content: bytes, max_pixels: int) -> bytes | None:
    """Return a JPEG of at most 160 px a side of what decodes, or None. Call it inside `quiet_pillow()`.

    More than `max_pixels` are never decoded: a larger JPEG is scaled by libjpeg while it is read, where that
    is enough; a progressive one is not, because it lies in memory whole.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = _decode_some(image, content, max_pixels)
            if pixels is None:
                return None
            pixels.thumbnail((PICTURE_SIDE_PX, PICTURE_SIDE_PX))
            buffer = io.BytesIO()
            pixels.convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY)
            return buffer.getvalue()
    except MemoryError:
        raise
    except Exception:
        return None  # Pillow's parsers raise many types on broken bytes; all mean that nothing can be shown.


def _decode_some(image: Image.Image, content: bytes, max_pixels: int) -> Image.Image | None:
    width, height = image.size
    is_jpeg = image.format in ("JPEG", "MPO")
    if width * height > max_pixels:
        can_scale = is_jpeg and not image.info.get("progressive")
        if not can_scale or width * height > max_pixels * _MAX_DRAFT**2:
            return None
        image.draft("RGB", (width // _MAX_DRAFT, height // _MAX_DRAFT))
    elif is_jpeg and image.mode in ("L", "RGB"):
        # Not strict: what comes before the damage, and grey after it.
        sides = {"min_height": min(height, PICTURE_SIDE_PX), "min_width": min(width, PICTURE_SIDE_PX)}
        return Image.fromarray(simplejpeg.decode_jpeg(content, "RGB", **sides, strict=False))
    try:
        image.load()
    except OSError:
        assert isinstance(image, ImageFile.ImageFile)
        image.tile = []  # Nothing more to load: what was decoded before the damage stays.
    return image
