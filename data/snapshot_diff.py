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

    A sample is its name in the corpus, the bytes of its image, and the names of its classes.
    """
    added: dict[str, dict[str, int]] = {}
    removed: dict[str, dict[str, int]] = {}
    num_shared = 0
    for split in sorted({*old.splits, *new.splits}):
        before, after = set(old.splits.get(split, ())), set(new.splits.get(split, ()))
        num_shared += len(before & after)
        gone = _samples(before - after, old.classes, dataset)
        come = _samples(after - before, new.classes, dataset)
        added[split] = _by_class(come.items() - gone.items())
        removed[split] = _by_class(gone.items() - come.items())
    return SnapshotDiff(
        added=added,
        removed=removed,
        new_classes=tuple(name for name in new.classes if name not in old.classes),
        num_shards_shared=num_shared,
    )


_Key = tuple[str, str]


def _samples(
    shards: Iterable[ShardInfo], classes: tuple[str, ...], dataset: Store
) -> dict[_Key, tuple[str, ...]]:
    """Return the class names of each (name, sha256)."""
    found: dict[_Key, tuple[str, ...]] = {}
    for shard in shards:
        for row in read_index(dataset, shard).select(["name", "sha256", "labels"]).to_pylist():
            found[row["name"], row["sha256"]] = tuple(classes[label] for label in row["labels"])
    return found


def _by_class(samples: Iterable[tuple[_Key, tuple[str, ...]]]) -> dict[str, int]:
    return dict(sorted(Counter(name for _, names in samples for name in names).items()))
