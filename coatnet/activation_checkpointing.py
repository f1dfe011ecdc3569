"""Activation checkpointing: a block's inner activations are computed again in the backward pass."""

from collections.abc import Collection, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint

from data.errors import InputError


class CheckpointedStage(nn.Sequential):
    """A stage that keeps only its blocks' inputs for the backward pass.

    Names of weights are those of the plain stage. In eval it is the plain stage.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, C, H, W] as the blocks do one after the other."""
        if not self.training:
            return super().forward(input)
        for block in self:
            if torch.compiler.is_compiling():  # it takes no contexts, and counts a batch once by itself
                input = checkpoint(block, input, use_reentrant=False)
            else:
                input = checkpoint(block, input, use_reentrant=False, context_fn=partial(_contexts, block))
        return input


def checkpoint_stages(stages: nn.ModuleList, indices: Collection[int]) -> None:
    """Switch activation checkpointing on for some of a model's stages, counted from 0.

    Raises:
        InputError: there is no such stage.
    """
    for index in indices:
        if not 0 <= index < len(stages):
            raise InputError(f"there is no stage {index} to checkpoint: the model has 0 to {len(stages) - 1}")
        stage = stages[index]
        assert isinstance(stage, nn.Sequential)
        stages[index] = CheckpointedStage(*stage)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the forward pass and of the one computed again."""
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Generator[None]:
    """Keep BatchNorm from counting the same batch twice; it still normalises by the batch."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Without running statistics at all, autograd would keep other tensors than the first time.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
