"""Linear layers on the CPU by oneDNN, to which torch gives convolutions; linear layers it gives to MKL.

On two cores of an AMD EPYC of the Zen 5 kind MKL reaches 220 GFLOP/s where oneDNN has 500. On two of an
Intel Xeon MKL is the faster one in training, so that linear layers are trained by it there; in inference
both take nearly the same, and oneDNN an activation with it.
Shape letters: C input channels, O output channels.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from coatnet.plain_cpu import is_plain_float32, is_plain_layer, is_transformed

ONEDNN: Any = torch.ops.mkldnn


def trained_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Return layer(x), [..., O]: as torch does it, but in plain training on a CPU where MKL is slow."""
    is_plain = _mkl_is_slow() and is_plain_float32(x) and is_plain_layer(layer, nn.Linear)
    if not torch.is_grad_enabled() or not is_plain or not x.numel():  # of no rows it refuses the gradients
        return layer(x)
    if torch.compiler.is_compiling():  # of an autograd function its tracer warns
        return _opaque_linear(x, layer.weight, layer.bias, "none", "")
    result: Any = _Linear.apply(x, layer.weight, layer.bias)
    return result


@torch.compiler.assume_constant_result
def _mkl_is_slow() -> bool:
    return _is_amd()


@cache
def _is_amd() -> bool:
    """Linux alone tells; elsewhere linear layers stay with what torch chooses."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def onednn_linear(
    x: Tensor, weight_OC: Tensor, bias: Tensor | None = None, activation: str = "none", formula: str = ""
) -> Tensor:
    """Return activation(x W^T + b) in one pass, without gradients; `activation` is oneDNN's name of it."""
    if torch.compiler.is_compiling():
        return _opaque_linear(x, weight_OC, bias, activation, formula)
    return ONEDNN._linear_pointwise(x, weight_OC, bias, activation, [], formula)


@torch.library.custom_op("coatnet::linear", mutates_args=())
def _opaque_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, formula: str) -> Tensor:
    """oneDNN's operation, unknown to inductor, which lowers the one it knows for constant weights alone."""
    return ONEDNN._linear_pointwise(x, weight, bias, activation, [], formula)


@_opaque_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, formula: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


class _Linear(torch.autograd.Function):
    """x W^T + b with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OC: Tensor, bias: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        _keep_for_gradients(ctx, (x, weight_OC))
        return onednn_linear(x, weight_OC, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Where the gradient's own gradient is asked for, or many at once, by what knows of both.
        is_plain = not torch.is_grad_enabled() and not is_transformed()
        return _gradients(ctx, gradient, onednn_linear if is_plain else functional.linear)


def _keep_for_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
    """Keep x for the weight's gradient and the weight for x's: of a frozen layer nothing stays in memory."""
    for_x, for_weight, *_ = ctx.needs_input_grad
    ctx.save_for_backward(inputs[0] if for_weight else None, inputs[1] if for_x else None)


def _gradients(
    ctx: Any, gradient: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return those for x, the weight and the bias; `multiply` is a linear layer without a bias."""
    x, weight_OC = ctx.saved_tensors
    rows = gradient.reshape(-1, gradient.shape[-1])
    # The weight's first: oneDNN copies what is transposed, and x's gradient need not be there by then.
    of_weight = None if x is None else multiply(rows.T, x.reshape(-1, x.shape[-1]).T)
    of_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
    return None if weight_OC is None else multiply(gradient, weight_OC.T), of_weight, of_bias


def _compiled_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    def multiply(x: Tensor, weight_OC: Tensor) -> Tensor:
        return _opaque_linear(x, weight_OC, None, "none", "")

    return *_gradients(ctx, gradient, multiply), None, None


_opaque_linear.register_autograd(_compiled_gradients, setup_context=_keep_for_gradients)
