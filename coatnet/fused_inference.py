"""Inference on the CPU in fewer passes over the activations.

In eval BatchNorm is one multiplication and one addition a channel, which the convolution after or before
it takes over, and oneDNN applies an activation while it writes a convolution's or a linear layer's output.
Models do this by themselves where no gradient is asked for; logits agree up to rounding.

Shape letters: B batch, C channels, H height, W width, O output channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from coatnet.onednn_linear import ONEDNN, onednn_linear
from coatnet.plain_cpu import is_dense_float32, is_plain_float32, is_watched

_LAYERS = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)
_NAMES: dict[type[nn.Module], str] = {nn.GELU: "gelu", nn.SiLU: "swish", nn.ReLU: "relu"}
"""What oneDNN calls an activation."""


def is_fusable(x: Tensor, *modules: nn.Module) -> bool:
    """Say whether this is plain float32 inference on the CPU, by modules whose `forward` may be left out.

    Those are layers and activations of exactly torch's own types: a subclass, as of LoRA or of a quantised
    model, computes something else.
    """
    is_inference = is_plain_float32(x) and not torch.is_grad_enabled()
    return is_inference and all(_is_plain_module(module) for module in modules)


def _is_plain_module(module: nn.Module) -> bool:
    if module.training or is_watched(module):
        return False
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
        return False
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        return False
    if type(module) in _LAYERS:
        return _is_plain_weight(module.weight) and (module.bias is None or _is_plain_weight(module.bias))
    return type(module) in _NAMES


def _is_plain_weight(weight: object) -> bool:
    # Tensors made in inference mode do not count their writes, so nothing could be kept of them. A compiled
    # graph keeps nothing.
    return (
        isinstance(weight, Tensor)
        and type(weight) in (nn.Parameter, Tensor)
        and is_dense_float32(weight)
        and (torch.compiler.is_compiling() or not weight.is_inference())
    )


def linear(x: Tensor, layer: nn.Linear, activation: nn.Module | None = None) -> Tensor:
    """Return activation(layer(x)) in one pass. Needs `is_fusable`."""
    name, _, formula = _post_op(activation)
    return onednn_linear(x, layer.weight, layer.bias, name, formula)


def _post_op(activation: nn.Module | None) -> tuple[str, list[float], str]:
    """Return oneDNN's name of an activation, its numbers, and which of its formulas is meant."""
    if activation is None:
        return "none", [], ""
    formula = activation.approximate if isinstance(activation, nn.GELU) else ""
    return _NAMES[type(activation)], [], formula


class FusedConvolution:
    """activation(after(convolution(before(x)))) of eval as one convolution, with its weights kept.

    They are computed anew when a norm is another one, or when the convolution's weights have been written to.
    A write through `.data`, or by a collective, is not seen there: call `forget`, which `train` and `eval` of
    the modules that hold this do. `before` and `after` are BatchNorms or None; with `before` the convolution
    must not pad: the zeros around an image are not normalised.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop the kept weights."""
        self._kept: list[Tensor] = []
        self._state: tuple[object, ...] = ()
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
        if torch.compiler.is_compiling():
            weight, bias = _fold(before, convolution, after)
        else:
            weight, bias = self._weights(before, convolution, after)
        geometry = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        return ONEDNN._convolution_pointwise(x_BCHW, weight, bias, *geometry, *_post_op(activation))

    def __getstate__(self) -> dict[str, Any]:
        return FusedConvolution().__dict__

    def _weights(
        self, before: nn.Module | None, convolution: nn.Conv2d, after: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        norms = [norm for norm in (before, after) if isinstance(norm, nn.BatchNorm2d)]
        values = [value for norm in norms for value in _values(norm)]
        weights = [weight for weight in (convolution.weight, convolution.bias) if weight is not None]
        # `_version` grows with every in-place write: optimizer step, EMA swap, load_state_dict. BatchNorm's
        # own write of its statistics does not count, so of norms, which are small, the values are compared.
        versions = [(weight.data_ptr(), weight._version) for weight in weights]  # pyright: ignore[reportPrivateUsage]
        state = (*versions, *(norm.eps for norm in norms))
        if self._folded is None or state != self._state or not _are_equal(values, self._kept):
            with torch.inference_mode(False), torch.no_grad():
                self._folded = _fold(before, convolution, after)
                kept = [value.clone() for value in values]
            # Weights are kept so that no other tensor can come to lie at the same address.
            self._state, self._kept = state, [*kept, *(weight.detach() for weight in weights)]
        return self._folded


def _values(norm: nn.BatchNorm2d) -> list[Tensor]:
    found = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return [value for value in found if value is not None]


def _are_equal(values: list[Tensor], kept: list[Tensor]) -> bool:
    """Compare with the first of `kept`."""
    return all(torch.equal(value, other) for value, other in zip(values, kept, strict=False))


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
