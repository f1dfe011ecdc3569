"""Operations that change each 8-bit level by itself: one table of 256, whatever the size of the image.

Shape letters: R rows, T tables of a row (1, or one a channel), C channels, H height, W width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_LEVELS = 256

Table = NDArray[np.uint8]
_levels = np.arange(NUM_LEVELS)


def solarize(threshold: int) -> Table:
    """Invert what reaches the threshold, 0 to 256 (`ImageOps.solarize`)."""
    return np.where(_levels < threshold, _levels, 255 - _levels).astype(np.uint8)


def solarize_add(amount: int) -> Table:
    """Brighten levels below 128. Kornia's `additions` shifts the bright half too and then inverts it."""
    return np.where(_levels < 128, np.minimum(_levels + amount, 255), _levels).astype(np.uint8)


def brightness(factors_R: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Multiply by the factor (`ImageEnhance.Brightness`), which cuts fractions off: tables [R, 256]."""
    scaled_RL = factors_R.astype(np.float32)[:, None] * _levels.astype(np.float32)
    return np.clip(scaled_RL, 0, 255).astype(np.uint8)


def apply_tables(images_RCHW: Tensor, tables_RTL: Tensor) -> Tensor:
    """Look every level up: uint8 images, tables uint8 [R, T, 256] with T of 1 or C. The result is new."""
    tables = tables_RTL.expand(*images_RCHW.shape[:2], NUM_LEVELS).reshape(-1, NUM_LEVELS)
    return tables.gather(1, _as_indices(images_RCHW)).view_as(images_RCHW)


def histograms(images_RCHW: Tensor) -> Tensor:
    """Count each channel's levels: int64 [R, C, 256], exact whatever the order of counting."""
    indices = _as_indices(images_RCHW)
    counts = torch.zeros(len(indices), NUM_LEVELS, dtype=torch.int32, device=indices.device)
    ones = torch.ones((), dtype=torch.int32, device=indices.device).expand_as(indices)
    return counts.scatter_add_(1, indices, ones).long().view(*images_RCHW.shape[:2], NUM_LEVELS)


def _as_indices(images_RCHW: Tensor) -> Tensor:
    """Return the levels as int64 [R * C, H * W], which torch's look-ups ask for."""
    return images_RCHW.view(images_RCHW.shape[0] * images_RCHW.shape[1], -1).long()
