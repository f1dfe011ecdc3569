"""Operations that change each 8-bit level by itself: one table of 256, whatever the size of the image.

Shape letters: R rows, C channels, H height, W width, L levels.
"""

import torch
from torch import Tensor

NUM_LEVELS = 256


def apply_tables(images_RCHW: Tensor, tables_RCL: Tensor) -> Tensor:
    """Look every level up in its channel's table: uint8 images and tables. The result is new."""
    tables = tables_RCL.view(-1, NUM_LEVELS)
    return tables.gather(1, _as_indices(images_RCHW)).view_as(images_RCHW)


def histograms(images_RCHW: Tensor) -> Tensor:
    """Count each channel's levels: int64 [R, C, 256], exact whatever the order of counting."""
    # `bincount` takes two thirds of the time, but a GPU would be waited for.
    return (bin_counts if images_RCHW.device.type == "cpu" else scattered_counts)(images_RCHW)


def bin_counts(images_RCHW: Tensor) -> Tensor:
    """Count levels on a CPU."""
    shape = images_RCHW.shape[:2]
    starts_RC = torch.arange(shape.numel(), dtype=torch.int32).mul_(NUM_LEVELS).view(*shape, 1, 1)
    bins = (starts_RC + images_RCHW).view(-1)
    return torch.bincount(bins, minlength=shape.numel() * NUM_LEVELS).view(*shape, NUM_LEVELS)


def scattered_counts(images_RCHW: Tensor) -> Tensor:
    """Count levels on any device; on a GPU it has not run here."""
    indices = _as_indices(images_RCHW)
    counts = torch.zeros(len(indices), NUM_LEVELS, dtype=torch.int32, device=indices.device)
    ones = torch.ones((), dtype=torch.int32, device=indices.device).expand_as(indices)
    return counts.scatter_add_(1, indices, ones).long().view(*images_RCHW.shape[:2], NUM_LEVELS)


def _as_indices(images_RCHW: Tensor) -> Tensor:
    """Return the levels as int64 [R * C, H * W], which torch's look-ups ask for."""
    return images_RCHW.view(images_RCHW.shape[0] * images_RCHW.shape[1], -1).long()
