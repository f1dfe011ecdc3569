import io
import struct
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data import image_check
from data.errors import InputError
from data.image_check import (
    BadImageError,
    CheckedImage,
    ImageLimits,
    OriginalInfo,
    check_image,
    quiet_pillow,
)
from tests.image_samples import encode, jpeg, pixels, png
from tests.odd_images import raw_png
from tests.small_dataset import picture


def check(content: bytes, limits: ImageLimits | None = None) -> CheckedImage:
    with quiet_pillow():
        return check_image(content, limits or ImageLimits())


def decoded(image: CheckedImage) -> np.ndarray:
    with Image.open(io.BytesIO(image.image_bytes)) as opened:
        assert opened.format == {"png": "PNG", "jpg": "JPEG"}[image.extension]
        assert opened.mode in ("L", "RGB")
        assert opened.size == (image.width, image.height)
        assert "transparency" not in opened.info
        assert dict(opened.getexif()) == {} or not image.reencoded
        return np.asarray(opened)


def reason_of(content: bytes, limits: ImageLimits | None = None) -> str:
    with pytest.raises(BadImageError) as caught:
        check(content, limits)
    assert "\n" not in caught.value.detail
    assert "BytesIO" not in caught.value.detail
    return caught.value.reason


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


SMOOTH = Image.fromarray(picture(300, 400, seed=1))


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


def test_header_mode_reads_the_header_alone_and_says_no_hash() -> None:
    """What is damaged after the header is not found; what must change is decoded all the same."""
    header = ImageLimits(validate="header")
    content = encode(SMOOTH, "JPEG")
    image = check(content[: len(content) // 2], header)
    assert (image.reencoded, image.perceptual_hash, image.width) == (False, None, 400)
    damaged = GOOD[:200] + bytes([GOOD[200] ^ 1]) + GOOD[201:]
    assert check(damaged, header).image_bytes == damaged
    assert check(encode(SMOOTH, "BMP"), header).reencoded
    assert reason_of(encode(SMOOTH, "BMP")[:5000], header) == "unreadable"
    assert reason_of(content[:10], header) == "unreadable"
    assert reason_of(content, ImageLimits(validate="header", max_pixels=100)) == "too_large"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_small_grey_decode_finds_the_damage_that_a_whole_one_finds(options: dict[str, Any]) -> None:
    """Only the inverse transform is left out, not the reading: each cut and each flip is judged alike."""
    content = encode(SMOOTH.resize((96, 80)), "JPEG", quality=90, **options)
    rng = np.random.default_rng(0)
    damaged = [content[:end] for end in rng.integers(2, len(content), 150)]
    for place, flip in zip(rng.integers(2, len(content), 150), rng.integers(1, 256, 150), strict=True):
        damaged.append(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
    verdicts = {True: 0, False: 0}
    for bad in damaged:
        whole, small = _decodes(bad, "RGB", 10_000), _decodes(bad, "GRAY", 8)
        assert whole == small
        verdicts[whole] += 1
    assert min(verdicts.values()) > 20


def _decodes(content: bytes, colours: str, min_side_px: int) -> bool:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content)
        sides = {"min_height": min(height, min_side_px), "min_width": min(width, min_side_px)}
        simplejpeg.decode_jpeg(content, colours, **sides)
    except ValueError:
        return False
    return True


def test_an_end_marker_does_not_make_a_cut_jpeg_whole() -> None:
    """Pillow fills the missing part with grey and says nothing."""
    content = encode(SMOOTH, "JPEG")
    assert reason_of(content[: len(content) // 2] + b"\xff\xd9") == "unreadable"


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 4}]
)
def test_overwritten_coded_data_is_unreadable(options: dict[str, Any]) -> None:
    """Pillow passes bad Huffman codes, and so did we: only an early end was a reject."""
    content = bytearray(encode(SMOOTH, "JPEG", quality=90, **options))
    rng = np.random.default_rng(0)
    num_found = 0
    for start in rng.integers(len(content) // 3, len(content) - 100, 60):
        damaged = bytes(content[:start] + rng.bytes(64) + content[start + 64 :])
        try:
            simplejpeg.decode_jpeg(damaged)
        except ValueError as error:
            complaint = str(error)
        else:
            continue
        if "Corrupt JPEG data" in complaint and not complaint.endswith("0xd9"):
            num_found += 1
            assert reason_of(damaged) == "unreadable"
    assert num_found > 10


def test_bytes_left_before_the_end_marker_are_no_damage() -> None:
    """Some cameras write them."""
    content = encode(SMOOTH, "JPEG")
    padded = content[:-2] + bytes(30) + content[-2:]
    with pytest.raises(ValueError, match="extraneous bytes before marker 0xd9"):
        simplejpeg.decode_jpeg(padded)
    assert check(padded).image_bytes == padded


def test_stray_bytes_between_markers_are_no_damage() -> None:
    content = encode(SMOOTH, "JPEG")
    odd = content[:20] + b"\0\0\0" + content[20:]  # after the first segment
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(odd)
    assert check(odd).image_bytes == odd


GOOD = png(3, height=64, width=64)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "unreadable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable"),
        (GOOD[: len(GOOD) // 2], "unreadable"),
        (GOOD[:-12], "unreadable"),
        (jpeg(1)[:-40], "unreadable"),
        (GOOD[:200] + bytes([GOOD[200] ^ 1]) + GOOD[201:], "unreadable"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "unsupported_mode"),
    ],
    ids=["empty", "text", "eps", "half", "no-end", "jpeg-cut", "bit-flip", "float"],
)
def test_unusable_images_have_a_reason(content: bytes, reason: str) -> None:
    assert reason_of(content) == reason


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
