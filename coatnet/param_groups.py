"""Which parameters decay, and the optimizer over them."""

from typing import Any

import torch
from torch import nn

from coatnet.train_config import TrainConfig


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether weight decay applies: not to biases, norms and relative-bias tables.

    The paper does not say (Table 10 gives the rate only). Vectors are biases and norm scales; a
    relative-bias table is a matrix, but a bias by name.
    """
    return parameter.ndim > 1 and not any("bias" in part for part in name.split("."))


def make_param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into one group that decays and one that does not, in model order."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in named if decays(name, parameter)]
    kept = [parameter for name, parameter in named if not decays(name, parameter)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW (Table 10), with the fused kernel: one pass over all parameters, CPU included."""
    groups = make_param_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.peak_learning_rate, betas=config.betas, fused=True)
