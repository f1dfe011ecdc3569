"""Loaders of a small dataset, and what their batches hold."""

import threading
from pathlib import Path

from data.crop import DecodeConfig
from data.loader import EvalLoader, TrainLoader
from data.order import OrderConfig
from data.shard_cache import ShardCache
from data.snapshot import Snapshot
from data.types import Batch
from infra.folder_store import FolderStore
from tests.small_dataset import small_dataset

Dataset = tuple[FolderStore, Snapshot, ShardCache]

ORDER = OrderConfig(global_batch_size=16, num_lanes=8, shuffle_window=24, seed=3)
DECODE = DecodeConfig(image_size_px=16)
NUM_TRAIN, NUM_EVAL = 61, 11


def cached_dataset(folder: Path) -> Dataset:
    store, snapshot = small_dataset(folder, num_train=NUM_TRAIN, num_eval=NUM_EVAL)
    return store, snapshot, ShardCache(folder / "cache", 10**9)


def train_loader(dataset: Dataset, **choices: object) -> TrainLoader:
    store, snapshot, cache = dataset
    usual = {
        "store": store, "snapshot": snapshot, "split": "train", "order": ORDER, "decode": DECODE,
        "rank": 0, "world_size": 1, "cache": cache, "num_threads": 0,
    }  # fmt: skip
    return TrainLoader(**{**usual, **choices})  # type: ignore[arg-type]


def eval_loader(dataset: Dataset, **choices: object) -> EvalLoader:
    store, snapshot, cache = dataset
    usual = {
        "store": store, "snapshot": snapshot, "split": "eval", "decode": DECODE, "batch_size": 4,
        "rank": 0, "world_size": 1, "cache": cache, "num_threads": 0,
    }  # fmt: skip
    return EvalLoader(**{**usual, **choices})  # type: ignore[arg-type]


Row = tuple[str, int, int, bytes]


def real_rows(batch: Batch) -> list[Row]:
    """Key, label, position and pixels of each row that counts."""
    kept = batch.weights_B.nonzero().flatten().tolist()
    labels, positions = batch.labels_B.tolist(), batch.positions_B.tolist()
    pixels = [image.numpy().tobytes() for image in batch.images_BHWC]
    return [(batch.keys[i], labels[i], positions[i], pixels[i]) for i in kept]


def epoch_rows(
    dataset: Dataset, world_size: int, epoch: int = 0, start_step: int = 0, num_threads: int = 0
) -> list[list[Row]]:
    """Return the global batches from `start_step`, put together from all ranks."""
    loaders = [
        train_loader(dataset, rank=rank, world_size=world_size, num_threads=num_threads)
        for rank in range(world_size)
    ]
    ranks = [loader.batches(epoch, start_step) for loader in loaders]
    return [[row for batch in step for row in real_rows(batch)] for step in zip(*ranks, strict=True)]


def decode_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("decode")}
