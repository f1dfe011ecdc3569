"""What one snapshot has that another has not."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.arrow import Table, compute
from data.duplicates import SplitShard, read_indexes
from data.snapshot import Snapshot
from data.spool import Spool
from data.stable_hash import digest_rows
from data.store import Store

_SAMPLE_SCHEMA: Any = pa.schema(
    [("high", pa.uint64()), ("low", pa.uint64()), ("is_new", pa.bool_()), ("names", pa.list_(pa.string()))]
)


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

    A sample is its name in the corpus, the bytes of its image, and the names of its classes. The others'
    samples are sorted by a digest, on disk if they are many.
    """
    added: dict[str, dict[str, int]] = {}
    removed: dict[str, dict[str, int]] = {}
    num_shared = 0
    for split in sorted({*old.splits, *new.splits}):
        before, after = old.splits.get(split, ()), new.splits.get(split, ())
        shared = set(before) & set(after)
        num_shared += len(shared)
        spool = Spool(_SAMPLE_SCHEMA, ("high", "low"))
        for is_new, snapshot, shards in ((False, old, before), (True, new, after)):
            unshared = [SplitShard(split=split, info=shard) for shard in shards if shard not in shared]
            for batch in _samples(dataset, unshared, snapshot.classes, is_new):
                spool.add(batch)
        come, gone = _count_unmatched(spool)
        added[split], removed[split] = dict(sorted(come.items())), dict(sorted(gone.items()))
    return SnapshotDiff(
        added=added,
        removed=removed,
        new_classes=tuple(name for name in new.classes if name not in old.classes),
        num_shards_shared=num_shared,
    )


def _samples(
    dataset: Store, shards: Sequence[SplitShard], classes: Sequence[str], is_new: bool
) -> Iterator[Table]:
    known = pa.array(classes, pa.string())
    for table in read_indexes(dataset, shards, ["name", "sha256", "labels"]):
        labels = table.column("labels").combine_chunks()
        offsets = np.concatenate([[0], np.cumsum(compute.list_value_length(labels).to_numpy())])
        names = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), known.take(labels.flatten()))
        high, low = digest_rows([table.column("name"), table.column("sha256"), names])
        columns = [pa.array(high), pa.array(low), pa.array(np.full(len(high), is_new)), names]
        yield pa.RecordBatch.from_arrays(columns, schema=_SAMPLE_SCHEMA)


def _count_unmatched(spool: Spool) -> tuple[Counter[str], Counter[str]]:
    """Count by class the samples that are only among the new ones, and only among the old ones."""
    counts = (Counter[str](), Counter[str]())
    for part in spool.parts():
        high, low = part.column("high").to_numpy(), part.column("low").to_numpy()
        starts = np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])])
        is_alone = starts & np.concatenate([starts[1:], [True]])
        is_new = part.column("is_new").to_numpy(zero_copy_only=False)
        for wanted, count in zip((True, False), counts, strict=True):
            names = part.filter(pa.array(is_alone & (is_new == wanted))).column("names").combine_chunks()
            for entry in compute.value_counts(names.flatten()).to_pylist():
                count[entry["values"]] += entry["counts"]
    return counts
