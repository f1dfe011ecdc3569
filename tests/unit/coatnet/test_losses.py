import math

import torch

from coatnet.losses import sample_losses


def test_softmax_against_the_formula() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    targets = torch.tensor([[0.7, 0.3, 0.0]])
    smoothed = 0.9 * targets + 0.1 / 3
    expected = -(smoothed * torch.log_softmax(logits, 1)).sum(1)
    torch.testing.assert_close(sample_losses(logits, targets, loss="softmax", label_smoothing=0.1), expected)


def test_sigmoid_sums_over_classes() -> None:
    logits = torch.zeros(1, 4)
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    loss = sample_losses(logits, targets, loss="sigmoid", label_smoothing=0.0)
    torch.testing.assert_close(loss, torch.tensor([4 * math.log(2)]))


def test_sigmoid_smoothing_moves_each_target_towards_one_half() -> None:
    logits = torch.tensor([[3.0, -3.0]])
    smoothed = torch.tensor([[0.95, 0.05]])
    expected = -(smoothed * torch.sigmoid(logits).log() + (1 - smoothed) * torch.sigmoid(-logits).log()).sum(
        1
    )
    loss = sample_losses(logits, torch.tensor([[1.0, 0.0]]), loss="sigmoid", label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_losses_are_float32_under_half_precision_logits() -> None:
    logits = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert sample_losses(logits, torch.eye(3)[:2], loss="softmax", label_smoothing=0.0).dtype == torch.float32
