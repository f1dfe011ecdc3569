"""Snapshots: the numbered, immutable states of a dataset, each naming all of its shards."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from data.errors import InputError
from data.lease import store_time_s
from data.quarantine import picture_paths
from data.retirement import retired_ids
from data.shard_index import read_index as read_index
from data.shard_list import ShardList, extend_shard_lists, read_shard_lists
from data.store import ObjectNotFoundError, Store, StoreError
from data.types import ShardInfo

SNAPSHOT_FORMAT = "coatnet-snapshot/4"
_NOT_CONTENT = ("number", "listed_in")


class SnapshotConflictError(RuntimeError):
    """Another writer committed this number first; load HEAD and build on that."""


@dataclass(frozen=True, kw_only=True)
class SnapshotHeader:
    """One state of a dataset, without its shards one by one. Paths are relative to the dataset store."""

    number: int
    parent: str | None
    """The id of the snapshot this one appends to."""
    classes: tuple[str, ...]
    """A label's index is its place here; an append adds to the end only."""
    shard_lists: tuple[ShardList, ...]
    """Where the shards are named, the parent's first."""
    stats: Mapping[str, Mapping[str, int]]
    """`samples` and `size_bytes` by split, `train` and `eval` samples by class (all shards);
    `rejects` by reason (of this snapshot's own listing); `near_duplicates` (its own `pairs`, those across
    splits as `leaks`, and `dropped`; empty where they were not looked for)."""
    listing_digest: str
    listing_paths: tuple[str, ...]
    """Parquet of the records processed for this snapshot, with their outcome."""
    quarantine_path: str | None
    """Parquet of this snapshot's rejects."""
    near_duplicates_path: str | None = None
    """Parquet of pairs that look alike, one of each new in this snapshot."""
    listed_in: str = ""
    """The local folder (`file://`) that was listed, where an etag is only a time; empty for any other store.
    Not part of the id: the same files elsewhere make the same snapshot."""

    @cached_property
    def content_sha256(self) -> str:
        """The hash (hex) over everything but the number and `listed_in`; shards are in it by their lists."""
        content = {name: value for name, value in self.header_values().items() if name not in _NOT_CONTENT}
        text = json.dumps([SNAPSHOT_FORMAT, content], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def id(self) -> str:
        """`NUMBER-HASH`, e.g. `3-0a1b2c3d4e5f`."""
        return f"{self.number}-{self.content_sha256[:12]}"

    def header_values(self) -> dict[str, Any]:
        """Return the fields of the header, as plain values."""
        values = {field.name: getattr(self, field.name) for field in fields(SnapshotHeader)}
        return {**values, "shard_lists": [asdict(one) for one in self.shard_lists]}


@dataclass(frozen=True, kw_only=True)
class Snapshot(SnapshotHeader):
    """One state of a dataset with its shards."""

    splits: Mapping[str, tuple[ShardInfo, ...]]
    """`train` and `eval`: all shards, the parent's first; as the shard lists have them."""


def make_snapshot(
    dataset: Store,
    parent: Snapshot | None,
    shards: Mapping[str, Sequence[ShardInfo]],
    *,
    number: int | None = None,
    **about: Any,
) -> Snapshot:
    """Return a snapshot that has `shards` (by split) after the parent's; its shard list is written.

    `about` are the other fields of `SnapshotHeader`. Nothing is visible before `commit_snapshot`.
    """
    known = parent.splits if parent else {}
    return Snapshot(
        number=number or (parent.number + 1 if parent else 1),
        parent=parent.id if parent else None,
        shard_lists=extend_shard_lists(dataset, parent.shard_lists if parent else (), known, shards),
        splits={split: (*known.get(split, ()), *new) for split, new in shards.items()},
        **about,
    )


def commit_snapshot(dataset: Store, snapshot: Snapshot) -> Snapshot:
    """Write the snapshot under its number unless that is taken.

    Committing the same snapshot again is fine; another one there is a `SnapshotConflictError`.
    """
    file = {
        "format": SNAPSHOT_FORMAT, "id": snapshot.id, "content_sha256": snapshot.content_sha256,
        **snapshot.header_values(),
    }  # fmt: skip
    path = snapshot_path(snapshot.number)
    if not dataset.put_if_absent(path, json.dumps(file, indent=1, sort_keys=True).encode() + b"\n"):
        winner = _read(dataset, path)
        if winner.id != snapshot.id:
            raise SnapshotConflictError(
                f"{dataset.uri}: snapshot {snapshot.number} was committed by another writer as {winner.id}"
            )
    return snapshot


def check_head(dataset: Store, parent: SnapshotHeader | None) -> None:
    """Raise `SnapshotConflictError` where HEAD is not `parent` (None: no snapshot is live) any more.

    To be asked right before a commit: a parent that was retired meanwhile would come back as an ancestor.
    """
    newest = _newest_live(dataset, snapshot_numbers(dataset))
    head, expected = (newest.id if newest else None), (parent.id if parent else None)
    if head != expected:
        raise SnapshotConflictError(
            f"{dataset.uri}: HEAD was snapshot {expected or 'none'} and is {head or 'none'} now: another "
            "writer committed, or retired it"
        )


def load_snapshot(dataset: Store, snapshot_id: str) -> Snapshot:
    """Return the snapshot with this id, or the newest that is not retired for `HEAD`.

    Raises `InputError` if it is not there, `StoreError` if its file or a shard list is damaged.
    """
    return _with_shards(dataset, load_header(dataset, snapshot_id))


def load_header(dataset: Store, snapshot_id: str) -> SnapshotHeader:
    """Return a snapshot without its shards one by one; else as `load_snapshot`."""
    if snapshot_id == "HEAD":
        return _head_and_next_number(dataset)[0]
    number_text = snapshot_id.partition("-")[0]
    if number_text.isascii() and number_text.isdigit():
        try:
            header = _read(dataset, snapshot_path(int(number_text)))
        except ObjectNotFoundError:
            header = None
        if header is not None and header.id == snapshot_id:
            return header
    known = ", ".join(header.id for header in list_snapshots(dataset)[-10:]) or "none"
    raise InputError(f"snapshot {snapshot_id!r} is not in {dataset.uri}: there are {known}")


def head_and_next_number(dataset: Store) -> tuple[Snapshot, int]:
    """Return the newest snapshot that is not retired, and the number that an append to it takes.

    Both from one listing: whoever wins that number has appended to what was HEAD until then.
    Raises `InputError` where there is no live snapshot.
    """
    header, number = _head_and_next_number(dataset)
    return _with_shards(dataset, header), number


def _head_and_next_number(dataset: Store) -> tuple[SnapshotHeader, int]:
    numbers = snapshot_numbers(dataset)
    if (header := _newest_live(dataset, numbers)) is not None:
        return header, numbers[-1] + 1
    if numbers:
        raise InputError(
            f"all {len(numbers)} snapshots in {dataset.uri} are retired: bring one back with "
            "pipelines/shard.py retire --undo --snapshot ID, or create one anew"
        )
    raise InputError(f"no snapshot in {dataset.uri}: shard a corpus into it first")


def _newest_live(dataset: Store, numbers: Sequence[int]) -> SnapshotHeader | None:
    retired = retired_ids(dataset)
    headers = (_read(dataset, snapshot_path(number)) for number in reversed(numbers))
    return next((header for header in headers if header.id not in retired), None)


def _with_shards(dataset: Store, header: SnapshotHeader) -> Snapshot:
    values = {field.name: getattr(header, field.name) for field in fields(SnapshotHeader)}
    return Snapshot(**values, splits=read_shard_lists(dataset, header.shard_lists))


def list_live_snapshots(dataset: Store) -> list[SnapshotHeader]:
    """Return the snapshots that are not retired, oldest first."""
    retired = retired_ids(dataset)
    return [header for header in list_snapshots(dataset) if header.id not in retired]


def list_snapshots(dataset: Store) -> list[SnapshotHeader]:
    """Return all snapshots, oldest first."""
    return [_read(dataset, snapshot_path(number)) for number in snapshot_numbers(dataset)]


def snapshot_numbers(dataset: Store) -> list[int]:
    """Return the numbers that are taken, ascending."""
    names = (info.path.rpartition("/")[2] for info in dataset.list("snapshots"))
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def snapshot_ages_s(dataset: Store) -> dict[int, float]:
    """Return how long ago each snapshot was committed, by number and by the store's clock."""
    now_s = store_time_s(dataset)
    modified_s = {info.path: info.modified_s for info in dataset.list("snapshots")}
    return {number: now_s - modified_s[snapshot_path(number)] for number in snapshot_numbers(dataset)}


def load_chain(dataset: Store, snapshot: SnapshotHeader) -> list[SnapshotHeader]:
    """Return the snapshot and its ancestors, newest first."""
    chain = [snapshot]
    while chain[-1].parent is not None:
        chain.append(load_header(dataset, chain[-1].parent))
    return chain


def seen_paths(dataset: Store, chain: Sequence[SnapshotHeader]) -> list[str]:
    """Return where `data.outcomes.remember_rejects` noted records for a chain."""
    ids = {header.id for header in chain}
    return [
        info.path
        for info in dataset.list("seen")
        if info.path.endswith(".parquet") and info.path.split("/")[1] in ids
    ]


def reachable_paths(dataset: Store, snapshot: Snapshot) -> set[str]:
    """Return every object that reading, verifying, showing or appending to the snapshot needs.

    Its tars and indexes; of it and its ancestors the snapshot files, listings, quarantines with their
    pictures and what was noted in `seen/`; its own shard lists. An ancestor's own shard lists are not in it.
    """
    chain = load_chain(dataset, snapshot)
    paths = {*seen_paths(dataset, chain), *(one.path for one in snapshot.shard_lists)}
    for header in chain:
        paths |= {snapshot_path(header.number), *header.listing_paths}
        if header.quarantine_path is not None:
            paths |= {header.quarantine_path, *picture_paths(header.quarantine_path)}
        if header.near_duplicates_path is not None:
            paths.add(header.near_duplicates_path)
    for shards in snapshot.splits.values():
        for shard in shards:
            paths |= {shard.path, shard.index_path}
    return paths


def snapshot_path(number: int) -> str:
    """Return where a snapshot's file is."""
    return f"snapshots/{number:06d}.json"


def _read(dataset: Store, path: str) -> SnapshotHeader:
    try:
        file = json.loads(dataset.get(path))
        if file["format"] != SNAPSHOT_FORMAT:
            raise InputError(
                f"{dataset.uri}/{path} has format {file['format']!r}, this code reads {SNAPSHOT_FORMAT!r}: "
                "create the dataset anew with this version, or read it with the one that wrote it"
            )
        values: dict[str, Any] = {field.name: file[field.name] for field in fields(SnapshotHeader)}
        values |= {name: tuple(values[name]) for name in ("classes", "listing_paths")}
        values["shard_lists"] = tuple(ShardList(**one) for one in file["shard_lists"])
        header = SnapshotHeader(**values)
        is_whole = header.content_sha256 == file["content_sha256"] and path == snapshot_path(header.number)
    except ObjectNotFoundError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise StoreError(f"{dataset.uri}/{path} is not a snapshot file: {error!r}") from error
    if not is_whole:
        raise StoreError(f"{dataset.uri}/{path} is damaged: its content does not have the hash it names")
    return header
