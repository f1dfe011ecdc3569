"""Snapshots: the numbered, immutable states of a dataset, each naming all of its shards."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from data.corpus import CorpusListing
from data.errors import InputError
from data.shard_index import Table, is_named_by_content, parquet_table, put_parquet
from data.shard_index import read_index as read_index
from data.store import ObjectNotFoundError, Store, StoreError
from data.types import Record, ShardInfo

SNAPSHOT_FORMAT = "coatnet-snapshot/1"

OUTCOME_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("outcome", pa.string()),  # "accepted", or the reject's reason
    ]
)


class SnapshotConflictError(RuntimeError):
    """Another writer committed this number first; load HEAD and build on that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One state of a dataset. Paths are relative to the dataset store."""

    number: int
    parent: str | None
    """The id of the snapshot this one appends to."""
    classes: tuple[str, ...]
    """A label's index is its place here; an append adds to the end only."""
    splits: Mapping[str, tuple[ShardInfo, ...]]
    """`train` and `eval`: all shards, the parent's first."""
    stats: Mapping[str, Mapping[str, int]]
    """`samples` and `size_bytes` by split, `train` and `eval` samples by class (all shards);
    `rejects` by reason (of this snapshot's own listing)."""
    listing_digest: str
    listing_path: str
    """Parquet of the records processed for this snapshot, with their outcome."""
    quarantine_path: str | None
    """Parquet of this snapshot's rejects."""

    @property
    def content_sha256(self) -> str:
        """The hash (hex) over everything but the number."""
        content = {name: value for name, value in asdict(self).items() if name != "number"}
        text = json.dumps([SNAPSHOT_FORMAT, content], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def id(self) -> str:
        """`NUMBER-HASH`, e.g. `3-0a1b2c3d4e5f`."""
        return f"{self.number}-{self.content_sha256[:12]}"


def commit_snapshot(dataset: Store, snapshot: Snapshot) -> Snapshot:
    """Write the snapshot under its number unless that is taken.

    Committing the same snapshot again is fine; another one there is a `SnapshotConflictError`.
    """
    file = {
        "format": SNAPSHOT_FORMAT, "id": snapshot.id, "content_sha256": snapshot.content_sha256,
        **asdict(snapshot),
    }  # fmt: skip
    path = _path(snapshot.number)
    if not dataset.put_if_absent(path, json.dumps(file, indent=1, sort_keys=True).encode() + b"\n"):
        winner = _read(dataset, path)
        if winner.id != snapshot.id:
            raise SnapshotConflictError(
                f"{dataset.uri}: snapshot {snapshot.number} was committed by another writer as {winner.id}"
            )
    return snapshot


def load_snapshot(dataset: Store, snapshot_id: str) -> Snapshot:
    """Return the snapshot with this id, or the newest for `HEAD`.

    Raises `InputError` if it is not there, `StoreError` if its file is damaged.
    """
    numbers = snapshot_numbers(dataset)
    if snapshot_id == "HEAD":
        if not numbers:
            raise InputError(f"no snapshot in {dataset.uri}: shard a corpus into it first")
        return _read(dataset, _path(numbers[-1]))
    number_text = snapshot_id.partition("-")[0]
    if number_text.isascii() and number_text.isdigit() and int(number_text) in numbers:
        snapshot = _read(dataset, _path(int(number_text)))
        if snapshot.id == snapshot_id:
            return snapshot
    known = ", ".join(snapshot.id for snapshot in list_snapshots(dataset)[-10:]) or "none"
    raise InputError(f"snapshot {snapshot_id!r} is not in {dataset.uri}: there are {known}")


def list_snapshots(dataset: Store) -> list[Snapshot]:
    """Return all snapshots, oldest first."""
    return [_read(dataset, _path(number)) for number in snapshot_numbers(dataset)]


def snapshot_numbers(dataset: Store) -> list[int]:
    """Return the numbers that are taken, ascending."""
    names = (info.path.rpartition("/")[2] for info in dataset.list("snapshots"))
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def load_chain(dataset: Store, snapshot: Snapshot) -> list[Snapshot]:
    """Return the snapshot and its ancestors, newest first."""
    chain = [snapshot]
    while chain[-1].parent is not None:
        chain.append(load_snapshot(dataset, chain[-1].parent))
    return chain


def write_outcomes(dataset: Store, records: Iterable[Record], reasons: Mapping[str, str]) -> str:
    """Write what became of each record (`reasons`: rejects by key) and return the Parquet's path."""
    return put_parquet(dataset, "listings", _outcome_rows(records, reasons), OUTCOME_SCHEMA)


def remember_rejects(
    dataset: Store, snapshot: Snapshot, records: Iterable[Record], reasons: Mapping[str, str]
) -> None:
    """Note rejected records outside of any snapshot, for an append that added nothing.

    They count as processed for `snapshot` and all that share its first ancestor.
    """
    rejected = (record for record in records if record.key in reasons)
    rows = _outcome_rows(rejected, reasons)
    put_parquet(dataset, _seen_folder(load_chain(dataset, snapshot)), rows, OUTCOME_SCHEMA)


def new_records(dataset: Store, snapshot: Snapshot, listing: CorpusListing) -> list[Record]:
    """Return the records whose (path, size, etag) no snapshot of the chain has processed."""
    chain = load_chain(dataset, snapshot)
    paths = [*(ancestor.listing_path for ancestor in chain), *seen_paths(dataset, chain)]
    processed: set[tuple[str, int, str]] = set()
    for path in paths:
        table = _read_outcomes(dataset, path)
        columns = (table.column(name).to_pylist() for name in ("path", "size_bytes", "etag"))
        processed.update(zip(*columns, strict=True))
    return [r for r in listing.records if (r.path, r.size_bytes, r.etag) not in processed]


def seen_paths(dataset: Store, chain: Sequence[Snapshot]) -> list[str]:
    """Return where `remember_rejects` noted records for a chain."""
    return [info.path for info in dataset.list(_seen_folder(chain))]


def _read_outcomes(dataset: Store, path: str) -> Table:
    content = dataset.get(path)
    if not is_named_by_content(path, content):
        raise StoreError(
            f"{dataset.uri}/{path} is damaged: its content does not have the hash in its name; restore it, "
            "or create the dataset anew elsewhere"
        )
    return parquet_table(content)


def _outcome_rows(records: Iterable[Record], reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "key": record.key, "path": record.path, "size_bytes": record.size_bytes,
            "etag": record.etag, "outcome": reasons.get(record.key, "accepted"),
        }
        for record in sorted(records, key=lambda record: record.key)
    ]  # fmt: skip


def _seen_folder(chain: Sequence[Snapshot]) -> str:
    return f"seen/{chain[-1].id}"


def _path(number: int) -> str:
    return f"snapshots/{number:06d}.json"


def _read(dataset: Store, path: str) -> Snapshot:
    try:
        file = json.loads(dataset.get(path))
        if file["format"] != SNAPSHOT_FORMAT:
            raise InputError(
                f"{dataset.uri}/{path} has format {file['format']!r}, this code reads {SNAPSHOT_FORMAT!r}"
            )
        splits = {
            split: tuple(ShardInfo(**shard) for shard in shards) for split, shards in file["splits"].items()
        }
        snapshot = Snapshot(
            number=file["number"], parent=file["parent"], classes=tuple(file["classes"]), splits=splits,
            stats=file["stats"], listing_digest=file["listing_digest"],
            listing_path=file["listing_path"], quarantine_path=file["quarantine_path"],
        )  # fmt: skip
        is_whole = snapshot.content_sha256 == file["content_sha256"] and path == _path(snapshot.number)
    except ObjectNotFoundError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise StoreError(f"{dataset.uri}/{path} is not a snapshot file: {error!r}") from error
    if not is_whole:
        raise StoreError(f"{dataset.uri}/{path} is damaged: its content does not have the hash it names")
    return snapshot
