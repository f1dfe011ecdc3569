"""One rank that loads and augments without training, as a process that a test kills."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.augment import Augment, AugmentConfig
from data.crop import DecodeConfig
from data.cursor import Cursor
from data.loader import TrainLoader
from data.mixture import WeightsFrom
from data.order import OrderConfig
from data.shard_cache import ShardCache
from data.snapshot import load_snapshot
from data.sources import Mixture, Source
from data.types import Batch
from infra.store import open_store

ORDER = OrderConfig(global_batch_size=16, num_lanes=8, shuffle_window=48, seed=11)
NUM_EPOCHS, NUM_CLASSES = 2, 2
AUGMENT = AugmentConfig(
    mixup_alpha=0.8, color_jitter=0.3, randaugment_num_ops=2, randaugment_magnitude=9.0, cutmix_alpha=1.0
)
SCHEDULE = (
    WeightsFrom(from_epoch=0, weights=(0.6, 0.4)),
    WeightsFrom(from_epoch=1, weights=(0.3, 0.7)),
)
_HOLD_S = 600.0


@dataclass(frozen=True, kw_only=True)
class LoadTask:
    """What one rank loads; picklable."""

    datasets: tuple[str, ...]
    """The second one, if there is one, is mixed in."""
    cache_dir: Path
    out: Path
    """Its lines: one a step, appended."""
    rank: int
    world_size: int
    num_threads: int
    cursor: Mapping[str, object] | None = None
    hold_at: int | None = None
    """Global step at which it stops taking batches, its threads at work ahead, until it is killed."""

    @property
    def cursor_file(self) -> Path:
        return self.out.with_suffix(".cursor")


def open_loader(task: LoadTask) -> TrainLoader:
    stores = [open_store(uri) for uri in task.datasets]
    first, *others = (Source(store=store, snapshot=load_snapshot(store, "HEAD")) for store in stores)
    return TrainLoader(
        store=first.store,
        snapshot=first.snapshot,
        split="train",
        order=ORDER,
        decode=DecodeConfig(image_size_px=16),
        rank=task.rank,
        world_size=task.world_size,
        # Less than all shards: some are evicted, and a kill may come in the middle of a download.
        cache=ShardCache(task.cache_dir, 100_000),
        num_threads=task.num_threads,
        mixture=Mixture(sources=tuple(others), schedule=SCHEDULE) if others else None,
    )


def load(task: LoadTask, environment: Mapping[str, str]) -> None:
    """Load from the cursor to the end, or as far as `hold_at`; after each step a line and a cursor."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    loader = open_loader(task)
    augment = Augment(AUGMENT, num_classes=NUM_CLASSES, seed=ORDER.seed)
    cursor = Cursor(identity=loader.identity, epoch=0, step=0)
    if task.cursor is not None:
        cursor = Cursor.from_dict(task.cursor)
        cursor.check(loader.identity)
    while cursor.epoch < NUM_EPOCHS:
        for batch in loader.batches(cursor.epoch, cursor.step):
            line = {"epoch": batch.epoch, "step": batch.step, "rows": digests(augment, batch)}
            cursor = cursor.after_step(loader.steps_per_epoch)
            with task.out.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            incoming = task.cursor_file.with_suffix(".incoming")
            incoming.write_text(json.dumps(cursor.to_dict()))
            incoming.replace(task.cursor_file)
            if batch.epoch * loader.steps_per_epoch + batch.step == task.hold_at:
                time.sleep(_HOLD_S)


def digests(augment: Augment, batch: Batch) -> list[list[str]]:
    """Return key and hash of the augmented pixels and targets of each row that counts."""
    seen = augment(batch, lane_size=ORDER.lane_size, device=torch.device("cpu"))
    rows: list[list[str]] = []
    for row in batch.weights_B.nonzero().flatten().tolist():
        content = seen.images_BCHW[row].numpy().tobytes() + seen.targets_BK[row].numpy().tobytes()
        rows.append([batch.keys[row], hashlib.blake2b(content, digest_size=16).hexdigest()])
    return rows


def global_batches(tasks: list[LoadTask]) -> dict[tuple[int, int], list[Any]]:
    """Put the ranks' lines together: by (epoch, step), the rows rank after rank."""
    found: dict[tuple[int, int], list[Any]] = {}
    for task in tasks:
        for line in map(json.loads, task.out.read_text().splitlines()):
            found.setdefault((line["epoch"], line["step"]), []).extend(line["rows"])
    return found
