"""Whatever can be decoded is shown, and nothing large is decoded for it."""

import io

import numpy as np
import pytest
from PIL import Image

from data.image_check import quiet_pillow
from data.small_picture import PICTURE_SIDE_PX, small_picture
from tests.image_samples import encode
from tests.odd_images import raw_png
from tests.small_dataset import picture

IMAGE = Image.fromarray(picture(300, 400, seed=1))


def shown(content: bytes, max_pixels: int = 10**6) -> Image.Image | None:
    with quiet_pillow():
        found = small_picture(content, max_pixels)
    return Image.open(io.BytesIO(found)) if found is not None else None


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_whole_images(image_format: str) -> None:
    small = shown(encode(IMAGE, image_format))
    assert small is not None
    assert max(small.size) == PICTURE_SIDE_PX
    expected = np.asarray(IMAGE.resize(small.size), np.float32)
    assert np.abs(np.asarray(small) - expected).mean() < 12


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_cut_images_show_what_there_is(image_format: str) -> None:
    content = encode(IMAGE, image_format)
    small = shown(content[: len(content) * 6 // 10])
    assert small is not None
    top = slice(0, small.height // 3)
    expected = np.asarray(IMAGE.resize(small.size), np.float32)[top]
    assert np.abs(np.asarray(small)[top] - expected).mean() < 12


def test_no_bomb_is_opened() -> None:
    """A large JPEG is scaled while it is read; a progressive one would lie in memory whole."""
    pixels = 300 * 400
    assert shown(encode(IMAGE, "JPEG"), pixels - 1) is not None
    assert shown(encode(IMAGE, "JPEG"), pixels // 65) is None
    assert shown(encode(IMAGE, "JPEG", progressive=True), pixels - 1) is None
    assert shown(encode(IMAGE, "PNG"), pixels - 1) is None
    assert shown(raw_png(30_000, 30_000, 8, 2, b""), 50_000_000) is None


@pytest.mark.parametrize("content", [b"", b"text", encode(IMAGE, "JPEG")[:20]])
def test_nothing_to_show(content: bytes) -> None:
    assert shown(content) is None
