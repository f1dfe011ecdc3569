"""Random rectangles for random erasing and CutMix, drawn on the CPU, painted on the device.

Shape letters: B batch, H height, W width, 4 a box (top, left, bottom, right) in pixels, bottom and right
exclusive. An empty box (0, 0, 0, 0) selects nothing.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ERASING_DRAWS = 5
"""Uniform numbers for each box of `draw_erasing_boxes`."""

_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)


def draw_erasing_boxes(
    uniforms_BD: NDArray[np.float64], *, probability: float, height: int, width: int
) -> NDArray[np.int64]:
    """Draw boxes [B, 4] for random erasing (Zhong et al., 2017), with timm's area and aspect ranges.

    A side longer than the image is cut to it; timm draws again.
    """
    area = height * width * (_ERASED_AREA[0] + uniforms_BD[:, 1] * (_ERASED_AREA[1] - _ERASED_AREA[0]))
    low, high = np.log(_ERASED_ASPECT)
    aspect = np.exp(low + uniforms_BD[:, 2] * (high - low))
    box_heights = np.clip(np.rint(np.sqrt(area * aspect)), 1, height).astype(np.int64)
    box_widths = np.clip(np.rint(np.sqrt(area / aspect)), 1, width).astype(np.int64)
    tops = (uniforms_BD[:, 3] * (height - box_heights + 1)).astype(np.int64)
    lefts = (uniforms_BD[:, 4] * (width - box_widths + 1)).astype(np.int64)
    boxes_B4 = np.stack((tops, lefts, tops + box_heights, lefts + box_widths), axis=1)
    boxes_B4[uniforms_BD[:, 0] >= probability] = 0
    return boxes_B4


def box_masks(boxes_B4: Tensor, height: int, width: int) -> Tensor:
    """Return bool [B, 1, H, W], True inside each box."""
    top, left, bottom, right = boxes_B4.view(-1, 4, 1, 1, 1).unbind(1)
    y_H1 = torch.arange(height, device=boxes_B4.device).view(height, 1)
    x_1W = torch.arange(width, device=boxes_B4.device).view(1, width)
    return ((y_H1 >= top) & (y_H1 < bottom)) & ((x_1W >= left) & (x_1W < right))
