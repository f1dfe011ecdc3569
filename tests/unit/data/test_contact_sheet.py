"""The sheet is a PNG that shows pixels, whatever the sizes and captions."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data.contact_sheet import contact_sheet
from data.errors import InputError


def sheet(num: int, size: int, caption: str, augmented_size: int | None = None) -> Image.Image:
    originals = torch.randint(0, 256, (num, size, size, 3), dtype=torch.uint8)
    augmented = torch.zeros(num, augmented_size or size, augmented_size or size, 3, dtype=torch.uint8)
    image = Image.open(io.BytesIO(contact_sheet(originals, augmented, [caption] * num)))
    assert image.format == "PNG"
    return image


def test_small_images_are_enlarged_without_smoothing() -> None:
    original = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    image = Image.open(io.BytesIO(contact_sheet(original, original, ["flip"])))
    tile = np.asarray(image)[10 : 10 + 128, 10 : 10 + 128]
    np.testing.assert_array_equal(tile[::4, ::4], original[0].numpy())
    np.testing.assert_array_equal(tile[3::4, 3::4], original[0].numpy())


@pytest.mark.parametrize(("num", "size", "other"), [(1, 1, 1), (5, 224, 224), (7, 32, 48), (2, 150, 32)])
def test_any_size(num: int, size: int, other: int) -> None:
    image = sheet(num, size, "flip, Rotate 27", other)
    assert image.width > 256
    assert image.height > 128


def test_long_captions_make_room_and_are_cut() -> None:
    short, long = sheet(2, 32, "flip"), sheet(2, 32, "ShearX 0.3, " * 8)
    endless = sheet(2, 32, "ShearX 0.3, " * 500)
    assert short.height < long.height <= endless.height < long.height + 60
    assert short.width == long.width == endless.width


def test_unequal_counts_are_refused() -> None:
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"\(2, 2, 1\)"):
        contact_sheet(images, images, ["one"])
