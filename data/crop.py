"""Where a training or evaluation crop lies in its image: arithmetic on numbers drawn beforehand.

Boxes are (top, left, height, width) in pixels of the upright image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.randomness import Stream, uniforms

_NUM_TRIES = 10
NUM_CROP_DRAWS = 2 + 2 * _NUM_TRIES
"""Numbers drawn for each crop: top and left, then area and ratio of each try."""

CropBox = tuple[int, int, int, int]
FloatBox = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How image bytes become a square uint8 image. Part of the recipe."""

    image_size_px: int
    crop_mode: Literal["random_resized", "random_pad"] = "random_resized"
    """`random_resized`: a random area and aspect ratio, resized (Szegedy et al., 2015). `random_pad`:
    pad, crop at the original size, then resize if needed (He et al., 2015); for tiny images."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """random_resized: range of the crop's share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """random_resized: range of width / height, drawn log-uniformly. (1, 1) in both this and
    `crop_scale` means no crop: the whole image, resized."""
    pad_px: int = 4
    """random_pad: pixels added on each side, at the image's original size."""
    pad_mode: Literal["reflect", "zero"] = "reflect"
    eval_crop: Literal["center", "squash"] = "center"
    """`center`: resize the short side to image_size_px / eval_crop_fraction, crop the middle.
    `squash`: resize the whole image to a square."""
    eval_crop_fraction: float = 0.875

    def __post_init__(self) -> None:
        if not 1 <= self.image_size_px <= 8192:
            raise InputError(f"image_size_px is {self.image_size_px}; it must be 1 to 8192.")
        choices = {
            "crop_mode": ("random_resized", "random_pad"),
            "pad_mode": ("reflect", "zero"),
            "eval_crop": ("center", "squash"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(allowed)}.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise InputError(f"crop_scale is {self.crop_scale}; it must be 0 < low <= high <= 1.")
        low, high = self.crop_ratio
        if not 0 < low <= high < math.inf:
            raise InputError(f"crop_ratio is {self.crop_ratio}; it must be 0 < low <= high.")
        if self.pad_px < 0:
            raise InputError(f"pad_px is {self.pad_px}; it must not be negative.")
        if not 0 < self.eval_crop_fraction <= 1:
            raise InputError(f"eval_crop_fraction is {self.eval_crop_fraction}; it must be in (0, 1].")


def draw_crops(seed: int, epoch: int, positions_B: NDArray[np.int64]) -> list[list[float]]:
    """Draw the numbers that place each sample's crop: B lists of `NUM_CROP_DRAWS` in [0, 1)."""
    return uniforms(seed, epoch, positions_B, Stream.CROP, NUM_CROP_DRAWS).tolist()


def random_resized_box(height: int, width: int, draws: Sequence[float], config: DecodeConfig) -> CropBox:
    """Place a crop as torchvision's `RandomResizedCrop.get_params` does, from drawn numbers.

    Ten tries of an area and a ratio; the first that fits is taken, else the largest centred crop of
    an allowed ratio. Scale and ratio of (1, 1) give the whole image.
    """
    if config.crop_scale == config.crop_ratio == (1.0, 1.0):
        return 0, 0, height, width
    area = height * width
    scale_low, scale_high = config.crop_scale
    log_low, log_high = math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])
    for index in range(2, NUM_CROP_DRAWS, 2):
        target_area = area * (scale_low + draws[index] * (scale_high - scale_low))
        ratio = math.exp(log_low + draws[index + 1] * (log_high - log_low))
        crop_width = round(math.sqrt(target_area * ratio))
        crop_height = round(math.sqrt(target_area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draws[0] * (height - crop_height + 1))
            left = int(draws[1] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    return _fallback_box(height, width, config.crop_ratio)


def _fallback_box(height: int, width: int, crop_ratio: tuple[float, float]) -> CropBox:
    """Return the largest centred crop whose ratio is allowed."""
    ratio = width / height
    crop_height, crop_width = height, width
    if ratio < crop_ratio[0]:
        crop_height = max(1, round(width / crop_ratio[0]))
    elif ratio > crop_ratio[1]:
        crop_width = max(1, round(height * crop_ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_pad_offset(draws: Sequence[float], pad_px: int) -> tuple[int, int]:
    """Return the shift (down, right) of a padded crop, each -pad_px to pad_px."""
    num_places = 2 * pad_px + 1
    return int(draws[0] * num_places) - pad_px, int(draws[1] * num_places) - pad_px


def eval_box(height: int, width: int, config: DecodeConfig) -> FloatBox:
    """Return the source pixels that the evaluation shows.

    For `center` the numbers are torchvision's `Resize` of the short side, rounded, followed by
    `CenterCrop`; the box is that crop mapped back onto the image, so one resize does both.
    """
    if config.eval_crop == "squash":
        return 0.0, 0.0, float(height), float(width)
    size = config.image_size_px
    short = round(size / config.eval_crop_fraction)
    if height <= width:
        resized_height, resized_width = short, int(short * width / height)
    else:
        resized_height, resized_width = int(short * height / width), short
    top = round((resized_height - size) / 2) * height / resized_height
    left = round((resized_width - size) / 2) * width / resized_width
    # min: rounding must not let the box leave the image by an ulp.
    crop_height = min(size * height / resized_height, height - top)
    crop_width = min(size * width / resized_width, width - left)
    return top, left, crop_height, crop_width
