"""What one snapshot has that another has not."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from data.shard_index import read_index
from data.snapshot import Snapshot
from data.store import Store
from data.types import ShardInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDiff:
    """From an old snapshot to a new one."""

    added: dict[str, dict[str, int]]
    """Samples by split and class name."""
    removed: dict[str, dict[str, int]]
    new_classes: tuple[str, ...]
    num_shards_shared: int


def diff_snapshots(old: Snapshot, new: Snapshot, dataset: Store) -> SnapshotDiff:
    """Compare two snapshots of one dataset, sample by sample; shards that both have are not read.

    A sample is its name in the corpus and the bytes of its image.
    """
    added: dict[str, dict[str, int]] = {}
    removed: dict[str, dict[str, int]] = {}
    num_shared = 0
    for split in sorted({*old.splits, *new.splits}):
        before, after = set(old.splits.get(split, ())), set(new.splits.get(split, ()))
        num_shared += len(before & after)
        gone, come = _samples(before - after, dataset), _samples(after - before, dataset)
        added[split] = _by_class(come.items() - gone.items(), new.classes)
        removed[split] = _by_class(gone.items() - come.items(), old.classes)
    return SnapshotDiff(
        added=added,
        removed=removed,
        new_classes=tuple(name for name in new.classes if name not in old.classes),
        num_shards_shared=num_shared,
    )


_Key = tuple[str, str]


def _samples(shards: Iterable[ShardInfo], dataset: Store) -> dict[_Key, tuple[int, ...]]:
    """Return the labels of each (name, sha256)."""
    found: dict[_Key, tuple[int, ...]] = {}
    for shard in shards:
        rows = read_index(dataset, shard).select(["name", "sha256", "labels"]).to_pylist()
        found.update({(row["name"], row["sha256"]): tuple(row["labels"]) for row in rows})
    return found


def _by_class(samples: Iterable[tuple[_Key, tuple[int, ...]]], classes: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(classes[label] for _, labels in samples for label in labels)
    return dict(sorted(counts.items()))
