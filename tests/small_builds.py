"""Builds and appends of small corpora, and what is in the result."""

from data.append import append_snapshot
from data.build import build_snapshot
from data.shard_index import parquet_table, read_index
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot, list_snapshots
from data.store import Store
from tests.image_samples import photos

CONFIG = ShardingConfig(shard_size_bytes=8000)
FILES = (
    photos("train/cat", 8, 0)
    | photos("train/dog", 8, 100)
    | photos("test/cat", 3, 200)
    | photos("test/dog", 3, 300)
)


def build(corpus: Store, dataset: Store, config: ShardingConfig = CONFIG) -> Snapshot:
    return build_snapshot(corpus, dataset, config, write_shards_here(corpus, dataset, config.limits))


def append(
    parent: Snapshot, corpus: Store, dataset: Store, config: ShardingConfig = CONFIG
) -> Snapshot | None:
    return append_snapshot(parent, corpus, dataset, config, write_shards_here(corpus, dataset, config.limits))


def names(dataset: Store, snapshot: Snapshot, split: str) -> list[str]:
    return sorted(
        row["name"] for shard in snapshot.splits[split] for row in read_index(dataset, shard).to_pylist()
    )


def ids(dataset: Store) -> list[str]:
    return [header.id for header in list_snapshots(dataset)]


def rejects(dataset: Store, snapshot: Snapshot) -> dict[str, str]:
    table = parquet_table(dataset.get(snapshot.quarantine_path))
    return {row["path"]: row["reason"] for row in table.to_pylist()}
