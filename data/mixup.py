"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) within a lane.

A lane is a run of `lane_size` neighbours of the batch, the same ones whatever the world size. One choice
of method, one lambda and one box hold for a lane; sample i is mixed with sample i + shift of its lane,
going round, so that nobody is its own partner.

Shape letters: B batch, L lanes, C channels, H height, W width, K classes, 4 a box, see `data.boxes`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.boxes import box_masks
from data.normalize import rows_per_call
from data.transfer import to_device

MIX_DRAWS = 5
"""Uniform numbers for each lane: shift, method, lambda, the box's centre."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixDraw:
    """How each sample is mixed, before weights are looked at."""

    partners_B: NDArray[np.int64]
    """Rows of the batch."""
    lambdas_B: NDArray[np.float64]
    """The share of the sample itself, exact for a CutMix box."""
    boxes_B4: NDArray[np.int64]
    """The box that comes from the partner; empty for Mixup."""
    is_cutmix_B: NDArray[np.bool_]


def draw_mix(
    uniforms_LD: NDArray[np.float64],
    *,
    lane_size: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    height: int,
    width: int,
) -> MixDraw:
    """Turn uniform numbers [L, MIX_DRAWS] into partners, lambdas and boxes.

    Lambda is Beta(alpha, alpha). With both alphas above 0 each method has half of the lanes, as in
    timm. `lane_size` is at least 2.
    """
    num_lanes = len(uniforms_LD)
    share_of_cutmix = 0.0 if cutmix_alpha == 0.0 else 1.0 if mixup_alpha == 0.0 else 0.5
    is_cutmix_L = uniforms_LD[:, 1] < share_of_cutmix
    alphas_L = np.where(is_cutmix_L, cutmix_alpha, mixup_alpha)
    lambdas_L = np.array([_beta(u, a) for u, a in zip(uniforms_LD[:, 2], alphas_L, strict=True)])
    boxes_L4 = _cutmix_boxes(lambdas_L, uniforms_LD[:, 3:5], height, width)
    boxes_L4[~is_cutmix_L] = 0
    areas_L = (boxes_L4[:, 2] - boxes_L4[:, 0]) * (boxes_L4[:, 3] - boxes_L4[:, 1])
    lambdas_L = np.where(is_cutmix_L, 1.0 - areas_L / (height * width), lambdas_L)
    shifts_L = 1 + (uniforms_LD[:, 0] * (lane_size - 1)).astype(np.int64)
    offsets_Lb = (np.arange(lane_size)[None, :] + shifts_L[:, None]) % lane_size
    return MixDraw(
        partners_B=(offsets_Lb + np.arange(num_lanes)[:, None] * lane_size).ravel(),
        lambdas_B=lambdas_L.repeat(lane_size),
        boxes_B4=boxes_L4.repeat(lane_size, axis=0),
        is_cutmix_B=is_cutmix_L.repeat(lane_size),
    )


def _beta(uniform: float, alpha: float) -> float:
    """Draw Beta(alpha, alpha), keyed by a uniform number.

    `RandomState` is NumPy's legacy generator, whose algorithms never change, unlike `Generator`'s;
    Philox takes a key at once where its usual Mersenne Twister needs 0.3 ms to start.
    """
    key = int(uniform * 2.0**53)
    return float(np.random.RandomState(np.random.Philox(key=key)).beta(alpha, alpha))


def _cutmix_boxes(
    lambdas_L: NDArray[np.float64], centers_L2: NDArray[np.float64], height: int, width: int
) -> NDArray[np.int64]:
    """Return boxes [L, 4] of area 1 - lambda about a uniform centre, cut at the image's edges."""
    sides_L1 = np.sqrt(1.0 - lambdas_L)[:, None]
    size_2 = np.array([height, width])
    halves_L2 = (sides_L1 * size_2).astype(np.int64) // 2
    middles_L2 = (centers_L2 * size_2).astype(np.int64)
    return np.concatenate(
        (np.clip(middles_L2 - halves_L2, 0, size_2), np.clip(middles_L2 + halves_L2, 0, size_2)), axis=1
    )


def mix(images_BCHW: Tensor, targets_BK: Tensor, weights_B: Tensor, draw: MixDraw) -> tuple[Tensor, Tensor]:
    """Return mixed images, channels_last, and soft targets, both new.

    A sample stays alone, with its own target, where it or its partner has weight 0: a partner of
    weight 0 is padding or could not be decoded.
    """
    device = images_BCHW.device
    height, width = int(images_BCHW.shape[2]), int(images_BCHW.shape[3])
    numbers_B6 = np.column_stack((draw.partners_B, draw.lambdas_B, draw.boxes_B4)).astype(np.float32)
    moved_B6 = to_device(numbers_B6, device)
    partners_B = moved_B6[:, 0].long()
    alone_B = (weights_B <= 0) | (weights_B.index_select(0, partners_B) <= 0)
    lambdas_B = moved_B6[:, 1].masked_fill(alone_B, 1.0)
    shares = lambdas_B.view(-1, 1, 1, 1)
    if draw.is_cutmix_B.any():
        in_box_B1HW = box_masks(moved_B6[:, 2:], height, width) & ~alone_B.view(-1, 1, 1, 1)
        is_cutmix_B = to_device(draw.is_cutmix_B, device).view(-1, 1, 1, 1)
        shares = torch.where(is_cutmix_B, (~in_box_B1HW).to(shares.dtype), shares)
    mixed_BCHW = torch.empty_like(images_BCHW, memory_format=torch.channels_last)
    num_rows = rows_per_call(images_BCHW)
    for start in range(0, len(images_BCHW), num_rows):
        rows = slice(start, start + num_rows)
        partners = images_BCHW.index_select(0, partners_B[rows])
        mixed_BCHW[rows] = _weighted(images_BCHW[rows], partners, shares[rows])
    return mixed_BCHW, _weighted(targets_BK, targets_BK.index_select(0, partners_B), lambdas_B.view(-1, 1))


def _weighted(values: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Blend rows with their partners, which are overwritten. A share of 0 or 1 copies bits: all is finite."""
    return (values * shares).add_(partners.mul_(1.0 - shares))
