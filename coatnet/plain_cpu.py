"""When a layer may be computed another way on the CPU than torch would: nobody can tell, but by the clock."""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module


def is_plain_float32(x: Tensor) -> bool:
    """Say whether this is float32 on the CPU with oneDNN, and nothing traces, transforms or listens."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
        and _onednn_is_on()
        and not (nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
    )


def is_plain_in_training(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Say whether a module trains, is exactly of torch's own kind, and has whole float32 weights.

    A subclass, as of LoRA or of a quantised model, computes something else; a shard is no plain Parameter.
    """
    weights = module.parameters(recurse=False)
    return (
        type(module) is kind
        and module.training
        and not is_watched(module)
        and all(type(weight) is nn.Parameter and weight.dtype == torch.float32 for weight in weights)
    )


def is_watched(module: nn.Module) -> bool:
    """Say whether the module has hooks: somebody listens, or FSDP gathers its weights in one."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]


@torch.compiler.assume_constant_result
def _onednn_is_on() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
