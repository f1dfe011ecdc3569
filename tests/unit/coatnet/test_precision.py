"""bfloat16 autocast: what must stay float32 does."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coatnet import CoAtNet
from coatnet.layers import make_norm_2d
from coatnet.relative_attention import RelativeAttentionLayer
from coatnet.step import autocast
from tests.tiny_coatnet import TINY

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["pre", "post", "none"])
def test_the_softmax_is_float32(kind: Any) -> None:
    """In bfloat16 the weights of 400 positions add up to anything between 0.9 and 1.1."""
    torch.manual_seed(0)
    layer = RelativeAttentionLayer(8, 8, head_size=8, grid_size=20, kind=kind).eval()
    if layer.bias is not None:
        layer.bias.reset_parameters()
    # Values of one: the output is the sum of the weights, less what its own rounding to bfloat16 makes.
    nn.init.zeros_(layer.qkv.bias)
    with torch.no_grad():
        layer.qkv.weight[16:] = 0.0
        layer.qkv.bias[16:] = 1.0
        layer.project.weight.copy_(torch.eye(8))
        layer.project.bias.zero_()
    x = torch.randn(1, 20, 20, 8)
    with torch.no_grad(), autocast("bf16", CPU):
        found = layer(x)
    with torch.no_grad():
        expected = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.01, rtol=0.01)


def test_the_gradient_of_the_bias_is_summed_in_float32() -> None:
    """Each entry of the table sums hundreds of offsets: in bfloat16, 256 + 1 is 256."""
    layer = RelativeAttentionLayer(8, 8, head_size=8, grid_size=20, kind="post")
    assert layer.bias is not None
    assert isinstance(layer.bias.table, nn.Parameter)
    bias = layer.bias(20, 20, torch.bfloat16)
    bias.sum().backward()
    assert layer.bias.table.grad is not None
    assert layer.bias.table.grad.dtype == torch.float32
    assert layer.bias.table.grad[0, 19, 19] == 400


def test_batch_norm_keeps_float32_statistics() -> None:
    """A mean of 100 with a deviation of 0.1 has no variance left in bfloat16's three digits."""
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 4, 1, bias=False), make_norm_2d("batch", 4, None)
    x = torch.randn(8, 4, 16, 16)
    with autocast("bf16", CPU):
        y = convolution(x)
        norm(y)
    assert y.dtype == torch.bfloat16
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    exact = y.double()
    torch.testing.assert_close(norm.running_mean.double(), 0.01 * exact.mean((0, 2, 3)), atol=1e-6, rtol=1e-4)
    expected = 0.99 + 0.01 * exact.var((0, 2, 3), unbiased=True)
    torch.testing.assert_close(norm.running_var.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_model_under_autocast_is_close_and_its_weights_stay_float32() -> None:
    torch.manual_seed(0)
    model = CoAtNet(TINY)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    expected = model(images).detach()
    with autocast("bf16", CPU):
        logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
    loss.backward()
    scale = float(expected.std())
    torch.testing.assert_close(logits.float(), expected, atol=0.1 * scale, rtol=0.05)
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32, name
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32, name
        assert weight.grad.isfinite().all(), name
