"""A small real dataset for the reader's tests: PNG and JPEG pictures, sharded by our own writer."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.build import build_snapshot
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot
from data.tar_reader import ShardReader, StoredImage
from infra.folder_store import FolderStore

Dataset = tuple[FolderStore, Snapshot]


def picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return a smooth random RGB picture: JPEG and resizing change it little."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels_HWC: NDArray[np.uint8], extension: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, {"png": "PNG", "jpg": "JPEG"}[extension], **options)
    return stream.getvalue()


def small_dataset(
    folder: Path,
    *,
    num_train: int = 60,
    num_eval: int = 11,
    shard_size_bytes: int = 12_000,
    classes: Sequence[str] = "ab",
    first_seed: int = 0,
) -> Dataset:
    """Write pictures of some classes, every third a JPEG, and shard them into several tars."""
    corpus, dataset = FolderStore(root=folder / "corpus"), FolderStore(root=folder / "dataset")
    for split, count, first in (("train", num_train, first_seed), ("test", num_eval, first_seed + 10_000)):
        for index in range(count):
            extension = "jpg" if index % 3 == 0 else "png"
            content = encode(picture(24 + index % 9, 24 + index % 7, first + index), extension)
            corpus.put(f"{split}/{classes[index % len(classes)]}/{index:04d}.{extension}", content)
    config = ShardingConfig(shard_size_bytes=shard_size_bytes)
    run_all = write_shards_here(corpus, dataset, config.limits)
    return dataset, build_snapshot(corpus, dataset, config, run_all)


def read_all(reader: ShardReader, snapshot: Snapshot) -> list[StoredImage]:
    shards = snapshot.splits["train"]
    return [reader.read(i, row) for i, shard in enumerate(shards) for row in range(shard.num_samples)]
