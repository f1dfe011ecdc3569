"""A 64-bit hash of what a picture looks like: the same picture, recompressed or resized, stays close.

The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
section 3.2: a 32x32 grey thumbnail, the lowest 8x8 frequencies of its DCT without the mean, each bit
says whether one of them is above their median. So 31 of 63 bits are set, and distances are even.
Both steps are linear, and one pair of matrices does them at once. All of it is whole numbers below 2**53, so
that every sum is exact: others would differ between processors.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 32
_NUM_FREQUENCIES = 8
_MIDDLE = (_NUM_FREQUENCIES**2 - 1) // 2
_ONE = 512
# Beyond 2**17 pixels sums could exceed 2**53.
_MAX_SIDE_PX = 362
_REDUCED_SIDE_PX = 256
_BASIS_FN: NDArray[np.float64] = np.array(
    [
        [round(_ONE * math.cos(math.pi * (2 * n + 1) * f / (2 * SIDE_PX))) for n in range(SIDE_PX)]
        for f in range(_NUM_FREQUENCIES)
    ],
    dtype=np.float64,
)
# A wave of this amplitude in grey levels, or less, is the rounding of the file format, not the picture.
_MIN_AMPLITUDE = 1 / 8
_MIN_MEDIAN_PER_PIXEL = _MIN_AMPLITUDE * _ONE**2 * SIDE_PX**2 / 4


def perceptual_hash(luma_HW: NDArray[np.uint8]) -> int | None:
    """Return the hash of a grey picture, uint8 [H, W], of any size; 32 to 128 px a side is best.

    None for a picture too plain to tell from others (a blank page, a clear sky): its bits would be noise.
    """
    if max(luma_HW.shape) > _MAX_SIDE_PX:
        size = tuple(min(side, _REDUCED_SIDE_PX) for side in reversed(luma_HW.shape))
        luma_HW = np.asarray(Image.fromarray(luma_HW).resize(size, Image.Resampling.BOX))
    height, width = luma_HW.shape
    # Products of float64, which BLAS multiplies ten times faster than integers.
    frequencies = (_waves(height) @ luma_HW.astype(np.float64) @ _waves(width).T).ravel()[1:]
    # By sorting: an odd number of values has its median in the middle, and np.median is ten times slower.
    if np.sort(np.abs(frequencies))[_MIDDLE] < _MIN_MEDIAN_PER_PIXEL * luma_HW.size:
        return None
    bits = frequencies > np.sort(frequencies)[_MIDDLE]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@lru_cache(maxsize=_MAX_SIDE_PX)
def _waves(side_px: int) -> NDArray[np.float64]:
    """Return the matrix that averages N = `side_px` pixels into `SIDE_PX` and takes their DCT, times 32 N."""
    pixels, means = np.arange(side_px + 1) * SIDE_PX, np.arange(SIDE_PX + 1) * side_px
    # How much of each pixel is in each mean.
    shared = np.minimum.outer(means[1:], pixels[1:]) - np.maximum.outer(means[:-1], pixels[:-1])
    return _BASIS_FN @ np.maximum(shared, 0).astype(np.float64)
