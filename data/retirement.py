"""Which snapshots are retired: a log beside the snapshots, each entry written once.

`retirements/SNAPSHOT_ID/NNNNNN.json` moves a snapshot from one state to the next:

    live -> retired -> live        (`restored`: somebody undid it)
                    -> collected   (gc frees its objects; for good)

An entry's number is won with a conditional put, so of an undo and a gc that cross exactly one happens.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from data.errors import InputError
from data.store import Store, StoreError

State = Literal["retired", "restored", "collected"]

_FOLDER = "retirements"
_STATES = ("retired", "restored", "collected")
_NOT_LIVE = ("retired", "collected")
_ENTRY = re.compile(rf"{_FOLDER}/([^/]+)/(\d{{6}})\.json", re.ASCII)


class DamagedRetirementError(StoreError):
    """An entry is there and cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetirementRecord:
    """The last thing that happened to a snapshot's retirement."""

    snapshot_id: str
    number: int
    """Of the entry, from 1."""
    state: State
    reason: str
    at: str
    """When, by the writer's clock, for people; nothing is decided by it."""

    @property
    def is_live(self) -> bool:
        """Return whether jobs may pin the snapshot, and appends go on from it."""
        return self.state not in _NOT_LIVE

    @property
    def path(self) -> str:
        """Where the entry stands in the dataset."""
        return _entry_path(self.snapshot_id, self.number)


def retirements(dataset: Store) -> dict[str, RetirementRecord]:
    """Return the last entry of each snapshot that has any, by id. `StoreError` for a damaged one."""
    newest: defaultdict[str, int] = defaultdict(int)
    for snapshot_id, number in _entries(dataset):
        newest[snapshot_id] = max(newest[snapshot_id], number)
    return {snapshot_id: _read(dataset, snapshot_id, number) for snapshot_id, number in newest.items()}


def retired_ids(dataset: Store) -> set[str]:
    """Return the ids of the snapshots that are not live."""
    return {record.snapshot_id for record in retirements(dataset).values() if not record.is_live}


def retirement(dataset: Store, snapshot_id: str) -> RetirementRecord | None:
    """Return the last entry of one snapshot; None if it was never retired."""
    numbers = [number for _, number in _entries(dataset, snapshot_id)]
    return _read(dataset, snapshot_id, max(numbers)) if numbers else None


def check_live(dataset: Store, snapshot_id: str) -> None:
    """Raise `InputError` for a snapshot that is retired, with the way out."""
    record = retirement(dataset, snapshot_id)
    if record is None or record.is_live:
        return
    if record.state == "collected":
        raise InputError(
            f"snapshot {snapshot_id} of {dataset.uri} was retired ({record.reason}) and gc has freed its "
            "shards: take a live one (pipelines/shard.py show), or create it anew from its corpus"
        )
    raise InputError(
        f"snapshot {snapshot_id} of {dataset.uri} is retired ({record.reason}): take a live one, or bring it "
        f"back with pipelines/shard.py retire --undo --snapshot {snapshot_id}"
    )


def damaged_entries(dataset: Store) -> list[str]:
    """Return the paths of entries that cannot be read; older ones, too."""
    damaged: list[str] = []
    for snapshot_id, number in _entries(dataset):
        try:
            _read(dataset, snapshot_id, number)
        except DamagedRetirementError:
            damaged.append(_entry_path(snapshot_id, number))
    return damaged


def retire_snapshot(dataset: Store, snapshot_id: str, reason: str) -> RetirementRecord:
    """Retire a snapshot. Raises `InputError` where it is retired already, or nobody says why."""
    if not reason.strip():
        raise InputError("reason is empty: say why the snapshot is retired, with --reason")
    last = retirement(dataset, snapshot_id)
    if last is not None and not last.is_live:
        raise InputError(f"snapshot {snapshot_id} is {last.state} already ({last.reason})")
    return _advance(dataset, snapshot_id, last, "retired", reason)


def restore_snapshot(dataset: Store, snapshot_id: str) -> RetirementRecord:
    """Undo a retirement. Raises `InputError` where there is none, or gc came first."""
    last = retirement(dataset, snapshot_id)
    if last is None or last.is_live:
        raise InputError(f"snapshot {snapshot_id} is not retired: there is nothing to undo")
    if last.state == "collected":
        raise InputError(
            f"snapshot {snapshot_id} cannot come back: gc has freed its shards ({last.at}); "
            "create it anew from its corpus"
        )
    return _advance(dataset, snapshot_id, last, "restored", f"undone: {last.reason}")


def mark_collected(dataset: Store, record: RetirementRecord) -> bool:
    """Let gc take a retired snapshot; False where it was brought back meanwhile."""
    if record.state == "collected":
        return True
    entry = _entry(record.snapshot_id, record.number + 1, "collected", record.reason)
    if dataset.put_if_absent(entry.path, _encode(entry)):
        return True
    last = retirement(dataset, record.snapshot_id)
    return last is not None and last.state == "collected"


def _advance(
    dataset: Store, snapshot_id: str, last: RetirementRecord | None, state: State, reason: str
) -> RetirementRecord:
    entry = _entry(snapshot_id, last.number + 1 if last else 1, state, reason)
    if not dataset.put_if_absent(entry.path, _encode(entry)):
        now = retirement(dataset, snapshot_id)
        raise InputError(
            f"snapshot {snapshot_id} was {now.state if now else 'changed'} by someone else at the same time: "
            "look at it with pipelines/shard.py show, and try again if it is still to be done"
        )
    return entry


def _entry(snapshot_id: str, number: int, state: State, reason: str) -> RetirementRecord:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return RetirementRecord(snapshot_id=snapshot_id, number=number, state=state, reason=reason, at=at)


def _encode(entry: RetirementRecord) -> bytes:
    return json.dumps(asdict(entry), indent=1, sort_keys=True).encode() + b"\n"


def _entry_path(snapshot_id: str, number: int) -> str:
    return f"{_FOLDER}/{snapshot_id}/{number:06d}.json"


def _entries(dataset: Store, snapshot_id: str = "") -> Iterator[tuple[str, int]]:
    """Yield the snapshot and the number of each entry; what a file browser leaves beside them is none."""
    for info in dataset.list(f"{_FOLDER}/{snapshot_id}" if snapshot_id else _FOLDER):
        if match := _ENTRY.fullmatch(info.path):
            yield match[1], int(match[2])


def _read(dataset: Store, snapshot_id: str, number: int) -> RetirementRecord:
    path = _entry_path(snapshot_id, number)
    try:
        values: Mapping[str, object] = json.loads(dataset.get(path))
        record = RetirementRecord(**values)  # pyright: ignore[reportArgumentType]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise DamagedRetirementError(f"{dataset.uri}/{path} is not a retirement record: {error!r}") from error
    if (record.snapshot_id, record.number) != (snapshot_id, number) or record.state not in _STATES:
        raise DamagedRetirementError(
            f"{dataset.uri}/{path} is damaged: it speaks of another entry than its name"
        )
    return record
