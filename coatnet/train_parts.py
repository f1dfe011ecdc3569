"""What the training loop is given: batches, their augmentation, and whom it tells."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch

from data.augment import AugmentedBatch
from data.cursor import OrderIdentity
from data.types import Batch

Log = Callable[[int, Mapping[str, float]], None]
"""log(step, values), on rank 0 only. A resumed run logs the steps since its checkpoint again."""

DataMetrics = Callable[[], Mapping[str, float]]
"""What the source counted since the last call; logged with rank 0's steps."""

BeforeSave = Callable[[int], None]
"""before_save(num_steps), on every rank, before each checkpoint; what it raises ends the training."""


class TrainSource(Protocol):
    """This rank's part of every global batch; `data.loader.TrainLoader` is one."""

    @property
    def identity(self) -> OrderIdentity:
        """What a checkpoint's cursor must match."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """The same in every epoch and on every rank."""
        ...

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches from `start_step` on, one a step."""
        ...


class Augmenter(Protocol):
    """`data.augment.Augment` is one."""

    def __call__(self, batch: Batch, *, lane_size: int, device: torch.device) -> AugmentedBatch:
        """Move a batch to the device and augment it there."""
        ...
