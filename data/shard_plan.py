"""Decide which images go into which shard, from the listing alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.split import SPLITS, assign_split
from data.stable_hash import stable_hash
from data.types import Record

# Three tar headers, the label and JSON members, and the padding of the image, on average.
MEMBER_OVERHEAD_BYTES = 3 * 512 + 2 * 512 + 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One shard to be written: everything `write_shard` must know but the stores."""

    split: str
    records: tuple[Record, ...]
    """In the shard's order."""
    classes: tuple[str, ...]
    """A label's index is its place here."""


def plan_shards(
    records: Iterable[Record],
    *,
    classes: Sequence[str],
    seed: int,
    shard_size_bytes: int,
    eval_fraction: float,
) -> list[ShardPlan]:
    """Return the plans, train first, each of about `shard_size_bytes` or a little less.

    The order is that of a hash of key and seed, so neither the listing's order nor a second run
    matters, and classes are mixed. A record without a split gets one by its key. A split's last
    shard is as large as the others: all aim at the same share of the split's bytes.
    """
    by_split: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in records:
        by_split[record.split or assign_split(record.key, eval_fraction, seed)].append(record)
    plans: list[ShardPlan] = []
    for split, members in by_split.items():
        members.sort(key=lambda r: (stable_hash(r.key, seed=seed, purpose="order"), r.key))
        plans += [
            ShardPlan(split=split, records=tuple(part), classes=tuple(classes))
            for part in _cut(members, shard_size_bytes)
        ]
    return plans


def _cut(records: Sequence[Record], shard_size_bytes: int) -> list[list[Record]]:
    """Cut at equal shares of the total; no shard is empty."""
    sizes = [record.size_bytes + MEMBER_OVERHEAD_BYTES for record in records]
    total = sum(sizes)
    num_shards = -(-total // shard_size_bytes)
    parts: list[list[Record]] = []
    before, last_share = 0, -1
    for record, size in zip(records, sizes, strict=True):
        share = before * num_shards // total
        if share != last_share:
            parts.append([])
            last_share = share
        parts[-1].append(record)
        before += size
    return parts
