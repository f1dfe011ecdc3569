"""Real photographs for the benchmarks: CIFAR-10's own PNG files, and larger JPEGs made of them."""

import io
from pathlib import Path

from PIL import Image

from data.build import build_snapshot
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.types import ShardInfo
from infra.folder_store import FolderStore
from pipelines.cifar10 import default_cache_dir, fetch_cifar10

CLASSES = ("airplane", "cat", "ship", "truck")
JPEG_SIZE_PX = 256
_JPEG_QUALITY = 90


def png_files(num_images: int) -> list[Path]:
    """Return training images of CIFAR-10, equally many of each class of `CLASSES`; fetches it if need be."""
    corpus = fetch_cifar10(default_cache_dir(), print)
    return [
        path
        for name in CLASSES
        for path in sorted((corpus / "train" / name).iterdir())[: num_images // len(CLASSES)]
    ]


def upscaled_jpeg(png: Path) -> bytes:
    """Return the photograph at 256 px as a JPEG: smooth, so smaller and quicker to decode than a camera's."""
    with Image.open(png) as image:
        large = image.convert("RGB").resize((JPEG_SIZE_PX, JPEG_SIZE_PX), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def make_dataset(
    folder: Path, files: dict[str, bytes], *, shard_size_bytes: int = 64 * 2**20
) -> tuple[FolderStore, tuple[ShardInfo, ...]]:
    """Shard files by the product's own writer; return the dataset's store and its train shards."""
    corpus, dataset = FolderStore(root=folder / "corpus"), FolderStore(root=folder / "dataset")
    for path, content in files.items():
        target = folder / "corpus" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    config = ShardingConfig(eval_fraction=0.0, shard_size_bytes=shard_size_bytes)
    snapshot = build_snapshot(corpus, dataset, config, write_shards_here(corpus, dataset, config.limits))
    return dataset, snapshot.splits["train"]
