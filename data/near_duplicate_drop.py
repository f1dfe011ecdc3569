"""Settle what looks alike among freshly written shards: listed, or dropped."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.corpus_listing import CorpusListing
from data.deduplicate import Written, put_aside
from data.duplicates import SplitShard
from data.near_duplicate_report import NearDuplicate, find_near_duplicates, write_near_duplicates
from data.shard_index import read_index
from data.shard_write import rewrite_shard
from data.sharding_config import DuplicatePolicy
from data.store import Store
from data.types import ShardInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicates:
    """What a snapshot tells of images that look alike."""

    path: str | None
    """Parquet of the pairs that both are in the snapshot."""
    counts: Mapping[str, int]
    """`pairs`, `leaks` and `dropped`; empty where they were not looked for."""


def settle_near_duplicates(
    written: Written,
    listing: CorpusListing,
    dataset: Store,
    *,
    known: Mapping[str, Sequence[ShardInfo]],
    config: DuplicatePolicy,
) -> tuple[Written, NearDuplicates]:
    """Return what is left of `written`, and what was found, as the config wants it.

    `listing` has the written images. Only a shard that loses a sample is written again.
    """
    if config.near_duplicates == "off":
        return written, NearDuplicates(path=None, counts={})
    report = find_near_duplicates(dataset, _flat(written.shards), known=_flat(known), config=config)
    counts = {"pairs": report.num_pairs, "leaks": report.num_leaks, "dropped": len(report.dropped)}
    if config.near_duplicates == "drop":
        return _drop(written, report.dropped, listing, dataset), NearDuplicates(path=None, counts=counts)
    path = write_near_duplicates(dataset, report.listed) if report.listed else None
    return written, NearDuplicates(path=path, counts=counts)


def _flat(shards: Mapping[str, Sequence[ShardInfo]]) -> list[SplitShard]:
    return [SplitShard(split=split, info=info) for split, found in shards.items() for info in found]


def _drop(
    written: Written, dropped: Sequence[NearDuplicate], listing: CorpusListing, dataset: Store
) -> Written:
    by_shard: defaultdict[str, list[NearDuplicate]] = defaultdict(list)
    for pair in dropped:
        by_shard[pair.shard].append(pair)
    shards: dict[str, tuple[ShardInfo, ...]] = {}
    counts = Counter(written.label_counts)
    for split, found in written.shards.items():
        kept: list[ShardInfo | None] = []
        for shard in found:
            going = by_shard[shard.path]
            names = [pair.name for pair in going]
            kept.append(rewrite_shard(dataset, shard, split, names) if going else shard)
            if going:
                rows = read_index(dataset, shard).take([pair.row for pair in going])
                labels = rows.column("labels").combine_chunks().flatten().to_pylist()
                counts.subtract((split, label) for label in labels)
        left = (shard for shard in kept if shard is not None)
        shards[split] = tuple(sorted(left, key=lambda shard: shard.path))
    rejects = (*written.rejects, *put_aside(dropped, listing))
    return Written(
        shards=shards,
        rejects=tuple(sorted(rejects, key=lambda reject: reject.key)),
        label_counts=counts,
        relabelled=written.relabelled,
    )
