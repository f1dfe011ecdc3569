"""Odd images of adopted tars are seen as a build would write them, or left out."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.crop import DecodeConfig
from data.decode import decode_eval
from data.image_check import ImageLimits, check_image, quiet_pillow
from infra.folder_store import FolderStore
from tests.adopted_tars import adopt, reasons, rows, write_tar
from tests.image_samples import encode
from tests.small_dataset import picture

XMP_ROTATED = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
XMP_UPRIGHT = XMP_ROTATED.replace(b"6", b"1")

KINDS = {
    "jpeg, cmyk": lambda image: encode(image.convert("CMYK"), "JPEG", quality=95),
    "jpeg, rotated": lambda image: encode(image, "JPEG", quality=95, exif=rotated()),
    "jpeg, grey": lambda image: encode(image.convert("L"), "JPEG"),
    "png, rotated": lambda image: encode(image, "PNG", exif=rotated()),
    "png, 1 bit": lambda image: encode(image.convert("1"), "PNG"),
    "png, palette": lambda image: encode(image.convert("P"), "PNG"),
    "webp": lambda image: encode(image, "WEBP", lossless=True),
    "webp, rotated": lambda image: encode(image, "WEBP", lossless=True, exif=rotated()),
    "gif": lambda image: encode(image, "GIF"),
    "gif, animated": lambda image: encode(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
    "bmp": lambda image: encode(image, "BMP"),
    "tiff, cmyk": lambda image: encode(image.convert("CMYK"), "TIFF"),
    "tiff, rotated": lambda image: encode(image, "TIFF", tiffinfo={0x0112: 6}),
    "tiff, rotated by xmp": lambda image: encode(image, "TIFF", tiffinfo={700: XMP_ROTATED}),
    "jpeg, xmp that agrees": lambda image: encode(image, "JPEG", quality=95, exif=rotated(), xmp=XMP_ROTATED),
    "jpeg, xmp that turns nothing": lambda image: encode(image, "JPEG", quality=95, xmp=XMP_UPRIGHT),
    "webp, xmp beside exif": lambda image: encode(
        image, "WEBP", lossless=True, exif=plain_exif(), xmp=XMP_ROTATED
    ),
}
REFUSED = {
    "png, 16 bit": lambda image: encode(sixteen_bit(image), "PNG"),
    "png, alpha": lambda image: encode(with_alpha(image), "PNG"),
    "png, grey and alpha": lambda image: encode(with_alpha(image).convert("LA"), "PNG"),
    "png, a transparent colour": lambda image: encode(image, "PNG", transparency=(1, 2, 3)),
    "webp, alpha": lambda image: encode(with_alpha(image), "WEBP", lossless=True),
    "tiff, 16 bit": lambda image: encode(sixteen_bit(image), "TIFF"),
    "jpeg, rotated by xmp": lambda image: encode(image, "JPEG", quality=95, xmp=XMP_ROTATED),
    "jpeg, rotated by xmp beside exif": lambda image: encode(
        image, "JPEG", quality=95, exif=plain_exif(), xmp=XMP_ROTATED
    ),
    "jpeg, cmyk, rotated by xmp": lambda image: encode(image.convert("CMYK"), "JPEG", xmp=XMP_ROTATED),
    "webp, rotated by xmp": lambda image: encode(image, "WEBP", lossless=True, xmp=XMP_ROTATED),
}


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def plain_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = "a title"
    return exif


def sixteen_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def with_alpha(image: Image.Image) -> Image.Image:
    copy = image.copy()
    copy.putalpha(image.convert("L"))
    return copy


def test_odd_images_look_as_a_build_would_write_them_or_are_rejects(tmp_path: Path) -> None:
    """A JPEG or WebP that XMP alone turns was taken, and trained on as it lies, on its side."""
    store = FolderStore(root=tmp_path)
    kinds = {**KINDS, **REFUSED}
    contents = {
        kind: make(Image.fromarray(picture(24, 32, n))) for n, (kind, make) in enumerate(kinds.items())
    }
    extension = {kind: {"jpeg": "jpg"}.get(word := kind.partition(",")[0], word) for kind in kinds}
    samples = [{"__key__": str(n), extension[k]: contents[k], "cls": "0"} for n, k in enumerate(kinds)]
    write_tar(
        store, "odd.tar", [*samples, {"__key__": "cut", "png": contents["png, palette"][:-30], "cls": "0"}]
    )
    snapshot = adopt(store)
    assert snapshot is not None
    adopted = {list(kinds)[int(row["key"])]: row for row in rows(store, snapshot)}
    assert set(adopted) == set(KINDS)
    refused = reasons(store, snapshot)
    assert refused.pop("odd.tar/cut.png") == "unreadable"
    assert list(refused.values()) == ["needs_change"] * len(REFUSED)
    config = DecodeConfig(image_size_px=24)
    for kind, row in adopted.items():
        with quiet_pillow():
            written = check_image(contents[kind], ImageLimits())
        assert (row["width"], row["height"]) == (written.width, written.height)
        in_place, as_built = (np.zeros((24, 24, 3), dtype=np.uint8) for _ in range(2))
        decode_eval(contents[kind], config, in_place)
        decode_eval(written.image_bytes, config, as_built)
        difference = np.abs(in_place.astype(int) - as_built.astype(int)).mean()
        assert difference < (3 if kind.startswith("jpeg") else 0.01), kind  # a JPEG encoded once more
