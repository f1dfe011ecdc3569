"""A real training that takes milliseconds: real order, augmentation, checkpoints; data in memory."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from coatnet.checkpoint import CheckpointStore
from coatnet.loop import TrainResult, train
from coatnet.train_config import RuntimeTrainConfig, TrainConfig
from coatnet.worker import LocalWorker, Worker
from data.augment import Augment, AugmentConfig
from data.cursor import OrderIdentity
from data.normalize import normalize
from data.order import EpochOrder, EvalOrder, OrderConfig, RankBatch
from data.types import Batch
from infra.folder_store import FolderStore

NUM_CLASSES = 3
NUM_SAMPLES = 50
MEAN = STD = (0.5, 0.5, 0.5)
ORDER = OrderConfig(global_batch_size=12, num_lanes=4, shuffle_window=24, seed=1)
"""4 steps an epoch; three ranks have unequal weight: 2, 1 and 1 lanes."""
CONFIG = TrainConfig(
    epochs=2,
    peak_learning_rate=5e-3,
    warmup_epochs=0.5,
    ema_decay=0.99,
    label_smoothing=0.1,
    weight_decay=0.05,
)
RUNTIME = RuntimeTrainConfig(name="tiny", checkpoint_every_steps=3, log_every_steps=1, progress_every_s=0.0)


class TinyNet(nn.Module):
    """Has all that makes resuming hard: BatchNorm statistics, dropout, a weight of every kind."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, stride=2),
            nn.BatchNorm2d(8),
            nn.GELU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(16, NUM_CLASSES),
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.layers(images_BCHW)


def make_images() -> tuple[Tensor, Tensor]:
    """Return uint8 images [N, 8, 8, 3] and labels [N] that can be told apart."""
    generator = torch.Generator().manual_seed(7)
    labels_B = torch.arange(NUM_SAMPLES) % NUM_CLASSES
    images = torch.randint(0, 120, (NUM_SAMPLES, 8, 8, 3), generator=generator, dtype=torch.uint8)
    images[torch.arange(NUM_SAMPLES), :, :, labels_B] += 100
    return images, labels_B


class MemorySource:
    """`data.loader.TrainLoader` without files."""

    def __init__(self, rank: int, world_size: int, order: OrderConfig = ORDER) -> None:
        self.identity = OrderIdentity.of(order, snapshot_id="1-memory", split="train")
        self._order, self._rank, self._world_size = order, rank, world_size
        self.steps_per_epoch = EpochOrder([20, 30], order, 0).steps_per_epoch
        self._images, self._labels = make_images()

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        order = EpochOrder([20, 30], self._order, epoch)
        for step in range(start_step, self.steps_per_epoch):
            rows = order.batch(step, self._rank, self._world_size)
            yield gather(rows, self._images, self._labels, epoch, step)


class MemoryEval:
    """`data.loader.EvalLoader` without files."""

    def __init__(self, rank: int, world_size: int, batch_size: int = 7) -> None:
        self._order = EvalOrder([20, 30], batch_size, rank, world_size)
        self._images, self._labels = make_images()

    def batches(self) -> Iterator[Batch]:
        for step in range(self._order.num_steps):
            yield gather(self._order.batch(step), self._images, self._labels, 0, step)


def gather(rows: RankBatch, images: Tensor, labels: Tensor, epoch: int, step: int) -> Batch:
    weights_B = torch.from_numpy(rows.weights_B)
    index_B = torch.from_numpy(rows.shard_B * 20 + rows.row_B).clamp_min(0)
    images_BHWC = images[index_B]
    images_BHWC[weights_B == 0] = 0
    return Batch(
        images_BHWC=images_BHWC,
        labels_B=labels[index_B],
        weights_B=weights_B,
        positions_B=torch.from_numpy(rows.positions_B),
        keys=tuple(str(index) for index in index_B.tolist()),
        epoch=epoch,
        step=step,
    )


def run_tiny(
    worker: Worker,
    folder: Path,
    *,
    config: TrainConfig = CONFIG,
    runtime: RuntimeTrainConfig = RUNTIME,
    source: Any = None,
    model: nn.Module | None = None,
    log: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
    **options: Any,
) -> TrainResult:
    """Train as a stage does, checkpoints in a folder store."""
    return train(
        worker,
        model=model or TinyNet(),
        config=config,
        runtime=runtime,
        source=source or MemorySource(worker.rank, worker.world_size),
        make_eval_source=partial(MemoryEval, worker.rank, worker.world_size),
        augment=Augment(AugmentConfig(mixup_alpha=0.8), num_classes=NUM_CLASSES, seed=3),
        normalize=partial(normalize, mean=MEAN, std=STD),
        checkpoints=CheckpointStore(FolderStore(root=folder), "checkpoints"),
        log=log,
        **options,
    )


class StopAfter(MemorySource):
    """Asks its worker to stop once it has handed out a given number of batches."""

    def __init__(self, worker: LocalWorker, num_batches: int) -> None:
        super().__init__(worker.rank, worker.world_size)
        self._worker, self._left = worker, num_batches

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for batch in super().batches(epoch, start_step):
            self._left -= 1
            if self._left == 0:
                self._worker.stop()
            yield batch


class KilledOnce(MemorySource):
    """Ends its process with SIGKILL in the middle of the second epoch, the first time round."""

    def __init__(self, worker: Worker, folder: Path) -> None:
        super().__init__(worker.rank, worker.world_size)
        self._flag = folder / "killed"

    def batches(self, epoch: int, start_step: int = 0) -> Any:
        for batch in super().batches(epoch, start_step):
            if (epoch, batch.step) == (1, 3) and self._rank == 1 and not self._flag.exists():
                self._flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def spawn_ranks(fn: Callable[[LocalWorker, Any], Any], argument: Any, world_size: int) -> list[Any]:
    """Run fn(worker, argument) in `world_size` gloo processes; return what each returned."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    # New processes, forked from one that has done the slow imports (DDP wants dynamo).
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny_training", "torch._dynamo"])
    with context.Pool(world_size) as pool:
        ranks = [(fn, argument, rank, world_size, address) for rank in range(world_size)]
        return pool.starmap(_run_rank, ranks, chunksize=1)


def _run_rank(
    fn: Callable[[LocalWorker, Any], Any], argument: Any, rank: int, world_size: int, address: str
) -> Any:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    try:
        return fn(LocalWorker(rank=rank, world_size=world_size, device=torch.device("cpu")), argument)
    finally:
        distributed.destroy_process_group()
