"""Drop duplicates and leaks from freshly written shards."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from data.duplicates import LeakPolicy, Removal, SplitIndex, find_duplicates
from data.shard_index import read_index
from data.shard_write import ShardResult, rewrite_shard
from data.split import SPLITS
from data.store import Store
from data.types import Record, Reject, ShardInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a build or an append has to add to a dataset."""

    shards: Mapping[str, tuple[ShardInfo, ...]]
    """By split, sorted by path, which is a hash: in whatever order the shards were finished."""
    rejects: tuple[Reject, ...]
    """Sorted by key."""
    label_counts: Counter[tuple[str, int]]
    """Samples by split and class index."""


def deduplicate(
    results: Iterable[ShardResult],
    records: Iterable[Record],
    dataset: Store,
    *,
    known: Sequence[SplitIndex],
    leak_policy: LeakPolicy,
) -> Written:
    """Put aside what `find_duplicates` names; only a shard that loses a sample is written again.

    `records` are those the results were made of. Raises `InputError` for leaks, by policy.
    """
    results = list(results)
    written = [(result.split, result.info) for result in results if result.info]
    indexes = [index for split, info in written for index in read_indexes(dataset, split, [info])]
    removals = find_duplicates(indexes, known=known, leak_policy=leak_policy)
    by_shard: defaultdict[str, set[str]] = defaultdict(set)
    for removal in removals:
        by_shard[removal.shard_path].add(removal.name)
    shards: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
    for split, info in written:
        dropped = by_shard[info.path]
        kept = rewrite_shard(dataset, info, split, dropped) if dropped else info
        if kept:
            shards[split].append(kept)
    rejects = [reject for result in results for reject in result.rejects] + _put_aside(removals, records)
    return Written(
        shards={split: tuple(sorted(found, key=lambda s: s.path)) for split, found in shards.items()},
        rejects=tuple(sorted(rejects, key=lambda reject: reject.key)),
        label_counts=_count_labels(indexes, by_shard),
    )


def read_indexes(dataset: Store, split: str, shards: Iterable[ShardInfo]) -> list[SplitIndex]:
    """Return the shards' indexes for `find_duplicates`."""
    return [
        SplitIndex(split=split, shard_path=shard.path, table=read_index(dataset, shard)) for shard in shards
    ]


def _put_aside(removals: Iterable[Removal], records: Iterable[Record]) -> list[Reject]:
    by_key = {record.key: record for record in records}
    return [
        Reject(
            key=removal.name,
            path=by_key[removal.name].path,
            reason=removal.reason,
            detail=removal.detail,
            etag=by_key[removal.name].etag,
        )
        for removal in removals
    ]


def _count_labels(indexes: Iterable[SplitIndex], dropped: Mapping[str, set[str]]) -> Counter[tuple[str, int]]:
    counts: Counter[tuple[str, int]] = Counter()
    for index in indexes:
        gone = dropped.get(index.shard_path, set[str]())
        for row in index.table.select(["name", "labels"]).to_pylist():
            if row["name"] not in gone:
                counts.update((index.split, label) for label in row["labels"])
    return counts
