"""Evaluation: every sample exactly once, whatever the number of ranks.

Shape letters: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, distributed, nn

from coatnet.metrics import EvalMetrics, EvalSums
from coatnet.step import autocast
from coatnet.train_config import Precision
from coatnet.worker import Worker
from data.types import Batch

Normalize = Callable[[Tensor], Tensor]
"""uint8 images_BHWC on the device -> the model's input, float images_BCHW."""


class EvalSource(Protocol):
    """This rank's slice of the eval split; `data.loader.EvalLoader` is one."""

    def batches(self) -> Iterator[Batch]:
        """Yield at least one batch, as many on every rank; padding has weight 0."""
        ...


@torch.no_grad()
def evaluate(
    worker: Worker,
    model: nn.Module,
    source: EvalSource,
    *,
    normalize: Normalize,
    precision: Precision = "float32",
    on_batch: Callable[[Batch, Tensor], None] | None = None,
) -> EvalMetrics:
    """Return the metrics over all ranks. Every rank must call it.

    `on_batch(batch, logits_BK)` sees what this rank computed, padding included, for per-sample
    reports. The model comes back in the mode it was in.
    """
    was_training = model.training
    model.eval()
    _follow_rank_zero(model)
    sums: EvalSums | None = None
    for batch in source.batches():
        images_BCHW = normalize(batch.images_BHWC.to(worker.device, non_blocking=True))
        with autocast(precision, worker.device):
            logits_BK = model(images_BCHW)
        sums = sums or EvalSums(logits_BK.shape[1], worker.device)
        labels_B = batch.labels_B.to(worker.device, non_blocking=True)
        sums.add(logits_BK, labels_B, batch.weights_B.to(worker.device, non_blocking=True))
        if on_batch is not None:
            on_batch(batch, logits_BK)
    model.train(was_training)
    assert sums is not None, "an eval source yields at least one batch"
    return sums.compute()


def _follow_rank_zero(model: nn.Module) -> None:
    """Take over rank 0's buffers: BatchNorm statistics are local while training."""
    if distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)
