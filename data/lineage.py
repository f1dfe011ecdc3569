"""Where a sample came from and what became of a record, over the indexes and quarantines of a snapshot."""

import difflib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Any

from data.arrow import Table, compute
from data.shard_index import parquet_table, read_index
from data.snapshot import Snapshot, load_chain, load_snapshot
from data.store import Store
from data.types import ShardInfo

_NUM_THREADS = 16
_AHEAD = 64
_NAMED_BY = ("name", "key", "path")
"""The columns of an index that a person may know a sample by."""
_MAX_COMPARED_NAMES = 100_000
_NUM_NEAREST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInfo:
    """A sample and where it is."""

    row: dict[str, Any]
    """Of the index."""
    split: str
    shard: ShardInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a snapshot knows by a name."""

    samples: Sequence[SampleInfo]
    rejects: Sequence[dict[str, Any]]
    """Rows of the quarantines of the snapshot and its ancestors, newest first."""
    nearest: Sequence[str]
    """Names like it, where there is neither."""


def find_by_name(dataset: Store, snapshot: Snapshot, name: str) -> Found:
    """Look for a sample's name, its key in the tar, or its path in the corpus; reads every index."""
    samples: list[SampleInfo] = []
    names: list[str] = []
    for split, shard, table in _indexes(dataset, snapshot):
        if len(names) < _MAX_COMPARED_NAMES:
            names += table.column("name").to_pylist()
        rows = _matching(table, name, _NAMED_BY)
        samples += [SampleInfo(row=row, split=split, shard=shard) for row in rows]
    rejects: list[dict[str, Any]] = []
    for ancestor in load_chain(dataset, snapshot):
        if ancestor.quarantine_path is not None:
            table = parquet_table(dataset.get(ancestor.quarantine_path))
            rejects += _matching(table, name, ("key", "path"))
            names += table.column("key").to_pylist()
    nothing = not samples and not rejects
    nearest = difflib.get_close_matches(name, names, n=_NUM_NEAREST, cutoff=0.5) if nothing else []
    return Found(samples=samples, rejects=rejects, nearest=nearest)


def find_shard(snapshot: Snapshot, name: str) -> tuple[str, ShardInfo] | None:
    """Return the split and the shard that this path, or its last part, names."""
    for split, shards in snapshot.splits.items():
        for shard in shards:
            if name in (shard.path, shard.index_path) or shard.path.endswith(f"/{name}"):
                return split, shard
    return None


def added_by(dataset: Store, snapshot: Snapshot, shard: ShardInfo) -> str:
    """Return the id of the snapshot that brought a shard into the chain."""
    found = snapshot
    while found.parent is not None:
        parent = load_snapshot(dataset, found.parent)
        if not any(shard in shards for shards in parent.splits.values()):
            break
        found = parent
    return found.id


def _indexes(dataset: Store, snapshot: Snapshot) -> Iterator[tuple[str, ShardInfo, Table]]:
    shards = [(split, shard) for split, found in snapshot.splits.items() for shard in found]

    def read(item: tuple[str, ShardInfo]) -> Table:
        return read_index(dataset, item[1])

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for first in range(0, len(shards), _AHEAD):
            some = shards[first : first + _AHEAD]
            for (split, shard), table in zip(some, pool.map(read, some), strict=True):
                yield split, shard, table


def _matching(table: Table, name: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    masks = (compute.equal(table.column(column), name) for column in columns)
    return table.filter(reduce(compute.or_, masks)).to_pylist()
