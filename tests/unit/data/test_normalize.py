"""Bytes to model input and back."""

import torch

from data.augment import denormalize, normalize

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def test_formula_layout_and_way_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3).contiguous()
    result = normalize(images, MEAN, STD)
    expected = (images.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    torch.testing.assert_close(result, expected.permute(0, 3, 1, 2).float(), atol=1e-6, rtol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(denormalize(result, MEAN, STD), images)


def test_bf16_and_input_kept() -> None:
    images = torch.full((1, 4, 4, 3), 200, dtype=torch.uint8)
    result = normalize(images, MEAN, STD, torch.bfloat16)
    assert result.dtype == torch.bfloat16
    assert (images == 200).all()


def test_after_inference_mode_training_works() -> None:
    """Guards against cached constants that remember inference mode."""
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    mean = (0.11, 0.12, 0.13)
    with torch.inference_mode():
        normalize(images, mean, STD)
    weight = torch.ones(1, requires_grad=True)
    (normalize(images, mean, STD) * weight).sum().backward()
    assert weight.grad is not None
