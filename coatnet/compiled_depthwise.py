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
    """Return convolution(x). It must be a depthwise one, without bias, padded by zeros."""
    is_compiled = torch.compiler.is_compiling() and torch.is_grad_enabled()
    if not is_compiled or not is_plain_float32(x_BCHW) or not is_plain_layer(convolution, nn.Conv2d):
        return convolution(x_BCHW)
    return _opaque(x_BCHW, convolution.weight, list(convolution.stride), [*map(int, convolution.padding)])


@torch.library.custom_op("coatnet::depthwise", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    return F.conv2d(x, weight, None, stride, padding, 1, len(weight))


@torch.library.custom_op("coatnet::depthwise_gradients", mutates_args=())
def _opaque_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]
) -> tuple[Tensor, Tensor]:
    geometry = (stride, padding, [1, 1], False, [0, 0], len(weight))
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *geometry, [True, True, False]
    )
    return of_x, of_weight


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    return F.conv2d(x, weight, None, stride, padding, 1, len(weight))


@_opaque_gradients.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_opaque_gradients(gradient, *ctx.saved_tensors, ctx.stride, ctx.padding), None, None


_opaque.register_autograd(_gradients, setup_context=_keep)
