"""Common JPEGs are judged without Pillow, and as with it."""

import struct
from typing import Any

import pytest
from PIL import Image

from data import image_check
from data.image_check import BadImageError, ImageLimits
from tests.checked_images import check
from tests.image_samples import encode, jpeg, pixels


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _tiff(orientation: int, *, order: str = "<", kind: int = 3) -> bytes:
    """One directory with an orientation of a type (3: SHORT, 4: LONG)."""
    value = struct.pack(order + "I", orientation) if kind == 4 else struct.pack(order + "HH", orientation, 0)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return start + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value + bytes(4)


def _with_app1(*tiffs: bytes) -> bytes:
    """A JPEG with pieces of EXIF."""
    pieces = [b"Exif\0\0" + tiff for tiff in tiffs]
    heads = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(piece)) + piece for piece in pieces)
    return jpeg(1)[:2] + heads + jpeg(1)[2:]


_XMP_ROTATED = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("validate", ["full", "header"])
@pytest.mark.parametrize(
    "content",
    [
        jpeg(1), jpeg(1, progressive=True), jpeg(1, subsampling=2), jpeg(1, exif=_exif(1)),
        jpeg(1, exif=_exif(6)), jpeg(1, exif=b"Exif\0\0nonsense"), jpeg(1, xmp=_XMP_ROTATED),
        encode(Image.fromarray(pixels(5, channels=1)), "JPEG"),
        encode(Image.fromarray(pixels(5)).convert("CMYK"), "JPEG"), jpeg(1)[:-2], jpeg(1)[:200],
        _with_app1(_tiff(6), _tiff(1)), _with_app1(_tiff(1), _tiff(6)), _with_app1(_tiff(6, kind=4)),
        _with_app1(_tiff(6, order=">")), _with_app1(_tiff(6, order=">", kind=4)), _with_app1(_tiff(9)),
        jpeg(1)[:-2] + b"stray" + b"\xff\xd9", jpeg(1) + b"after", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9",
    ],
)  # fmt: skip
def test_without_pillow_a_jpeg_is_judged_as_with_it(
    content: bytes, validate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Common JPEGs are looked at without Pillow; XMP, for example, can turn an image as well as EXIF can."""

    def judge() -> tuple[Any, ...]:
        limits = ImageLimits(validate=validate, max_side_px=64)
        try:
            image = check(content, limits)
        except BadImageError as error:
            return (error.reason,)
        return image.image_bytes, image.width, image.height, image.reencoded, image.original, image.extension

    quick = judge()
    monkeypatch.setattr(image_check, "_check_common_jpeg", lambda content, limits: None)
    assert quick == judge()
