"""Do neighbours share a class? Shards that were not shuffled before they were written give poor batches.

Our own are shuffled; an adopted tar may hold one class after the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data.shard_index import Table, read_index
from data.store import Store
from data.types import ShardInfo

_MAX_SHARDS = 64
"""Read of a split; they are spread over it."""
_WARN_ABOVE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRuns:
    """How often a sample's next neighbour in its shard is of the same class."""

    num_pairs: int
    num_same: int
    expected_share: float
    """What shuffling would give: the chance that two samples drawn at random share a class."""

    @property
    def share(self) -> float:
        """Of the pairs."""
        return self.num_same / self.num_pairs if self.num_pairs else 0.0

    @property
    def is_sorted(self) -> bool:
        """Return whether more than a tenth of the way from shuffled to sorted by class is gone."""
        return self.share > self.expected_share + _WARN_ABOVE * (1 - self.expected_share)

    @property
    def warning(self) -> str:
        """One line for a user."""
        return (
            f"warning: {self.share:.0%} of the neighbours in adopted shards share a class, "
            f"{self.expected_share:.0%} would if they were shuffled: batches will hold few classes each; "
            "raise shuffle_window, or create a dataset of our own from these tars"
        )


def measure_class_runs(dataset: Store, shards: Sequence[ShardInfo]) -> ClassRuns:
    """Read the adopted shards' indexes, of many a part, and count; ours are passed over."""
    adopted = [shard for shard in shards if shard.is_adopted]
    step = max(1, -(-len(adopted) // _MAX_SHARDS))
    return count_class_runs(read_index(dataset, shard) for shard in adopted[::step])


def count_class_runs(indexes: Iterable[Table]) -> ClassRuns:
    """Count over indexes; a sample with several labels counts by its first."""
    num_pairs = num_same = 0
    counts = np.zeros(0, dtype=np.int64)
    for index in indexes:
        labels_N = np.array([labels[0] for labels in index.column("labels").to_pylist()], dtype=np.int64)
        num_pairs += max(len(labels_N) - 1, 0)
        num_same += int((labels_N[1:] == labels_N[:-1]).sum())
        more = np.bincount(labels_N, minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    total = int(counts.sum())
    chance = float(((counts / total) ** 2).sum()) if total else 0.0
    return ClassRuns(num_pairs=num_pairs, num_same=num_same, expected_share=chance)
