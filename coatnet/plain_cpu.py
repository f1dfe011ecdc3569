"""When a layer may be computed another way on the CPU than torch would: nobody can tell, but by the clock."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module

_HOOKS = ("forward", "forward_pre", "backward", "backward_pre")


def is_plain_float32(x: Tensor) -> bool:
    """Say whether this is float32 on the CPU with oneDNN, and nothing traces, transforms or listens."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
        and _onednn_is_on()
        and not any(getattr(nn_module, f"_global_{kind}_hooks") for kind in _HOOKS)
    )


def is_transformed() -> bool:
    """Say whether torch.func, or forward-mode differentiation, is at work."""
    level: int = forward_ad._current_level  # pyright: ignore[reportPrivateUsage]
    return level >= 0 or torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]


def is_plain_layer(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Say whether a layer trains, is of torch's own kind, and has whole float32 weights on the CPU.

    A subclass, as of LoRA or of a quantised model, computes something else; a shard is no plain Parameter.
    """
    weights = layer.parameters(recurse=False)
    return (
        type(layer) is kind
        and layer.training
        and not is_watched(layer)
        and all(type(weight) is nn.Parameter and is_dense_float32(weight) for weight in weights)
    )


def is_dense_float32(weight: Tensor) -> bool:
    """Say whether oneDNN, which asks neither for the device nor for a bias's strides, may have it."""
    is_dense = weight.is_contiguous() or weight.ndim == 4  # convolutions' weights are laid out anew
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and is_dense


def is_watched(module: nn.Module) -> bool:
    """Say whether the module has hooks, or a `forward` of its own: of a listener, or of FSDP."""
    return "forward" in vars(module) or any(vars(module)[f"_{kind}_hooks"] for kind in _HOOKS)


@torch.compiler.assume_constant_result
def _onednn_is_on() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
