"""Our reader and decoder against stock webdataset, on the same tars, one thread, warm page cache.

The tars are written by the product's own sharding. Ours reads by index and checks each image's crc32c;
webdataset reads the tar front to back and checks nothing. Two rows take the reader apart: the index and
`pread` alone, without checksums, which the product never does; and no index at all, by the headers, as
adopting and resharding foreign tars do. Every timed call is a whole pass that opens
the tars (and ours the indexes) anew. Equal bytes, labels and pixels are asserted first.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image
from webdataset.compat import WebDataset

from data.corpora.tar_scan import TarSpan, iter_members, open_span
from data.crop import DecodeConfig, draw_crops, random_resized_box
from data.decode import decode_eval, decode_train
from data.shard_cache import ShardCache
from data.shard_index import read_index
from data.store import ObjectInfo
from data.tar_reader import ShardReader, StoredImage
from data.types import ShardInfo
from infra.folder_store import FolderStore
from tests.benchmarks.photos import CLASSES, JPEG_SIZE_PX, make_dataset, png_files, upscaled_jpeg
from tests.benchmarks.session import Session

_PNG_SIZE_PX = 32
_CROP_SIZE_PX = 224
_NUM_PNG = 4000
_NUM_JPEG = 1000
_CACHE_BYTES = 2**30
_LARGEST_MEAN_DIFFERENCE = 2.0
"""Of 255 levels: both resize bilinearly with antialias, ours perhaps from a DCT-scaled decode."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The same shards, for both sides."""

    store: FolderStore
    shards: tuple[ShardInfo, ...]
    cache: ShardCache
    extension: str

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    def read_ours(self) -> Iterator[StoredImage]:
        """Read all samples in the tars' order; the cache holds the tars after the first time."""
        reader = ShardReader(self.store, self.shards, self.cache)
        for number, shard in enumerate(self.shards):
            for row in range(shard.num_samples):
                yield reader.read(number, row)

    def read_unchecked(self) -> Iterator[bytes]:
        """Read by index, without a look at the bytes."""
        for shard in self.shards:
            index = read_index(self.store, shard)
            file = self.cache.open(self.store, shard)
            assert file is not None
            for offset, size_bytes in zip(
                index.column("offset").to_pylist(), index.column("size").to_pylist(), strict=True
            ):
                yield file.read(offset, size_bytes)

    def read_without_index(self) -> Iterator[dict[str, bytes]]:
        """Read every member, front to back, and group them into samples as webdataset does."""
        for shard in self.shards:
            info = ObjectInfo(path=shard.path, size_bytes=shard.size_bytes, etag="", modified_s=0.0)
            span = TarSpan.of(info)
            reader = open_span(self.store, span)
            key, sample = "", dict[str, bytes]()
            for name, offset, size_bytes in iter_members(reader, span):
                member_key, _, extension = name.partition(".")
                if member_key != key:
                    if sample:
                        yield sample
                    key, sample = member_key, {}
                sample[extension] = reader.read(offset, size_bytes)
            yield sample

    def read_peer(self) -> Any:  # webdataset's own types stop at its decorators.
        """Return stock webdataset over the same tars, local files without a pipe."""
        paths = [str(self.store.root / shard.path) for shard in self.shards]
        return WebDataset(paths, shardshuffle=False, empty_check=False)


def main() -> None:
    session = Session.from_arguments(
        "bench_tar_reader",
        ("torch", "webdataset", "pillow", "simplejpeg", "numpy", "google-crc32c"),
        num_threads=1,
    )
    torch.set_num_threads(session.num_threads)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        session.announce(f"sharding {_NUM_PNG} PNG and {_NUM_JPEG} JPEG files")
        files = png_files(_NUM_PNG)
        png = _dataset(Path(scratch) / "png", {_name(f): f.read_bytes() for f in files}, "png")
        every = files[:: _NUM_PNG // _NUM_JPEG]
        jpegs = {_name(f).replace(".png", ".jpg"): upscaled_jpeg(f) for f in every}
        jpeg = _dataset(Path(scratch) / "jpeg", jpegs, "jpg")
        for name, dataset in ((f"PNG {_PNG_SIZE_PX} px", png), (f"JPEG {JPEG_SIZE_PX} px", jpeg)):
            check_same_bytes(dataset)
            for how, ours in (
                ("index, crc32c on every sample", read_all_ours),
                ("index, no checksum", read_all_unchecked),
                ("no index", read_all_without_index),
            ):
                _compare(session, f"read, {how}, {name}", dataset, ours, read_all_peer, repeats=9)
        for name, dataset, size_px in (
            (f"read + decode, PNG {_PNG_SIZE_PX} px", png, _PNG_SIZE_PX),
            (f"read + decode, JPEG {JPEG_SIZE_PX} px", jpeg, JPEG_SIZE_PX),
        ):
            session.note(f"{name}: largest mean difference", check_same_images(dataset, size_px))
            ours, peer = _whole_calls(size_px)
            _compare(session, name, dataset, ours, peer, repeats=5)
        name = f"read + random-resized crop to {_CROP_SIZE_PX}, JPEG {JPEG_SIZE_PX} px"
        session.note(f"{name}: largest mean difference", check_same_crops(jpeg))
        _compare(session, name, jpeg, crop_all_ours, crop_all_peer, repeats=5)
    session.write()


def _name(png: Path) -> str:
    return f"{png.parent.name}/{png.name}"


def _dataset(folder: Path, files: dict[str, bytes], extension: str) -> Dataset:
    store, shards = make_dataset(folder, files)
    cache = ShardCache(folder / "cache", _CACHE_BYTES)
    return Dataset(store=store, shards=shards, cache=cache, extension=extension)


def _compare(
    session: Session,
    row: str,
    dataset: Dataset,
    ours: Callable[[Dataset], object],
    peer: Callable[[Dataset], object],
    *,
    repeats: int,
) -> None:
    session.compare(
        row,
        lambda: ours(dataset),
        lambda: peer(dataset),
        num_items=dataset.num_samples,
        unit="samples/s",
        peer_version=f"webdataset {webdataset.__version__}",
        repeats=repeats,
    )


def read_all_ours(dataset: Dataset) -> int:
    return sum(len(stored.image_bytes) for stored in dataset.read_ours())


def read_all_unchecked(dataset: Dataset) -> int:
    return sum(len(image_bytes) for image_bytes in dataset.read_unchecked())


def read_all_without_index(dataset: Dataset) -> int:
    return sum(len(sample[dataset.extension]) for sample in dataset.read_without_index())


def read_all_peer(dataset: Dataset) -> int:
    return sum(len(sample[dataset.extension]) for sample in dataset.read_peer())


def _whole_calls(size_px: int) -> tuple[Callable[[Dataset], object], Callable[[Dataset], object]]:
    """Return the calls that decode each image whole, into one array of the pass."""

    def ours(dataset: Dataset) -> Pixels:
        images_BHWC = _empty(dataset, size_px)
        config = DecodeConfig(image_size_px=size_px, eval_crop="squash")
        for row, stored in enumerate(dataset.read_ours()):
            decode_eval(stored.image_bytes, config, images_BHWC[row])
        return images_BHWC

    def peer(dataset: Dataset) -> Pixels:
        images_BHWC = _empty(dataset, size_px)
        for row, sample in enumerate(dataset.read_peer().decode("rgb8")):
            images_BHWC[row] = sample[dataset.extension]
        return images_BHWC

    return ours, peer


def _empty(dataset: Dataset, size_px: int) -> Pixels:
    return np.empty((dataset.num_samples, size_px, size_px, 3), dtype=np.uint8)


def _crop_config() -> DecodeConfig:
    return DecodeConfig(image_size_px=_CROP_SIZE_PX)


def _draws(dataset: Dataset) -> list[list[float]]:
    return draw_crops(0, 0, np.arange(dataset.num_samples))


def crop_all_ours(dataset: Dataset) -> Pixels:
    images_BHWC, draws_BD = _empty(dataset, _CROP_SIZE_PX), _draws(dataset)
    for row, stored in enumerate(dataset.read_ours()):
        decode_train(stored.image_bytes, draws_BD[row], _crop_config(), images_BHWC[row])
    return images_BHWC


def crop_all_peer(dataset: Dataset) -> Pixels:
    """Decode to a Pillow image, crop and resize it by Pillow, at the boxes that ours takes."""
    images_BHWC, draws_BD = _empty(dataset, _CROP_SIZE_PX), _draws(dataset)
    size = (_CROP_SIZE_PX, _CROP_SIZE_PX)
    for row, sample in enumerate(dataset.read_peer().decode("pilrgb")):
        image: Image.Image = sample[dataset.extension]
        top, left, height, width = random_resized_box(
            image.height, image.width, draws_BD[row], _crop_config()
        )
        box = (left, top, left + width, top + height)
        images_BHWC[row] = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
    return images_BHWC


def check_same_bytes(dataset: Dataset) -> None:
    """Assert that both sides see the same samples in the same order: bytes and labels."""
    samples = 0
    all_ways = (
        dataset.read_ours(), dataset.read_unchecked(), dataset.read_without_index(), dataset.read_peer()
    )  # fmt: skip
    for stored, unchecked, scanned, sample in zip(*all_ways, strict=True):
        assert stored.image_bytes == sample[dataset.extension], f"bytes differ: {stored.name}"
        assert unchecked == scanned[dataset.extension] == stored.image_bytes, f"bytes differ: {stored.name}"
        assert scanned["cls"] == sample["cls"], f"labels differ: {stored.name}"
        assert stored.label == int(sample["cls"]), f"labels differ: {stored.name}"
        samples += 1
    assert samples == dataset.num_samples > len(CLASSES)


def check_same_images(dataset: Dataset, size_px: int) -> float:
    ours, peer = _whole_calls(size_px)
    return _mean_difference(ours(dataset), peer(dataset))


def check_same_crops(dataset: Dataset) -> float:
    return _mean_difference(crop_all_ours(dataset), crop_all_peer(dataset))


def _mean_difference(ours: object, peer: object) -> float:
    """Assert nearly equal pixels; return the worst image's mean difference in levels of 255."""
    difference = np.abs(np.asarray(ours, dtype=np.int16) - np.asarray(peer, dtype=np.int16))
    worst = float(difference.mean(axis=(1, 2, 3)).max())
    assert worst <= _LARGEST_MEAN_DIFFERENCE, f"an image differs by {worst:.2f} levels on the mean"
    return round(worst, 3)


if __name__ == "__main__":
    main()
