"""A corpus of odd images: every kind that a sharder meets in the wild, and what must become of it."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.store import Store
from tests.image_samples import encode, fill, jpeg, png
from tests.small_dataset import picture

ACCEPTED = "accepted"
REENCODED = "encoded again"


def odd_images() -> dict[str, tuple[bytes, str]]:
    """Return (content, what becomes of it) by file name; only the reason of a reject, or one of the above."""
    rgb = Image.fromarray(picture(48, 64, 1))
    grey = rgb.convert("L")
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64).astype(np.uint8)))
    other = Image.fromarray(picture(48, 64, 2))
    frames: dict[str, Any] = {"save_all": True, "append_images": [other]}
    large = Image.fromarray(picture(160, 200, 3))
    whole_jpeg, whole_png = encode(large, "JPEG", quality=95), encode(large, "PNG")
    deep = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20)
    float_tiff = encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    images = {
        "plain.jpg": (encode(rgb, "JPEG", quality=90), ACCEPTED),
        "progressive.jpg": (encode(other, "JPEG", progressive=True), ACCEPTED),
        "grey.jpg": (encode(grey, "JPEG"), ACCEPTED),
        "several frames.mpo.jpg": (
            encode(rgb.transpose(Image.Transpose.ROTATE_180), "MPO", **frames),
            ACCEPTED,
        ),
        "plain.png": (png(1), ACCEPTED),
        "grey.png": (encode(grey, "PNG"), ACCEPTED),
        "jpeg called.png": (jpeg(3), ACCEPTED),
        "png called.jpg": (png(4), ACCEPTED),
        "webp called.png": (encode(rgb, "WEBP"), REENCODED),
        "cmyk.jpg": (encode(rgb.convert("CMYK"), "JPEG"), REENCODED),
        "16 bit.png": (encode(deep, "PNG"), REENCODED),
        "16 bit colour.png": (deep_colour_png(), REENCODED),
        "1 bit.png": (encode(grey.convert("1"), "PNG"), REENCODED),
        "1 bit.tif": (encode(other.convert("1"), "TIFF"), REENCODED),
        "alpha.png": (encode(rgba, "PNG"), REENCODED),
        "grey alpha.png": (encode(rgba.convert("LA"), "PNG"), REENCODED),
        "palette.png": (encode(other.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), REENCODED),
        "animated.gif": (encode(rgb, "GIF", **frames), REENCODED),
        "animated.png": (encode(other, "PNG", save_all=True, append_images=[rgb]), REENCODED),
        "animated.webp": (encode(other, "WEBP", **frames), REENCODED),
        "plain.bmp": (encode(rgb, "BMP"), REENCODED),
        "cut.jpg": (whole_jpeg[: len(whole_jpeg) // 2], "unreadable"),
        "cut but ended.jpg": (whole_jpeg[: len(whole_jpeg) // 2] + b"\xff\xd9", "unreadable"),
        "last byte gone.jpg": (whole_jpeg[:-1], "unreadable"),
        "cut.png": (whole_png[: len(whole_png) // 2], "unreadable"),
        "flipped bit.png": (whole_png[:99] + bytes([whole_png[99] ^ 4]) + whole_png[100:], "unreadable"),
        "cut.webp": (encode(rgb, "WEBP")[:-40], "unreadable"),
        "text.jpg": (b"this is no image", "unreadable"),
        "page.png": (b"<html>404 Not Found</html>", "unreadable"),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unreadable"),
        "zero.jpg": (b"", "empty"),
        "float.tif": (float_tiff, "unsupported_mode"),
        "bomb.png": (raw_png(30_000, 30_000, 8, 2, b""), "too_large"),
        "middling bomb.png": (raw_png(12_000, 12_000, 8, 2, b""), "too_large"),
        "bomb.gif": (b"GIF89a" + b"\xff" * 4 + b"\0\0\0,\0\0\0\0" + b"\xff" * 4 + b"\0\2\0;", "too_large"),
        "thin.png": (encode(rgb.resize((64, 4)), "PNG"), "too_small"),
    }
    return images | rotated_images()


def rotated_images() -> dict[str, tuple[bytes, str]]:
    """All eight EXIF orientations, of pictures that differ."""
    images: dict[str, tuple[bytes, str]] = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(Image.fromarray(picture(40, 60, 10 + orientation)), "JPEG", exif=exif)
        images[f"turned {orientation}.jpg"] = (content, ACCEPTED if orientation == 1 else REENCODED)
    return images


def odd_corpus(folder: Path) -> Store:
    """Write the odd images as one class, beside a class of good ones."""
    files = {f"train/odd/{name}": content for name, (content, _) in odd_images().items()}
    good = {
        f"{split}/good/{n}.png": png(500 + n + 10 * len(split))
        for split in ("train", "test")
        for n in range(4)
    }
    return fill(folder, files | good)


def deep_colour_png() -> bytes:
    values = np.full((16, 16, 3), 0x1234, ">u2")
    return raw_png(16, 16, 16, 2, b"".join(b"\0" + row.tobytes() for row in values))


def raw_png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """Write a PNG by hand: whatever size and depth the header says."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
