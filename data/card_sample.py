"""What a dataset card shows of the images: a bounded part of a snapshot's indexes and pictures."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.arrow import Table
from data.image_check import quiet_pillow
from data.shard_index import read_index
from data.small_picture import small_picture
from data.split import SPLITS
from data.store import Store
from data.types import ShardInfo

MAX_SHARDS = 48
_MAX_ROWS = 200_000
_NUM_THREADS = 8
_COLUMNS = [
    *("name", "labels", "offset", "size", "width", "height", "extension", "reencoded"),
    *("original_mode", "exif_orientation"),
]
# Ours were checked; those of adopted tars may be anything.
_MAX_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledImage:
    """One row of an index and where it stands."""

    split: str
    shard: ShardInfo
    row: dict[str, Any]
    """Columns of `INDEX_SCHEMA`, `_COLUMNS` at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSample:
    """Rows of some shards, as columns: objects of so many would take seconds."""

    tables: tuple[tuple[str, ShardInfo, Table], ...]
    """Split, shard, rows of its index."""
    num_shards: int

    @property
    def num_images(self) -> int:
        """Rows in all tables."""
        return sum(table.num_rows for _, _, table in self.tables)


def sample_snapshot(dataset: Store, splits: dict[str, Sequence[ShardInfo]]) -> CardSample:
    """Read the indexes of at most `MAX_SHARDS` shards, evenly spread over each split."""
    chosen: list[tuple[str, ShardInfo]] = []
    share = MAX_SHARDS // max(1, len(splits))
    for split in (split for split in SPLITS if split in splits):
        shards = splits[split]
        count = min(share, len(shards))
        chosen += [(split, shards[number * len(shards) // count]) for number in range(count)]
    rows_each = _MAX_ROWS // max(1, len(chosen))
    return CardSample(
        tables=tuple(
            (split, shard, _few_rows(read_index(dataset, shard), rows_each)) for split, shard in chosen
        ),
        num_shards=sum(len(shards) for shards in splits.values()),
    )


def _few_rows(index: Table, num_rows: int) -> Table:
    """Return the first rows, of the columns that a card shows; a slice would keep all in memory."""
    return index.select(_COLUMNS).take(np.arange(min(num_rows, index.num_rows)))


def images_of_classes(sample: CardSample, labels: Iterable[int], each: int) -> dict[int, list[SampledImage]]:
    """Return the first images of each label, train before eval; shards are shuffled, so any will do."""
    wanted = set(labels)
    found: defaultdict[int, list[SampledImage]] = defaultdict(list)
    for split, shard, table in sample.tables:
        for row, of_row in enumerate(table.column("labels").to_pylist()):
            short = [label for label in of_row if label in wanted and len(found[label]) < each]
            if short:
                image = SampledImage(split=split, shard=shard, row=table.slice(row, 1).to_pylist()[0])
                for label in short:
                    found[label].append(image)
    return found


def draw(dataset: Store, images: Sequence[SampledImage]) -> list[bytes | None]:
    """Return a small JPEG of each image, None for one that does not decode."""

    def one(image: SampledImage) -> bytes | None:
        content = dataset.get_range(image.shard.path, image.row["offset"], image.row["size"])
        return small_picture(content, _MAX_PIXELS)

    with quiet_pillow(), ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(one, images))
