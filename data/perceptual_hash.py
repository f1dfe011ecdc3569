"""A 64-bit hash of what a picture looks like: the same picture, recompressed or resized, stays close.

The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
section 3.2: a 32x32 grey thumbnail, the lowest 8x8 frequencies of its DCT without the mean, each bit
says whether one of them is above their median. So 31 of 63 bits are set, and distances are even.
The DCT is of whole numbers below 2**53, so that every sum is exact: others would differ between processors.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 32
_NUM_FREQUENCIES = 8
_MIDDLE = (_NUM_FREQUENCIES**2 - 1) // 2
_ONE = 1024
_BASIS_FN: NDArray[np.float64] = np.array(
    [
        [round(_ONE * math.cos(math.pi * (2 * n + 1) * f / (2 * SIDE_PX))) for n in range(SIDE_PX)]
        for f in range(_NUM_FREQUENCIES)
    ],
    dtype=np.float64,  # BLAS multiplies these ten times faster than integers.
)
# A wave of this amplitude in grey levels, or less, is the rounding of the file format, not the picture.
_MIN_AMPLITUDE = 1 / 8
_MIN_MEDIAN = int(_MIN_AMPLITUDE * _ONE**2 * SIDE_PX**2 / 4)


def perceptual_hash(luma_HW: NDArray[np.uint8]) -> int | None:
    """Return the hash of a grey picture, uint8 [H, W], of any size; 32 to 128 px a side is best.

    None for a picture too plain to tell from others (a blank page, a clear sky): its bits would be noise.
    """
    thumbnail = Image.fromarray(luma_HW).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    frequencies = (_BASIS_FN @ np.asarray(thumbnail, np.float64) @ _BASIS_FN.T).ravel()[1:]
    # By sorting: an odd number of values has its median in the middle, and np.median is ten times slower.
    if np.sort(np.abs(frequencies))[_MIDDLE] < _MIN_MEDIAN:
        return None
    bits = frequencies > np.sort(frequencies)[_MIDDLE]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
