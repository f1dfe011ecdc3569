"""MBConv and downsampling against straightforward references."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from coatnet import ModelConfig
from coatnet.layers import Downsample, make_norm_2d, make_norm_channels_last
from coatnet.mbconv import MBConvBlock
from coatnet.relative_attention import RelativeBias
from coatnet.transformer import TransformerBlock

CONFIG = ModelConfig(layout="CT", widths=(8, 16), depths=(1, 1), strides=(2, 2), head_size=8)


def batch_norm(x: Tensor, norm: Any) -> Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-3).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("downsample_on", ["conv1x1", "depthwise"])
@pytest.mark.parametrize("size", [8, 7])
def test_mbconv_equals_the_formula(downsample_on: Any, size: int) -> None:
    """Section 2.3: Proj(Pool(x)) + Conv(DepthConv(Conv(Norm(x), stride 2)))."""
    torch.manual_seed(0)
    config = ModelConfig(**{**CONFIG.to_dict(), "downsample_on": downsample_on})
    block = MBConvBlock(config, 8, 16, stride=2, drop_rate=0.0).double()
    x = torch.randn(2, 8, size, size, dtype=torch.float64)
    strides = (2, 1) if downsample_on == "conv1x1" else (1, 2)
    y = F.conv2d(batch_norm(x, block.pre_norm), block.expand.weight, stride=strides[0])
    y = F.gelu(batch_norm(y, block.expand_norm))
    y = F.conv2d(y, block.depthwise.weight, stride=strides[1], padding=1, groups=64)
    y = F.gelu(batch_norm(y, block.depthwise_norm))
    se: Any = block.se
    gate = F.silu(F.conv2d(y.mean((2, 3), keepdim=True), se.reduce.weight, se.reduce.bias))
    gate = F.conv2d(gate, se.expand.weight, se.expand.bias).sigmoid()
    y = F.conv2d(y * gate, block.project.weight, block.project.bias)
    pooled = F.max_pool2d(x, 2, ceil_mode=True)
    expected = F.conv2d(pooled, block.shortcut.project.weight, block.shortcut.project.bias) + y  # pyright: ignore
    torch.testing.assert_close(block(x), expected)


def test_transformer_block_equals_the_formula() -> None:
    """Proj(Pool(x)) + Attention(Pool(Norm(x))), then x + FFN(Norm(x))."""
    torch.manual_seed(0)
    block = TransformerBlock(CONFIG, 8, 16, stride=2, drop_rate=0.0, grid_size=3).double()
    assert block.attention.bias is not None
    block.attention.bias.reset_parameters()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    normed = F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)
    pooled = F.max_pool2d(normed, 2, ceil_mode=True).permute(0, 2, 3, 1)
    y = block.shortcut(x).permute(0, 2, 3, 1) + block.attention(pooled)
    hidden = F.gelu(block.ffn.expand(F.layer_norm(y, (16,))))
    expected = (y + block.ffn.project(hidden)).permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x), expected)


def test_stride_1_with_another_width_projects_without_pooling() -> None:
    """CoAtNet-6 and 7 change width inside S3 at the same resolution."""
    block = TransformerBlock(CONFIG, 8, 16, stride=1, drop_rate=0.0, grid_size=4)
    assert block(torch.randn(1, 8, 4, 4)).shape == (1, 16, 4, 4)


def test_equal_width_shortcut_has_no_projection() -> None:
    assert sum(p.numel() for p in Downsample(8, 8, 2, "max").parameters()) == 0


@pytest.mark.parametrize("kind", ["mbconv", "pre", "post", "none"])
def test_gradients_are_right(kind: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        layout="CT", widths=(2, 2), depths=(1, 1), strides=(2, 2), head_size=2, conv_expansion=2
    )
    if kind == "mbconv":
        block: torch.nn.Module = MBConvBlock(config, 2, 2, 2, 0.0)
    else:
        config = ModelConfig.from_dict({**config.to_dict(), "relative_attention": kind})
        block = TransformerBlock(config, 2, 2, 2, 0.0, 2)
        if isinstance(block.attention.bias, RelativeBias):
            block.attention.bias.reset_parameters()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = list(block.double().parameters())
    # The weights, too: those of the relative bias are among them.
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *weights))


@pytest.mark.parametrize(("kind", "eps"), [("batch", 1e-3), ("layer", 1e-5)])
def test_each_kind_of_norm_has_its_usual_epsilon(kind: Any, eps: float) -> None:
    norms: list[Any] = [make_norm_2d(kind, 4, None), make_norm_channels_last(kind, 4, None)]
    assert [norm.eps for norm in norms] == [eps, eps]
    assert make_norm_2d(kind, 4, 1e-6).eps == 1e-6


@pytest.mark.parametrize("is_x_BCN", [False, True])
@pytest.mark.parametrize("is_gradient_BCN", [False, True])
def test_batch_norm_of_channels_last_tensors_and_its_gradients(is_x_BCN: bool, is_gradient_BCN: bool) -> None:
    """Of [B, C, N, 1], which lies in memory in two orders at once, torch's gradients are wrong."""

    def lying(is_BCN: bool) -> Tensor:
        return torch.randn(2, 4, 15).mT if is_BCN else torch.randn(2, 15, 4)

    x, gradient = lying(is_x_BCN).requires_grad_(), lying(is_gradient_BCN)
    norm = make_norm_channels_last("batch", 4, None)
    leaves = [x, *norm.parameters()]
    with torch.no_grad():
        for weight in norm.parameters():
            weight.normal_()
    y = norm(x)
    rows = x.reshape(-1, 4)
    expected = F.batch_norm(rows, None, None, *norm.parameters(), training=True, eps=1e-3).view(y.shape)
    torch.testing.assert_close(y, expected)
    found = [torch.autograd.grad(output, leaves, gradient) for output in (y, expected)]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
