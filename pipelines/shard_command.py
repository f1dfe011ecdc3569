"""What the commands of `pipelines/shard.py` share."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.corpus_listing import CorpusListing
from data.errors import InputError
from data.snapshot import Snapshot
from data.split import SPLITS
from data.store import Store
from infra.store import check_store, open_store

_SHOWN_PARTS = 40


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command found or did."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Plain values for `--json`."""
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: its options, and what it does with them."""

    config_type: type[Any]
    """A frozen dataclass with a field `json`."""
    run: Callable[[Any], Outcome]
    description: str


@dataclass(frozen=True, kw_only=True)
class ShardRuntime:
    """On what it runs; nothing here changes the result."""

    num_workers: int = 8
    """Shards handled at a time, as Ray tasks of one CPU each."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise InputError(f"runtime.num_workers is {self.num_workers}; it must be at least 1")


def open_to_read(uri: str) -> Store:
    """Open a dataset or a corpus; InputError within seconds where it cannot be read."""
    store = open_store(uri)
    check_store(store, writable=False)
    return store


def require(config: object, *names: str) -> None:
    """Raise InputError for an option that was not given."""
    for name in names:
        if not getattr(config, name):
            raise InputError(f"{name} is empty: give --{name}")


def split_names(snapshot: Snapshot) -> list[str]:
    """Return the snapshot's splits, train first."""
    return [split for split in SPLITS if split in snapshot.splits]


def snapshot_values(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot's numbers as plain values."""
    return {
        "snapshot": snapshot.id,
        "parent": snapshot.parent,
        "classes": len(snapshot.classes),
        "samples": dict(snapshot.stats["samples"]),
        "size_bytes": dict(snapshot.stats["size_bytes"]),
        "rejects": dict(snapshot.stats["rejects"]),
        "shards": {split: len(shards) for split, shards in snapshot.splits.items()},
    }


def describe_snapshot(snapshot: Snapshot) -> str:
    """Return one line about a snapshot."""
    samples, sizes = snapshot.stats["samples"], snapshot.stats["size_bytes"]
    parts = [
        f"{split} {samples[split]:,} images, {len(snapshot.splits[split]):,} shards, "
        f"{sizes[split] / 1e6:,.1f} MB"
        for split in split_names(snapshot)
    ]
    rejects = snapshot.stats["rejects"]
    left_out = f"; left out: {counts(rejects)}" if rejects else ""
    return f"snapshot {snapshot.id}: {len(snapshot.classes)} classes; {'; '.join(parts)}{left_out}"


def describe_listing(listing: CorpusListing) -> str:
    """Return how much a corpus holds."""
    return (
        f"{listing.num_images:,} images of {len(listing.classes)} classes, {listing.size_bytes / 1e6:,.1f} MB"
    )


def counts(values: Mapping[str, int]) -> str:
    """Return `3 unreadable, 1 duplicate`, the most frequent first, or `none`."""
    parts = [f"{count:,} {name}" for name, count in Counter(values).most_common() if count]
    return shorten(parts) or "none"


def shorten(parts: Sequence[str]) -> str:
    """Join the first ones, and say how many more there are."""
    more = f" and {len(parts) - _SHOWN_PARTS} more" if len(parts) > _SHOWN_PARTS else ""
    return ", ".join(parts[:_SHOWN_PARTS]) + more
