"""BatchNorm folded into the convolutions beside it, for inference.

In eval BatchNorm is one multiplication and one addition a channel, which the convolution after or before
it can take over: on a CPU each of its passes over the activations costs about as much as the GELU beside it.
"""

import copy

import torch
from torch import Tensor, nn

from coatnet.mbconv import MBConvBlock
from coatnet.model import CoAtNet, Stem


def fold_batch_norm(model: CoAtNet) -> CoAtNet:
    """Return a copy for inference, in eval mode, with every BatchNorm folded that can be.

    Logits agree up to rounding. The copy's weights have no other use: they do not fit the config, so they
    are neither to be trained nor saved. A norm stays where something lies between it and its convolution,
    as an activation or an early squeeze-and-excitation (`ModelConfig`).
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_stem(folded.stem)
    for stage in folded.stages:
        assert isinstance(stage, nn.Sequential)
        for block in stage:
            if isinstance(block, MBConvBlock):
                _fold_block(block)
    return folded.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _fold_stem(stem: Stem) -> None:
    for index in range(len(stem) - 1):
        convolution, norm = stem[index], stem[index + 1]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            stem[index], stem[index + 1] = _norm_after(convolution, norm), nn.Identity()


def _fold_block(block: MBConvBlock) -> None:
    # The 1x1 convolution has no padding, so a shift of its input is one of its output, at every position.
    if isinstance(block.pre_norm, nn.BatchNorm2d) and isinstance(block.pre_activation, nn.Identity):
        block.expand, block.pre_norm = _norm_before(block.pre_norm, block.expand), nn.Identity()
    if isinstance(block.expand_norm, nn.BatchNorm2d):
        block.expand, block.expand_norm = _norm_after(block.expand, block.expand_norm), nn.Identity()
    if isinstance(block.depthwise_norm, nn.BatchNorm2d) and isinstance(block.early_se, nn.Identity):
        block.depthwise = _norm_after(block.depthwise, block.depthwise_norm)
        block.depthwise_norm = nn.Identity()


def _norm_after(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution for norm(convolution(x))."""
    scale, shift = _scale_and_shift(norm)
    weight = convolution.weight.double() * scale.view(-1, 1, 1, 1)
    return _with_weights(convolution, weight, _bias(convolution) * scale + shift)


def _norm_before(norm: nn.BatchNorm2d, convolution: nn.Conv2d) -> nn.Conv2d:
    """Return one convolution for convolution(norm(x)), where the convolution pads nothing."""
    scale, shift = _scale_and_shift(norm)
    weight = convolution.weight.double()
    bias = _bias(convolution) + torch.einsum("oihw,i->o", weight, shift)
    return _with_weights(convolution, weight * scale.view(1, -1, 1, 1), bias)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return float64 [C], [C]: eval's norm(x) is x * scale + shift."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _bias(convolution: nn.Conv2d) -> Tensor:
    if convolution.bias is not None:
        return convolution.bias.double()
    return convolution.weight.new_zeros(convolution.out_channels, dtype=torch.float64)


def _with_weights(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    like = convolution.weight
    convolution.weight = nn.Parameter(weight.to(like.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(like.dtype), requires_grad=False)
    return convolution
