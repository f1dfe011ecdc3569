"""Erasing boxes stay inside the image, with the areas and aspects asked for."""

import numpy as np
import torch

from data.boxes import ERASING_DRAWS, box_masks, draw_erasing_boxes
from data.randomness import uniforms


def boxes(num: int, *, probability: float = 1.0, height: int = 64, width: int = 48) -> np.ndarray:
    numbers = uniforms(0, 0, np.arange(num), 19, ERASING_DRAWS)
    return draw_erasing_boxes(numbers, probability=probability, height=height, width=width)


def test_boxes_lie_inside_with_the_right_area() -> None:
    top, left, bottom, right = boxes(20_000).T
    assert top.min() == 0
    assert left.min() == 0
    assert bottom.max() == 64
    assert right.max() == 48
    areas = (bottom - top) * (right - left) / (64 * 48)
    assert 0.01 < areas.min() < 0.03
    assert areas.max() < 0.36
    assert 0.16 < areas.mean() < 0.19  # uniform in [0.02, 1/3] has mean 0.177


def test_probability_and_tiny_images() -> None:
    share = np.mean(boxes(20_000, probability=0.25)[:, 2] > 0)
    assert 0.23 < share < 0.27
    tiny = boxes(200, height=1, width=2)
    assert (tiny[:, 2] == 1).all()
    assert tiny[:, 3].max() == 2


def test_masks_cover_exactly_the_box() -> None:
    mask = box_masks(torch.tensor([[1, 2, 3, 5], [0, 0, 0, 0]]), 4, 6)
    assert mask.shape == (2, 1, 4, 6)
    assert mask[0, 0].nonzero().tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4)]
    assert not mask[1].any()
