"""The depthwise convolution of a compiled model that trains on the CPU, unknown to inductor.

For the gradients of the one it knows, inductor lays the input out in the order of the weight's strides, and
oneDNN lays it back. Those of a depthwise weight, [C, 1, K, K], have ties, so that this order is nobody's: it
took 6% of a training step of `coatnet_0` at 224 px.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coatnet.plain_cpu import is_plain_float32, is_plain_layer


def depthwise(x_BCHW: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Return convolution(x). It must be a depthwise one without a bias."""
    padding = convolution.padding
    if not torch.compiler.is_compiling() or isinstance(padding, str) or not _is_trained(x_BCHW, convolution):
        return convolution(x_BCHW)
    return _opaque(x_BCHW, convolution.weight, list(convolution.stride), list(padding))


def _is_trained(x_BCHW: Tensor, convolution: nn.Conv2d) -> bool:
    """Say whether both gradients are asked for, of a plain convolution."""
    return (
        torch.is_grad_enabled()
        and x_BCHW.requires_grad
        and convolution.weight.requires_grad
        and is_plain_float32(x_BCHW)
        and is_plain_layer(convolution, nn.Conv2d)
        and (convolution.dilation, convolution.padding_mode) == ((1, 1), "zeros")
    )


def _convolve(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    return F.conv2d(x, weight, None, stride, padding, 1, len(weight))


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]
) -> tuple[Tensor, Tensor]:
    geometry = (stride, padding, [1, 1], False, [0, 0], len(weight))
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *geometry, [True, True, False]
    )
    return of_x, of_weight


_opaque = torch.library.custom_op("coatnet::depthwise", _convolve, mutates_args=())
_opaque_gradients = torch.library.custom_op(
    "coatnet::depthwise_gradients", _convolution_backward, mutates_args=()
)
# torch's own operations know the layouts of what they return, also of tensors without values.
_opaque.register_fake(_convolve)
_opaque_gradients.register_fake(_convolution_backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_opaque_gradients(gradient, *ctx.saved_tensors, ctx.stride, ctx.padding), None, None


_opaque.register_autograd(_gradients, setup_context=_keep)
