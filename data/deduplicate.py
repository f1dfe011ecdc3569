"""Drop duplicates and leaks from freshly written shards."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from data.corpus_listing import CorpusListing
from data.duplicates import SplitShard, find_duplicates
from data.shard_write import ShardResult, rewrite_shard
from data.sharding_config import LeakPolicy
from data.split import SPLITS
from data.store import Store
from data.types import Reject, ShardInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a build or an append has to add to a dataset."""

    shards: Mapping[str, tuple[ShardInfo, ...]]
    """By split, sorted by path, which is a hash: in whatever order the shards were finished."""
    rejects: tuple[Reject, ...]
    """Sorted by key."""
    label_counts: Counter[tuple[str, int]]
    """Samples by split and class index."""
    relabelled: Counter[tuple[int, int]]
    """As `Findings.relabelled`: samples put aside that the dataset knows with another label."""


def deduplicate(
    results: Iterable[ShardResult],
    listing: CorpusListing,
    dataset: Store,
    *,
    known: Mapping[str, Sequence[ShardInfo]],
    leak_policy: LeakPolicy,
) -> Written:
    """Put aside what `find_duplicates` names; only a shard that loses a sample is written again.

    `results` are those of the listing's images. Raises `InputError` for leaks, by policy.
    """
    results = list(results)
    written = [SplitShard(split=result.split, info=result.info) for result in results if result.info]
    parents = [SplitShard(split=split, info=info) for split, shards in known.items() for info in shards]
    found = find_duplicates(dataset, written, known=parents, leak_policy=leak_policy)
    by_shard: defaultdict[str, set[str]] = defaultdict(set)
    for removal in found.removals:
        by_shard[removal.shard_path].add(removal.name)
    shards: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
    for shard in written:
        dropped = by_shard[shard.info.path]
        kept = rewrite_shard(dataset, shard.info, shard.split, dropped) if dropped else shard.info
        if kept:
            shards[shard.split].append(kept)
    rejects = [reject for result in results for reject in result.rejects] + put_aside(found.removals, listing)
    return Written(
        shards={split: tuple(sorted(kept, key=lambda s: s.path)) for split, kept in shards.items()},
        rejects=tuple(sorted(rejects, key=lambda reject: reject.key)),
        label_counts=found.label_counts,
        relabelled=found.relabelled,
    )


class Aside(Protocol):
    """A sample that is not kept."""

    @property
    def name(self) -> str:
        """Its key in the listing."""
        ...

    @property
    def reason(self) -> str:
        """For machines."""
        ...

    @property
    def detail(self) -> str:
        """For people."""
        ...


def put_aside(samples: Sequence[Aside], listing: CorpusListing) -> list[Reject]:
    """Return samples as rejects, with what the listing says of their files."""
    rows = listing.find([sample.name for sample in samples])
    fields = ("path", "etag", "size_bytes", "offset")
    return [
        Reject(
            key=sample.name,
            reason=sample.reason,
            detail=sample.detail,
            **{name: rows[sample.name][name] for name in fields},
        )
        for sample in samples
    ]
