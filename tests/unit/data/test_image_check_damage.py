"""Damage is found wherever it lies, and what only looks like damage is none."""

from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data.image_check import ImageLimits
from tests.checked_images import SMOOTH, check, reason_of
from tests.image_samples import encode, jpeg, png


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
