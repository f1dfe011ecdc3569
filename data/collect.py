"""Garbage collection: which objects of a dataset nothing needs any more, and freeing them.

Decision 11 says why nothing that is needed, or about to be, can be freed.
"""

import json
import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from data.errors import InputError
from data.lease import BUILDS, GC, GC_LIFETIME_S, Lease, LeaseInfo, active_leases, hold, store_time_s
from data.retirement import RetirementRecord, mark_collected, retirements
from data.shard_list import ShardList, read_shard_lists
from data.snapshot import SnapshotHeader, list_snapshots, load_snapshot, reachable_paths
from data.store import ObjectInfo, Store

# What we write, by name: an object of any other name is not ours, and an adopted tar is none of these.
_OURS = tuple(
    re.compile(pattern)
    for pattern in (
        r"shards/(?:train|eval)-[0-9a-f]{16}\.(?:tar|parquet)",
        r"indexes/(?:train|eval)-[0-9a-f]{16}\.parquet",
        r"(?:listings|quarantine|near-duplicates|shard_lists|scans)/[0-9a-f]{16}\.parquet",
        r"quarantine/[0-9a-f]{16}(?:-pictures\.parquet|\.html)",
        r"builds/[0-9a-f]{32}\.json",
        r"cards/\d+-[0-9a-f]{12}\.(?:html|json)",
        r"seen/\d+-[0-9a-f]{12}/[0-9a-f]{16}\.parquet",
        r"receipts/[0-9a-f]{32}\.json",
        r"staging/[0-9a-f]{16}(?:\.tar|-[0-9a-f]{16}\.parquet)",
        r"leases/[^/]+/[^/]+\.json",
        r"clock/[0-9a-f]{32}",
    )
)
# The listing of a tar or a Parquet file: with it the file is not read again.
_STAGED_LISTING = re.compile(r"staging/[0-9a-f]{16}-[0-9a-f]{16}\.parquet")
_NUM_THREADS = 16
_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What a gc frees."""

    objects: tuple[ObjectInfo, ...]
    """Sorted by path."""
    ending: tuple[str, ...]
    """Ids of the retired snapshots that end with it."""
    held_back: Mapping[str, str]
    """Why other retired snapshots stay for now, by id."""
    num_kept: int
    """Objects of ours that stay."""

    @property
    def size_bytes(self) -> int:
        """What is freed."""
        return sum(info.size_bytes for info in self.objects)


def find_garbage(dataset: Store, *, grace_s: float) -> Garbage:
    """Find what neither a live nor a leased snapshot reaches and is older than `grace_s`.

    A snapshot stays also while its retirement is younger than that. Deletes nothing. Raises
    `StoreError` where a snapshot, a lease or a retirement cannot be read: then nothing is known.
    """
    standing = _stand(dataset, grace_s)
    lists = {one.path: one for header in standing.snapshots.values() for one in header.shard_lists}
    # The lists of ended snapshots stay with their files: they tell which tars are not ours.
    needed = {*lists, *(lease.path for lease in standing.leases)}
    needed |= {f"cards/{id_}.{kind}" for id_ in standing.kept_ids for kind in ("html", "json")}
    for snapshot_id in standing.kept_tips:
        needed |= reachable_paths(dataset, load_snapshot(dataset, snapshot_id))
    adopted = _adopted_paths(dataset, lists.values())
    ours = [info for info in dataset.list() if is_ours(info.path) and info.path not in adopted]
    unneeded = [
        info
        for info in ours
        if standing.now_s - info.modified_s >= grace_s
        and info.path not in needed
        and not _STAGED_LISTING.fullmatch(info.path)
    ]
    doomed = tuple(_without_useful_records(dataset, unneeded, needed, standing.kept_ids))
    return Garbage(
        objects=doomed,
        ending=tuple(record.snapshot_id for record in standing.ending),
        held_back=standing.held_back,
        num_kept=sum(not info.path.startswith(("leases/", "clock/")) for info in ours) - len(doomed),
    )


def collect_garbage(
    dataset: Store, *, grace_s: float, on_batch: Callable[[int, int], None] | None = None
) -> Garbage:
    """Free what `find_garbage` names; `on_batch(num_freed, num_objects)` is called now and then.

    Stopped in the middle, the next one goes on: a snapshot is marked as collected before its first
    object goes. Raises `InputError` where a build or another gc is going on.
    """
    with hold(dataset, GC, lifetime_s=GC_LIFETIME_S) as lease:
        _refuse_company(dataset, lease)
        ended = [r.snapshot_id for r in _stand(dataset, grace_s).ending if mark_collected(dataset, r)]
        garbage = replace(find_garbage(dataset, grace_s=grace_s), ending=tuple(ended))
        paths = [info.path for info in garbage.objects]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for first in range(0, len(paths), _BATCH):
                lease.check()  # else a build may have begun
                list(pool.map(dataset.delete, paths[first : first + _BATCH]))
                if on_batch:
                    on_batch(min(first + _BATCH, len(paths)), len(paths))
    return garbage


def is_ours(path: str) -> bool:
    """Say whether an object's name is one that only this pipeline gives."""
    return any(pattern.fullmatch(path) for pattern in _OURS)


def _refuse_company(dataset: Store, lease: Lease) -> None:
    others = [*active_leases(dataset, BUILDS), *active_leases(dataset, GC)]
    if others := [other for other in others if other.path != lease.path]:
        first = others[0]
        doing = "another gc" if first.what == GC else f"{len(others)} build(s)"
        raise InputError(
            f"{doing} at work in {dataset.uri} (first: {first.owner}): run gc again when it has ended; if "
            f"that process is gone, its lease expires in {first.expires_in_s / 60:.0f} minutes, or delete "
            f"{first.path}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """Which snapshots are needed, at one moment."""

    now_s: float
    """The store's time."""
    snapshots: Mapping[str, SnapshotHeader]
    """All, by id."""
    kept_ids: Collection[str]
    """Live, leased, or retired too recently; and their ancestors."""
    kept_tips: Sequence[str]
    """Those of them that no other of them has as an ancestor: what they reach is all that is needed."""
    leases: Sequence[LeaseInfo]
    """Not expired."""
    held_back: Mapping[str, str]
    ending: Sequence[RetirementRecord]
    """Retired, and neither held back nor an ancestor of a snapshot that stays."""


def _stand(dataset: Store, grace_s: float) -> _Standing:
    now_s = store_time_s(dataset)
    # The retirements before the leases: see `data.lease.pin`.
    written_s = {info.path: info.modified_s for info in dataset.list("retirements")}
    retired = {id_: record for id_, record in retirements(dataset).items() if not record.is_live}
    leases = active_leases(dataset)
    snapshots = {snapshot.id: snapshot for snapshot in list_snapshots(dataset)}
    owners = {lease.what: lease.owner for lease in leases}
    held_back: dict[str, str] = {}
    for snapshot_id, record in retired.items():
        if record.state == "collected":
            continue
        if snapshot_id in owners:
            held_back[snapshot_id] = f"leased by {owners[snapshot_id]}"
        elif now_s - written_s.get(record.path, now_s) < grace_s:
            held_back[snapshot_id] = "retired within the grace period"
    kept = {id_ for id_ in snapshots if id_ not in retired or id_ in held_back}
    ancestors = {ancestor for id_ in kept for ancestor in _ancestors(id_, snapshots)}
    return _Standing(
        now_s=now_s,
        snapshots=snapshots,
        kept_ids=kept | ancestors,
        kept_tips=sorted(kept - ancestors),
        leases=leases,
        held_back=held_back,
        ending=[
            record
            for id_, record in sorted(retired.items())
            if record.state == "retired" and id_ not in held_back and id_ not in ancestors
        ],
    )


def _ancestors(snapshot_id: str, snapshots: Mapping[str, SnapshotHeader]) -> Iterator[str]:
    parent = snapshots[snapshot_id].parent
    while parent is not None:
        yield parent
        parent = snapshots[parent].parent


def _adopted_paths(dataset: Store, lists: Iterable[ShardList]) -> set[str]:
    splits = read_shard_lists(dataset, lists)
    return {shard.path for shards in splits.values() for shard in shards if shard.is_adopted}


def _without_useful_records(
    dataset: Store, infos: Sequence[ObjectInfo], needed: Container[str], kept_ids: Container[str]
) -> Iterator[ObjectInfo]:
    """Leave out the receipts of needed shards, and the builds of kept snapshots: they save work."""

    def is_useful(info: ObjectInfo) -> bool:
        folder = info.path.partition("/")[0]
        if folder not in ("receipts", "builds"):
            return False
        try:
            record = json.loads(dataset.get(info.path))
            if folder == "builds":
                return record["snapshot"] in kept_ids
            # An adopted tar's receipt names no shard: its index is in a snapshot, or it is scanned again.
            shard = record.get("info")
            return shard is not None and shard["path"] in needed
        except (ValueError, KeyError, TypeError, AttributeError):
            return False  # damaged: of no use to anybody

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        useful = pool.map(is_useful, infos)
        return iter([info for info, keep in zip(infos, useful, strict=True) if not keep])
