"""Images as the writer's check takes or refuses them."""

import pytest
from PIL import Image

from data.image_check import BadImageError, CheckedImage, ImageLimits, check_image, quiet_pillow
from tests.small_dataset import picture

SMOOTH = Image.fromarray(picture(300, 400, seed=1))


def check(content: bytes, limits: ImageLimits | None = None) -> CheckedImage:
    with quiet_pillow():
        return check_image(content, limits or ImageLimits())


def reason_of(content: bytes, limits: ImageLimits | None = None) -> str:
    with pytest.raises(BadImageError) as caught:
        check(content, limits)
    assert "\n" not in caught.value.detail
    assert "BytesIO" not in caught.value.detail
    return caught.value.reason
