"""A dataset whose card has something of everything: hostile names, rejects, twins, a parent."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data.append import append_snapshot
from data.build import build_snapshot
from data.card import Provenance, write_card
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot
from infra.folder_store import FolderStore
from tests.image_samples import encode, fill

HOSTILE = "<script>document.title='owned'<!--"
CLASSES = (HOSTILE, "birds", "été & 日本")
SOURCE = Provenance(
    corpus="s3://bucket/<images>", config={"seed": 7}, versions={"version of the code": "abc"}
)
CONFIG = ShardingConfig(shard_size_bytes=60_000, max_reject_fraction=1.0)


def scene(seed: int, width: int = 240, height: int = 180) -> Image.Image:
    """A picture with structure at several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (4, 9, 20, 60):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / cells
    return Image.fromarray((total / total.max() * 255).astype(np.uint8))


def card_dataset(folder: Path) -> tuple[FolderStore, Snapshot, Snapshot]:
    """Return the store, a first snapshot and one appended to it."""
    dataset = FolderStore(root=folder / "dataset")
    files: dict[str, bytes] = {}
    for number, name in enumerate(CLASSES):
        for index in range(9):
            split = "test" if index == 0 else "train"
            files[f"{split}/{name}/{index}.jpg"] = encode(scene(100 * number + index), "JPEG", quality=90)
    eval_image = Image.open(io.BytesIO(files["test/birds/0.jpg"]))
    files |= {
        "train/birds/recompressed.jpg": encode(eval_image, "JPEG", quality=60),
        "train/birds/same.jpg": files["train/birds/3.jpg"],
        "train/birds/half <b>size</b>.png": encode(scene(105).resize((120, 90)), "PNG"),
        "train/birds/cut.jpg": files["train/birds/4.jpg"][:4000],
        "train/birds/text.jpg": b"no image",
    }
    corpus = fill(folder / "corpus", files)
    run_all = write_shards_here(corpus, dataset, CONFIG.limits)
    first = build_snapshot(corpus, dataset, CONFIG, run_all)
    more = fill(
        folder / "more",
        {"train/fish/1.png": encode(scene(900), "PNG"), "train/birds/9.png": encode(scene(901), "PNG")},
    )
    appended = append_snapshot(first, more, dataset, CONFIG, write_shards_here(more, dataset, CONFIG.limits))
    assert appended is not None
    for snapshot, store in ((first, corpus), (appended, more)):
        write_card(dataset, snapshot, SOURCE, corpus=store, limits=CONFIG.limits)
    return dataset, first, appended
