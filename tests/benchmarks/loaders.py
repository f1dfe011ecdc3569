"""The loaders that `bench_loader` compares, each in a process of its own: `python -m ... NAME`.

Every loader yields batches of uint8 crops of 224 px and class indices, in the consumer's process, once
through the same images in a shuffled order. The peers crop with torchvision's draws and Pillow's
antialiased resize; with `draft` libjpeg scales down first as far as the crop allows, as ours does.

Shape letters: B batch, H and W pixels, C channels (RGB).
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.benchmarks.contender import serve, timed
from tests.benchmarks.loader_crops import SIZE_PX, CropFile, RandomCrop, collate, collate_rows

_CACHE_BYTES = 4 * 2**30

Settings = Mapping[str, Any]
Batches = Iterable[tuple[Tensor, Tensor]]
"""Images [B, H, W, C] uint8, class indices [B]."""
Epoch = Callable[[int], Batches]
"""The number of an epoch -> its batches."""


def open_ours(root: Path, settings: Settings) -> Epoch:
    from data.crop import DecodeConfig
    from data.loader import TrainLoader
    from data.order import OrderConfig
    from data.shard_cache import ShardCache
    from data.snapshot import load_snapshot
    from infra.folder_store import FolderStore

    store = FolderStore(root=root / "dataset")
    loader = TrainLoader(
        store=store,
        snapshot=load_snapshot(store, "HEAD"),
        split="train",
        order=OrderConfig(global_batch_size=settings["batch_size"]),
        decode=DecodeConfig(image_size_px=SIZE_PX),
        rank=0,
        world_size=1,
        cache=ShardCache(root / settings.get("cache", "cache"), _CACHE_BYTES),
        num_threads=settings["num_workers"],
        prefetch_batches=settings["prefetch"],
    )
    return lambda epoch: ((batch.images_BHWC, batch.labels_B) for batch in loader.batches(epoch))


def open_decoder(root: Path, settings: Settings) -> Epoch:
    """Our decoder over bytes in memory, in as many threads: what no loader of ours can exceed."""
    from data.crop import DecodeConfig, draw_crops
    from data.decode import decode_train

    config = DecodeConfig(image_size_px=SIZE_PX)
    contents, labels = _read_classes(root)
    batch_size, num_threads = settings["batch_size"], settings["num_workers"]
    images_BHWC = np.empty((batch_size, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = draw_crops(0, number, np.arange(len(contents)))

        def decode(rows: range, start: int) -> None:
            for row in rows:
                decode_train(contents[start + row], draws[start + row], config, images_BHWC[row])

        with ThreadPoolExecutor(num_threads) as pool:
            for start in range(0, len(contents), batch_size):
                # list(): an error of a thread must surface.
                shares = [range(share, batch_size, num_threads) for share in range(num_threads)]
                list(pool.map(decode, shares, [start] * num_threads))
                batch = slice(start, start + batch_size)
                yield torch.from_numpy(images_BHWC), torch.tensor(labels[batch])

    return epoch


def _read_classes(root: Path) -> tuple[list[bytes], list[int]]:
    folders = sorted((root / "classes").iterdir())
    found = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]
    return [path.read_bytes() for path, _ in found], [label for _, label in found]


def open_webdataset(root: Path, settings: Settings) -> Epoch:
    import webdataset

    crop = RandomCrop(draft=settings["draft"])
    tars = _tars(root)
    samples = (
        webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False)
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(crop, int)
        .batched(settings["batch_size"], collation_fn=collate)
    )
    workers = settings["num_workers"]
    loader = webdataset.WebLoader(samples, batch_size=None, num_workers=workers, **_worker_options(settings))
    return lambda _: loader


def open_folder(root: Path, settings: Settings) -> Epoch:
    from torchvision.datasets import ImageFolder

    images = ImageFolder(str(root / "classes"), loader=CropFile(RandomCrop(draft=settings["draft"])))
    return _data_loader(images, settings, shuffle=True)


def open_mds(root: Path, settings: Settings) -> Epoch:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    crop = RandomCrop(draft=settings["draft"])

    class Cropped(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return crop(sample["image"]), sample["label"]

    clean_stale_shared_memory()
    samples = Cropped(
        local=str(root / "mds"), shuffle=True, batch_size=settings["batch_size"], num_canonical_nodes=1
    )
    return _data_loader(samples, settings)


def open_litdata(root: Path, settings: Settings) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    crop = RandomCrop(draft=settings["draft"])

    class Cropped(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return crop(sample["image"]), sample["label"]

    loader = StreamingDataLoader(
        Cropped(str(root / "litdata"), shuffle=True, drop_last=False),
        batch_size=settings["batch_size"],
        num_workers=settings["num_workers"],
        collate_fn=collate_rows,
        **_worker_options(settings),
    )
    return lambda _: loader


def open_ray(root: Path, settings: Settings) -> Epoch:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
    crop = RandomCrop(draft=settings["draft"])

    def row(sample: dict[str, Any]) -> dict[str, Any]:
        return {"image": crop(sample["jpg"]), "label": int(sample["cls"])}

    # An execution takes a second to start: Ray Data reads the shards several times in one.
    tars = _tars(root) * settings["passes"]

    def epoch(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        samples = ray.data.read_webdataset(tars, decoder=None, shuffle="files").map(row)
        batches = samples.iter_torch_batches(
            batch_size=settings["batch_size"],
            prefetch_batches=settings["prefetch"],
            local_shuffle_buffer_size=settings["shuffle_buffer"],
        )
        return ((batch["image"], batch["label"]) for batch in batches)

    return epoch


def _tars(root: Path) -> list[str]:
    return sorted(str(path) for path in (root / "dataset" / "shards").glob("*.tar"))


def _data_loader(samples: Any, settings: Settings, *, shuffle: bool | None = None) -> Epoch:
    loader = DataLoader(
        samples,
        batch_size=settings["batch_size"],
        num_workers=settings["num_workers"],
        collate_fn=collate_rows,
        shuffle=shuffle,
        **_worker_options(settings),
    )
    return lambda _: loader


def _worker_options(settings: Settings) -> dict[str, Any]:
    """Keep the worker processes between epochs: starting them would cost the peers a second each."""
    if not settings["num_workers"]:
        return {}
    return {"persistent_workers": True, "prefetch_factor": settings["prefetch"]}


LOADERS: dict[str, Callable[[Path, Settings], Epoch]] = {
    "ours": open_ours,
    "decoder": open_decoder,
    "webdataset": open_webdataset,
    "folder": open_folder,
    "mds": open_mds,
    "litdata": open_litdata,
    "ray": open_ray,
    "nothing": lambda root, settings: lambda epoch: (),
}


def run_epoch(batches: Batches) -> dict[str, Any]:
    """Take every batch; return what must be equal on all sides."""
    num_images, label_sum = 0, 0
    for images, labels in batches:
        assert images.dtype == torch.uint8, f"images are {images.dtype}"
        assert images.shape[1:] == (SIZE_PX, SIZE_PX, 3), f"images are {tuple(images.shape)}"
        num_images += len(images)
        label_sum += int(labels.sum())
    return {"num_images": num_images, "label_sum": label_sum}


def mean_level(batches: Batches) -> dict[str, Any]:
    """Return the mean over all pixels of an epoch, in levels of 255."""
    sums = [(float(images.float().mean()) * len(images), len(images)) for images, _ in batches]
    return {"mean_level": sum(total for total, _ in sums) / sum(count for _, count in sums)}


def first_batch(
    open_loader: Callable[[Path, Settings], Epoch], root: Path, settings: Settings
) -> dict[str, Any]:
    """Open the loader and take one batch."""
    batches = iter(open_loader(root, settings)(0))
    images, _ = next(batches)
    return {"num_images": len(images)}


def idle() -> dict[str, Any]:
    """Do nothing, for as long as it takes to look at the process."""
    time.sleep(1)
    return {}


def main() -> None:
    open_loader = LOADERS[sys.argv[1]]
    torch.set_num_threads(1)  # Nothing here computes with torch, and its threads would only be counted.
    opened: list[Epoch] = []
    epochs = iter(range(10**9))

    def start(root: str, settings: dict[str, Any]) -> dict[str, Any]:
        opened.clear()  # The last one's worker processes end with it.
        opened.append(open_loader(Path(root), settings))
        return {}

    serve(
        {
            "open": start,
            "epoch": lambda: timed(lambda: run_epoch(opened[0](next(epochs)))),
            "first": lambda root, settings: timed(lambda: first_batch(open_loader, Path(root), settings)),
            "mean": lambda: mean_level(opened[0](next(epochs))),
            "idle": idle,
        }
    )


if __name__ == "__main__":
    main()
