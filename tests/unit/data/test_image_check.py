"""What can be used keeps its bytes or becomes a plain upright image within the limits."""

import io
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from data.image_check import CheckedImage, ImageLimits, OriginalInfo, quiet_pillow
from tests.checked_images import SMOOTH, check, reason_of
from tests.image_samples import encode, jpeg, pixels, png
from tests.odd_images import raw_png


def decoded(image: CheckedImage) -> np.ndarray:
    with Image.open(io.BytesIO(image.image_bytes)) as opened:
        assert opened.format == {"png": "PNG", "jpg": "JPEG"}[image.extension]
        assert opened.mode in ("L", "RGB")
        assert opened.size == (image.width, image.height)
        assert "transparency" not in opened.info
        assert dict(opened.getexif()) == {} or not image.reencoded
        return np.asarray(opened)


@pytest.mark.parametrize(
    ("content", "extension"),
    [
        (png(1), "png"),
        (jpeg(2, quality=90), "jpg"),
        (jpeg(3, progressive=True), "jpg"),
        (encode(Image.fromarray(pixels(4, channels=1)), "PNG"), "png"),
        (encode(Image.fromarray(pixels(5, channels=1)), "JPEG"), "jpg"),
    ],
)
def test_plain_images_keep_their_bytes(content: bytes, extension: str) -> None:
    image = check(content)
    assert (image.image_bytes, image.extension, image.reencoded) == (content, extension, False)
    assert (image.width, image.height) == (8, 8)


RGB = Image.fromarray(pixels(7))
ONE_BIT = Image.fromarray(pixels(8, channels=1)).convert("1")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encode(RGB.convert("P", palette=Image.Palette.ADAPTIVE, colors=16), "PNG"), None),
        (encode(RGB, "BMP"), np.asarray(RGB)),
        (encode(RGB, "TIFF"), np.asarray(RGB)),
        (encode(RGB, "WEBP", lossless=True), np.asarray(RGB)),
        (encode(RGB.convert("P"), "GIF"), None),
        (encode(ONE_BIT, "PNG"), np.asarray(ONE_BIT.convert("L"))),
        (encode(RGB, "PNG", transparency=(1, 2, 3)), np.asarray(RGB)),
    ],
    ids=["palette", "bmp", "tiff", "webp", "gif", "1-bit", "rgb-transparency"],
)
def test_other_kinds_become_plain_png(content: bytes, expected: np.ndarray[Any, Any] | None) -> None:
    image = check(content)
    assert (image.extension, image.reencoded) == ("png", True)
    if expected is not None:
        np.testing.assert_array_equal(decoded(image), expected)
    assert decoded(image).shape[:2] == (8, 8)
    again = check(image.image_bytes)
    assert not again.reencoded


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    """Pillow's I;16 -> L clips at 255: every value above 0.4% of the range came out white."""
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    image = check(encode(Image.fromarray(values), "PNG"))
    assert image.reencoded
    np.testing.assert_array_equal(decoded(image), (values >> 8).astype(np.uint8))


def test_16_bit_rgb_png_becomes_8_bit() -> None:
    """Pillow shows it as mode RGB, so only the header tells; other decoders would see 16 bits."""
    values = np.full((2, 3, 3), 0x1234, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    image = check(raw_png(3, 2, 16, 2, rows))
    assert image.reencoded
    np.testing.assert_array_equal(decoded(image), np.full((2, 3, 3), 0x12))


def test_alpha_is_laid_over_white() -> None:
    """convert("RGB") drops alpha and shows whatever colour lies under transparent pixels."""
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, 1] = (10, 20, 30, 255)
    image = check(encode(Image.fromarray(rgba), "PNG"))
    np.testing.assert_array_equal(decoded(image), [[[255, 255, 255], [10, 20, 30]]])


def test_cmyk_jpeg_becomes_rgb_jpeg() -> None:
    image = check(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert (image.extension, image.reencoded) == ("jpg", True)
    red, green, blue = decoded(image).mean(axis=(0, 1))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation: int, image_format: str) -> None:
    source = Image.fromarray(pixels(9, height=4, width=6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    image = check(encode(source, image_format, exif=exif, **options))
    steps = {
        1: [],
        2: ["h"],
        3: ["h", "v"],
        4: ["v"],
        5: ["t"],
        6: ["t", "h"],
        7: ["t", "h", "v"],
        8: ["t", "v"],
    }
    expected = np.asarray(source)
    for step in steps[orientation]:
        expected = {"h": expected[:, ::-1], "v": expected[::-1], "t": expected.transpose(1, 0, 2)}[step]
    np.testing.assert_array_equal(decoded(image), expected)
    assert image.reencoded == (orientation > 1 or image_format != "PNG")


def test_rotated_jpeg_is_reencoded_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = check(encode(Image.new("RGB", (16, 8), "red"), "JPEG", exif=exif))
    assert (image.extension, image.reencoded, image.width, image.height) == ("jpg", True, 8, 16)
    assert not dict(Image.open(io.BytesIO(image.image_bytes)).getexif())


def test_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(pixels(seed)) for seed in (1, 2)]
    image = check(encode(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    assert image.reencoded
    np.testing.assert_array_equal(decoded(image), pixels(1))


def test_phone_picture_with_several_frames_stays_a_jpeg() -> None:
    frames = [Image.fromarray(pixels(seed)) for seed in (1, 2)]
    content = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    image = check(content)
    assert (image.extension, image.reencoded) == ("jpg", False)


def test_the_original_is_described() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = check(encode(SMOOTH.convert("CMYK"), "JPEG", exif=exif))
    assert image.original == OriginalInfo(width=400, height=300, mode="CMYK", exif_orientation=6)
    assert (image.width, image.height) == (300, 400)
    kept = check(encode(SMOOTH, "JPEG"))
    assert kept.original == OriginalInfo(width=400, height=300, mode="RGB", exif_orientation=1)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_longer_side_is_scaled_down_once(image_format: str) -> None:
    limits = ImageLimits(max_side_px=100)
    image = check(encode(SMOOTH, image_format), limits)
    assert (image.width, image.height, image.reencoded) == (100, 75, True)
    assert image.extension == ("jpg" if image_format == "JPEG" else "png")
    expected = np.asarray(SMOOTH.resize((100, 75), Image.Resampling.LANCZOS), np.float32)
    assert np.abs(decoded(image) - expected).mean() < 3
    assert check(image.image_bytes, limits).image_bytes == image.image_bytes
    assert (
        not check(encode(SMOOTH, image_format), ImageLimits(max_side_px=400)).reencoded
        or image_format == "WEBP"
    )


def test_scaled_down_without_aliasing() -> None:
    """Stripes of one pixel become grey; picking every fifth pixel would leave black or white."""
    stripes = np.zeros((500, 500), np.uint8)
    stripes[:, ::2] = 255
    image = check(encode(Image.fromarray(stripes), "PNG"), ImageLimits(max_side_px=100))
    assert abs(decoded(image).astype(int) - 127).max() < 20


def test_quality_of_what_is_encoded_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    content = encode(SMOOTH, "JPEG", exif=exif)
    sizes = [len(check(content, ImageLimits(jpeg_quality=quality)).image_bytes) for quality in (30, 95, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 2


def test_limits() -> None:
    assert reason_of(png(1), ImageLimits(max_pixels=63)) == "too_large"
    assert check(png(1), ImageLimits(max_pixels=64))
    assert reason_of(png(1), ImageLimits(max_bytes=20)) == "too_large"
    assert reason_of(png(1, width=4), ImageLimits(min_side_px=5)) == "too_small"


@pytest.mark.parametrize("side", [10_000, 12_000, 30_000])
def test_bomb_is_refused_without_decoding_and_without_a_warning(side: int) -> None:
    """Between 89 and 179 megapixels Pillow only warns, above it raises; both must be `too_large`."""
    bomb = raw_png(side, side, 8, 2, b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason_of(bomb) == "too_large"


def test_silence_ends_with_the_last_of_overlapping_threads() -> None:
    """catch_warnings in threads that overlap left the filters of the first one in place for good."""
    before = list(warnings.filters)
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with quiet_pillow():
            first_in.set()
            second_in.wait(5)
        first_out.set()

    def second() -> None:
        first_in.wait(5)
        with quiet_pillow():
            second_in.set()
            first_out.wait(5)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


@pytest.mark.parametrize(
    "options",
    [
        *({"max_pixels": 0}, {"max_pixels": 10**9}, {"max_bytes": 0}, {"min_side_px": 0}, {"max_side_px": 0}),
        *({"jpeg_quality": 0}, {"jpeg_quality": 101}, {"validate": "some"}),
    ],
)
def test_bad_limits_name_the_field(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ImageLimits(**options)
