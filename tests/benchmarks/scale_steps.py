"""The steps that `bench_scale` measures, each in a process of its own: `python -m ... STEP`.

There are no images behind them: listings, shard lists, indexes and hashes are made up, with names,
sizes and hashes like real ones. A step's seconds leave out the making-up, except for the listing, whose
batches come from a generator as they would from a store.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.duplicates import SplitShard, find_duplicates
from data.list_corpus import list_for_build
from data.listing import BATCH_ROWS, LISTING_SCHEMA
from data.near_duplicates import find_near_pairs
from data.order import EpochOrder, OrderConfig
from data.shard_index import put_parquet
from data.shard_plan import ShardPlans
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot, commit_snapshot, load_snapshot, make_snapshot
from data.snapshot_diff import diff_snapshots
from data.types import ShardInfo
from infra.folder_store import FolderStore
from tests.benchmarks.contender import serve

SAMPLES_PER_SHARD = 3000
_NUM_CLASSES = 1000
_IMAGE_BYTES = 110_000
_DIFFERENT_SHARDS = 10
"""By so many shards do the two snapshots of the diff differ."""
_NEAR_DISTANCE = 4

Measured = Mapping[str, Mapping[str, float]]
"""Step -> `seconds` and `peak_mb` (of the process's resident memory)."""


class SyntheticReader:
    """Lists images that do not exist, in batches as readers of real corpora do."""

    uri = "synthetic"

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images

    def record_batches(self) -> Iterator[Any]:
        """Yield batches of the listing's schema."""
        for start in range(0, self._num_images, BATCH_ROWS):
            numbers = np.arange(start, min(start + BATCH_ROWS, self._num_images))
            classes = pc.binary_join_element_wise(
                "class", pa.array(numbers % _NUM_CLASSES).cast("string"), ""
            )
            names = pa.array(numbers).cast("string")
            keys = pc.binary_join_element_wise(
                classes, pc.binary_join_element_wise("n", names, ".jpg", ""), "/"
            )
            columns = {
                "key": keys,
                "path": keys,
                "offset": pa.nulls(len(numbers), pa.int64()),
                "size_bytes": pa.array(_IMAGE_BYTES + numbers % 1000),
                "etag": names,
                "labels": pa.ListArray.from_arrays(np.arange(len(numbers) + 1, dtype=np.int32), classes),
                "split": pa.nulls(len(numbers), pa.string()),
            }
            yield pa.RecordBatch.from_arrays(
                [columns[name] for name in LISTING_SCHEMA.names], schema=LISTING_SCHEMA
            )


class Meter:
    """Time and peak memory of the steps of this process."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}

    def measure(self, step: str, work: Callable[[], Any]) -> Any:
        """Run `work`, note what it took, and return what it returned."""
        Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak so far (Linux, proc_pid_clear_refs).
        start_s = time.perf_counter()
        result = work()
        self.steps[step] = {"seconds": time.perf_counter() - start_s, "peak_mb": _peak_mb()}
        return result


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


def list_and_plan(num_images: int, folder: Path) -> Measured:
    meter = Meter()
    config = ShardingConfig()
    listing = meter.measure("list", lambda: list_for_build(SyntheticReader(num_images), config))
    plans = ShardPlans(listing, classes=listing.classes, shard_size_bytes=config.shard_size_bytes)
    planned = meter.measure("plan", lambda: sum(plan.rows.num_rows for plan in plans))
    assert planned == listing.num_images == num_images
    return meter.steps


def snapshots(num_images: int, folder: Path) -> Measured:
    """Commit, open and compare; also the order of an epoch over so many shards."""
    meter, store = Meter(), FolderStore(root=folder)
    num_shards = num_images // SAMPLES_PER_SHARD
    shards = [made_up_shard(number) for number in range(num_shards)]
    first = meter.measure("commit", lambda: _commit(store, None, shards))
    more = [written_index(store, number) for number in range(num_shards, num_shards + _DIFFERENT_SHARDS)]
    second = _commit(store, first, more)
    opened = meter.measure("open", lambda: load_snapshot(store, second.id))
    assert len(opened.splits["train"]) == num_shards + _DIFFERENT_SHARDS
    diff = meter.measure("diff", lambda: diff_snapshots(first, opened, store))
    assert sum(diff.added["train"].values()) == _DIFFERENT_SHARDS * SAMPLES_PER_SHARD
    sizes = [shard.num_samples for shard in opened.splits["train"]]

    def open_epoch() -> int:
        order = EpochOrder(sizes, OrderConfig(global_batch_size=4096), 3)
        return len(order.batch(17, 0, 1).row_B)

    assert meter.measure("open an epoch", open_epoch) == 4096
    return meter.steps


def _commit(store: FolderStore, parent: Snapshot | None, shards: list[ShardInfo]) -> Snapshot:
    classes = tuple(f"class{number}" for number in range(_NUM_CLASSES))
    stats: dict[str, dict[str, int]] = {"samples": {}, "size_bytes": {}, "rejects": {}}
    about = {"stats": stats, "listing_digest": "0" * 32, "listing_paths": (), "quarantine_path": None}
    splits = {"train": tuple(shards), "eval": ()}
    return commit_snapshot(store, make_snapshot(store, parent, splits, classes=classes, **about))


def made_up_shard(number: int) -> ShardInfo:
    """Return a shard that is named like a real one; hashes do not compress, so that files are as large."""
    hashes = np.random.default_rng(number).bytes(64).hex()
    return ShardInfo(
        path=f"shards/train-{hashes[:16]}.tar",
        index_path=f"shards/train-{hashes[:16]}.parquet",
        num_samples=SAMPLES_PER_SHARD,
        size_bytes=SAMPLES_PER_SHARD * _IMAGE_BYTES,
        crc32c=number,
        sha256=hashes[:64],
        index_sha256=hashes[64:],
    )


def written_index(store: FolderStore, number: int) -> ShardInfo:
    """Return a shard with an index in the store, of the columns that comparing reads; 1 in 1000 repeats."""
    rng = np.random.default_rng(number)
    raw = rng.bytes(32 * SAMPLES_PER_SHARD).hex()
    sha256 = [raw[64 * row : 64 * row + 64] for row in range(SAMPLES_PER_SHARD)]
    for row in range(0, SAMPLES_PER_SHARD, 1000):
        sha256[row] = f"{row:032x}" * 2  # The same in every shard.
    schema = pa.schema([("name", pa.string()), ("labels", pa.list_(pa.int32())), ("sha256", pa.string())])
    rows = [
        {"name": f"{number}/{row}.jpg", "labels": [row % _NUM_CLASSES], "sha256": value}
        for row, value in enumerate(sha256)
    ]
    path = put_parquet(store, "shards", rows, schema)
    index_sha256 = hashlib.sha256(store.get(path)).hexdigest()
    return replace(made_up_shard(number), index_path=path, index_sha256=index_sha256)


def exact_duplicates(num_images: int, folder: Path) -> Measured:
    meter, store = Meter(), FolderStore(root=folder)
    num_shards = max(2, num_images // SAMPLES_PER_SHARD)
    shards = [SplitShard(split="train", info=written_index(store, number)) for number in range(num_shards)]
    found = meter.measure("exact duplicates", lambda: find_duplicates(store, shards, leak_policy="error"))
    assert len(found.removals) == (num_shards - 1) * (SAMPLES_PER_SHARD // 1000)
    return meter.steps


def near_duplicates(num_images: int, folder: Path) -> Measured:
    """Random hashes, every thousandth image another one's with one bit changed."""
    meter = Meter()
    hashes = np.random.default_rng(0).integers(0, 2**64, num_images, dtype=np.uint64)
    hashes[1::1000] = hashes[::1000][: len(hashes[1::1000])] ^ np.uint64(1)
    ids = np.arange(num_images)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        found = meter.measure(
            "near duplicates",
            lambda: find_near_pairs(hashes, ids, max_distance=_NEAR_DISTANCE, scratch=Path(scratch)),
        )
    assert found.num_found >= len(hashes[1::1000])
    return meter.steps


STEPS: dict[str, Callable[[int, Path], Measured]] = {
    "listing": list_and_plan,
    "snapshots": snapshots,
    "exact": exact_duplicates,
    "near": near_duplicates,
}


def main() -> None:
    run = STEPS[sys.argv[1]]
    serve({"run": lambda num_images, folder: run(num_images, Path(folder))})


if __name__ == "__main__":
    main()
