"""How the peers of `bench_loader` crop and collate: torchvision's draws, Pillow's antialiased resize.

Shape letters: H and W pixels, C channels (RGB).
"""

import io
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIZE_PX = 224
_CROP_SCALE = [0.08, 1.0]
_CROP_RATIO = [3 / 4, 4 / 3]

Crop: TypeAlias = NDArray[np.uint8]


class RandomCrop:
    """Image bytes to one random-resized crop of torchvision's distribution, [H, W, C]; picklable."""

    def __init__(self, *, draft: bool) -> None:
        self._draft = draft

    def __call__(self, content: bytes) -> Crop:
        return self.crop(Image.open(io.BytesIO(content)))

    def crop(self, image: Image.Image) -> Crop:
        """Crop an image that is opened and, for `draft`, not loaded yet."""
        from torchvision.transforms import RandomResizedCrop

        width, height = image.size
        # Only the size is looked at; an expanded tensor has one without any memory.
        empty = torch.empty(1).expand(3, height, width)
        top, left, crop_height, crop_width = RandomResizedCrop.get_params(empty, _CROP_SCALE, _CROP_RATIO)
        if self._draft:
            image.draft("RGB", (width * SIZE_PX // crop_width, height * SIZE_PX // crop_height))
        x_scale, y_scale = image.width / width, image.height / height
        box = (
            left * x_scale,
            top * y_scale,
            (left + crop_width) * x_scale,
            (top + crop_height) * y_scale,
        )
        rgb = image.convert("RGB")
        return np.asarray(rgb.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=box))


class CropFile:
    """Open a file of an image folder and crop it; picklable."""

    def __init__(self, crop: RandomCrop) -> None:
        self._crop = crop

    def __call__(self, path: str) -> Crop:
        with open(path, "rb") as file:
            return self._crop(file.read())


def collate(batch: Any) -> tuple[Tensor, Tensor]:
    """Stack webdataset's columns."""
    images, labels = zip(*batch, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def collate_rows(rows: list[tuple[Crop, int]]) -> tuple[Tensor, Tensor]:
    """Stack samples; quicker than torch's own collation of arrays."""
    return torch.from_numpy(np.stack([image for image, _ in rows])), torch.tensor([int(x) for _, x in rows])
