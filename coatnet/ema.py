"""A moving average of the weights, used for evaluation and as the result."""

import copy

import torch
from torch import Tensor, nn


def decay_at(ema_decay: float, num_updates: int) -> float:
    """Return the decay of update `num_updates`, counted from 0: min(decay, (1 + n) / (10 + n)).

    The warmup keeps the random initial weights out of the average when a run is short.
    """
    return min(ema_decay, (1 + num_updates) / (10 + num_updates))


class Ema:
    """An averaged copy of a model.

    Floating-point buffers are averaged like weights: BatchNorm statistics of the live model do not
    fit averaged weights. Counters are copied. Call `update` after every optimizer step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False)
        self._averaged, self._copied = _split(self.model)
        self._live_averaged, self._live_copied = _split(model)

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Move the average towards the live weights; `num_updates` is how many updates came before."""
        weight = 1.0 - decay_at(self.decay, num_updates)
        torch._foreach_lerp_(self._averaged, self._live_averaged, weight)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        if self._copied:
            torch._foreach_copy_(self._copied, self._live_copied)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return (floating-point, other) parameters and buffers, in model order and detached."""
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    averaged = [tensor for tensor in tensors if tensor.is_floating_point()]
    return averaged, [tensor for tensor in tensors if not tensor.is_floating_point()]
