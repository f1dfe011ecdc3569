"""The hash of the same picture stays close; other pictures are far; plain ones have none."""

import numpy as np
import pytest
from PIL import Image

from data.image_check import ImageLimits, check_image
from data.perceptual_hash import perceptual_hash
from tests.card_dataset import scene
from tests.image_samples import encode


def hash_of(content: bytes) -> int:
    found = check_image(content, ImageLimits()).perceptual_hash
    assert found is not None
    return found


def distance(first: bytes, second: bytes) -> int:
    return (hash_of(first) ^ hash_of(second)).bit_count()


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_close(seed: int) -> None:
    image = scene(seed)
    original = encode(image, "JPEG", quality=92)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    copies = {
        "recompressed": encode(image, "JPEG", quality=50),
        "half": encode(image.resize((240, 180), Image.Resampling.LANCZOS), "JPEG", quality=85),
        "png": encode(image, "PNG"),
        "webp": encode(image, "WEBP", quality=70),
        "grey": encode(image.convert("L"), "PNG"),
        "brighter": encode(image.point(lambda value: min(255, int(value * 1.1))), "JPEG"),
        "turned": encode(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=rotated),
    }
    assert {name: distance(original, copy) <= 4 for name, copy in copies.items()} == dict.fromkeys(
        copies, True
    )


def test_other_pictures_are_far() -> None:
    hashes = [hash_of(encode(scene(seed), "JPEG")) for seed in range(30)]
    distances = [(a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(distances) > 10


def test_plain_pictures_have_none() -> None:
    """Their bits would be JPEG's rounding: all clear skies would be each other's copies, or none."""
    gradient = np.tile(np.arange(200, 230, 0.1).astype(np.uint8), (200, 1))
    for plain in (np.full((50, 60), 255, np.uint8), gradient):
        assert perceptual_hash(plain) is None
        assert check_image(encode(Image.fromarray(plain), "JPEG"), ImageLimits()).perceptual_hash is None


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 2000), (33, 31), (362, 362), (363, 1)])
def test_any_size(size: tuple[int, int]) -> None:
    luma = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    found = perceptual_hash(luma)
    assert found is None or found.bit_count() == 31


def test_the_hash_is_written_down() -> None:
    """Indexes keep it: another value for the same picture needs a new SHARD_FORMAT_VERSION."""
    luma = (np.add.outer(np.arange(80) ** 2, 3 * np.arange(70)) % 256).astype(np.uint8)
    assert perceptual_hash(luma) == 1958525013176509534
