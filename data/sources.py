"""The snapshots of a mixture, read as one: shards numbered through, labels and keys made common."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.mixture import WeightsFrom, check_schedule
from data.shard_cache import ShardCache
from data.snapshot import Snapshot
from data.store import Store
from data.tar_reader import MissingShards, ShardReader, StoredImage
from data.types import ShardInfo


@dataclass(frozen=True, kw_only=True)
class Source:
    """One pinned snapshot and where its shards are."""

    store: Store
    snapshot: Snapshot


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What is mixed into a snapshot's training split, and by which weights."""

    sources: tuple[Source, ...]
    """Beside the snapshot that training is about, which comes first wherever sources are numbered."""
    schedule: tuple[WeightsFrom, ...]

    def __post_init__(self) -> None:
        schedule = check_schedule(self.schedule, 1 + len(self.sources))
        object.__setattr__(self, "schedule", schedule)

    @property
    def snapshot_ids(self) -> tuple[str, ...]:
        """Ids of the snapshots mixed in."""
        return tuple(source.snapshot.id for source in self.sources)

    def check(self, snapshot: Snapshot) -> None:
        """Raise `InputError` where the mixture does not fit a snapshot: named twice, or unknown classes."""
        ids = [snapshot.id, *self.snapshot_ids]
        for source_id in ids:
            if ids.count(source_id) > 1:
                raise InputError(f"snapshot {source_id} is named twice in the mixture; add up its weights.")
        for source in self.sources:
            check_classes(source.snapshot, snapshot.classes, f"snapshot {snapshot.id}")


def check_classes(mixed_in: Snapshot, classes: Sequence[str], owner: str) -> None:
    """Raise `InputError` for a class of a snapshot that is mixed in and that `owner` does not have.

    The classes need not be the same, nor in the same order: labels are matched by name.
    """
    missing = [name for name in mixed_in.classes if name not in classes]
    if missing:
        raise InputError(
            f"snapshot {mixed_in.id} of the mixture has class {missing[0]!r}, which {owner} has not; it has "
            f"{_shorten(classes)}: leave the snapshot out, or add images of that class."
        )


def shards_of(snapshot: Snapshot, split: str) -> Sequence[ShardInfo]:
    """Return a split's shards; `InputError` where there is no such split."""
    if split not in snapshot.splits:
        raise InputError(
            f"snapshot {snapshot.id} has no split {split!r}; it has {', '.join(sorted(snapshot.splits))}."
        )
    return snapshot.splits[split]


class MixedReader:
    """Reads samples of several sources. For several threads at once.

    A label becomes the index of its class in the first source; a name gets the snapshot's id before it,
    `ID:NAME`, for two sources may use one name.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        split: str,
        cache: ShardCache | None,
        *,
        missing_shards: MissingShards = "error",
    ) -> None:
        shards = [shards_of(source.snapshot, split) for source in sources]
        self._readers = [
            ShardReader(source.store, of_source, cache, missing_shards=missing_shards)
            for source, of_source in zip(sources, shards, strict=True)
        ]
        self._ids = [source.snapshot.id for source in sources]
        self._labels = [_new_labels(source.snapshot, sources[0].snapshot) for source in sources]
        self._first_shards = np.cumsum([0, *map(len, shards)])

    def read(self, shard: int, row: int) -> StoredImage:
        """Return a sample, shards counted through all sources. Raises as `ShardReader.read` does."""
        source, local_shard = self._locate(shard)
        stored = self._readers[source].read(local_shard, row)
        return stored._replace(
            label=int(self._labels[source][stored.label]), name=f"{self._ids[source]}:{stored.name}"
        )

    def open(self, shard: int) -> None:
        """Fetch what reading a shard takes, see `ShardReader.open`."""
        source, local_shard = self._locate(shard)
        self._readers[source].open(local_shard)

    def is_open(self, shard: int) -> bool:
        """Say whether `open` would have nothing to fetch."""
        source, local_shard = self._locate(shard)
        return self._readers[source].is_open(local_shard)

    def is_streamed(self, shard: int) -> bool:
        """Say whether a shard's images are known to come from the store, one by one."""
        source, local_shard = self._locate(shard)
        return self._readers[source].is_streamed(local_shard)

    def start_epoch(self) -> None:
        """Say that an epoch begins, see `ShardReader.start_epoch`."""
        for reader in self._readers:
            reader.start_epoch()

    def _locate(self, shard: int) -> tuple[int, int]:
        """Return the source, and the shard's number in it."""
        source = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        return source, shard - int(self._first_shards[source])


def _new_labels(snapshot: Snapshot, first: Snapshot) -> NDArray[np.int64]:
    return np.array([first.classes.index(name) for name in snapshot.classes], dtype=np.int64)


def _shorten(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
