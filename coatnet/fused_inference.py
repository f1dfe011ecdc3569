"""Inference on the CPU in fewer passes over the activations.

In eval BatchNorm is one multiplication and one addition a channel, which the convolution after or before
it takes over, and oneDNN applies an activation while it writes a convolution's or a linear layer's output.
Models do this by themselves where no gradient is asked for; logits agree up to rounding.

Shape letters: B batch, C channels, H height, W width, O output channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

_ONEDNN: Any = torch.ops.mkldnn
_NAMES: dict[type[nn.Module], str] = {nn.SiLU: "swish", nn.ReLU: "relu"}


def is_fusable(x: Tensor, *modules: nn.Module) -> bool:
    """Say whether this is float32 inference on the CPU, outside a graph, through modules without hooks."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and not any(module.training or _has_hooks(module) for module in modules)
    )


def linear(x: Tensor, layer: nn.Linear, activation: nn.Module | None = None) -> Tensor:
    """Return activation(layer(x)) in one pass. Needs `is_fusable`."""
    name, formula = _post_op(activation)
    return _ONEDNN._linear_pointwise(x, layer.weight, layer.bias, name, [], formula)


def _post_op(activation: nn.Module | None) -> tuple[str, str]:
    """Return oneDNN's name of an activation, and which of its formulas is meant."""
    if activation is None:
        return "none", ""
    if isinstance(activation, nn.GELU):
        return "gelu", activation.approximate
    return _NAMES[type(activation)], ""


class FusedConvolution:
    """activation(after(convolution(before(x)))) of eval as one convolution, with its weights kept.

    They are computed anew when a weight or a statistic has changed. `before` and `after` are BatchNorms or
    None; with `before` the convolution must not pad: the zeros around an image are not normalised.
    """

    def __init__(self) -> None:
        self._state: list[tuple[int, int]] = []
        self._sources: list[Tensor] = []
        self._folded: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        x_BCHW: Tensor,
        convolution: nn.Conv2d,
        activation: nn.Module,
        *,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
    ) -> Tensor:
        """Return [B, O, H', W']. Needs `is_fusable`."""
        weight, bias = self._weights(before, convolution, after)
        name, formula = _post_op(activation)
        return _ONEDNN._convolution_pointwise(
            x_BCHW,
            weight,
            bias,
            convolution.padding,
            convolution.stride,
            convolution.dilation,
            convolution.groups,
            name,
            [],
            formula,
        )

    def __getstate__(self) -> dict[str, Any]:
        return FusedConvolution().__dict__

    def _weights(
        self, before: nn.Module | None, convolution: nn.Conv2d, after: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        sources = [*_tensors(before), *_tensors(convolution), *_tensors(after)]
        if any(tensor.is_inference() for tensor in sources):  # such tensors do not count their writes
            return _fold(before, convolution, after)
        # `_version` grows with every in-place write: optimizer step, EMA swap, load_state_dict. BatchNorm's
        # own write of its statistics is the exception; it shows in `num_batches_tracked`.
        state = [(tensor.data_ptr(), tensor._version) for tensor in sources]  # pyright: ignore[reportPrivateUsage]
        if self._folded is None or state != self._state:
            with torch.inference_mode(False), torch.no_grad():
                self._folded = _fold(before, convolution, after)
            # Kept so that no other tensor can come to lie at the same address.
            self._state, self._sources = state, [tensor.detach() for tensor in sources]
        return self._folded


def _has_hooks(module: nn.Module) -> bool:
    """FSDP, for one, gathers a module's weights in a hook before its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]


def _tensors(module: nn.Module | None) -> list[Tensor]:
    if module is None:
        return []
    found = [module.weight, module.bias]
    if isinstance(module, nn.BatchNorm2d):
        found += [module.running_mean, module.running_var, module.num_batches_tracked]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def _fold(before: nn.Module | None, convolution: nn.Conv2d, after: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return the one convolution's weight and bias, computed in float64."""
    weight = convolution.weight.double()
    bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.double()
    if before is not None:
        scale, shift = _scale_and_shift(before)
        bias = bias + (weight.sum((2, 3)) * shift).sum(1)
        weight = weight * scale.view(1, -1, 1, 1)
    if after is not None:
        scale, shift = _scale_and_shift(after)
        weight, bias = weight * scale.view(-1, 1, 1, 1), bias * scale + shift
    return weight.float().contiguous(memory_format=torch.channels_last), bias.float()


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return float64 [C], [C]: eval's norm(x) is x * scale + shift."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


if torch.backends.mkldnn.is_available():  # FlopCounterMode would count nothing

    @register_flop_formula(_ONEDNN._convolution_pointwise)
    def _convolution_flops(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return conv_flop_count(x, weight, out_shape)

    @register_flop_formula(_ONEDNN._linear_pointwise)
    def _linear_flops(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return 2 * torch.Size(out_shape).numel() * weight[1]
