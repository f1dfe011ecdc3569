"""`retire` and `gc` of `pipelines/shard.py`: how snapshots end."""

from collections import Counter
from dataclasses import dataclass

from data.collect import Garbage, collect_garbage, find_garbage
from data.errors import InputError
from data.lease import active_leases
from data.retirement import restore_snapshot, retire_snapshot
from data.snapshot import list_live_snapshots, load_header, snapshot_ages_s
from data.store import Store
from infra.store import check_store
from pipelines.job import announce
from pipelines.shard_command import Command, Outcome, counts, open_to_read, require

_DAY_S = 86400.0
_SHOWN_OBJECTS = 10


@dataclass(frozen=True, kw_only=True)
class RetireConfig:
    """Options of `retire`: one snapshot by its id, or those that a policy names."""

    dataset: str = ""
    """Where the snapshots are: s3://bucket/path, file:///path or a path."""
    snapshot: str = ""
    """The id of the snapshot to retire. Where it is the newest, the one before becomes HEAD."""
    reason: str = ""
    """Why; whoever meets the snapshot later reads it."""
    keep_last: int | None = None
    """Retire all live snapshots but the newest so many."""
    older_than_days: float | None = None
    """Retire all live snapshots that were committed longer ago, never HEAD."""
    undo: bool = False
    """Bring the snapshot back; possible until gc has freed its shards."""
    dry_run: bool = False
    """Say which snapshots it would be, and write nothing."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        require(self, "dataset")
        has_policy = self.keep_last is not None or self.older_than_days is not None
        if bool(self.snapshot) == has_policy:
            raise InputError("give either --snapshot with an id, or --keep_last and/or --older_than_days")
        if self.undo and has_policy:
            raise InputError("--undo brings one snapshot back: give its id with --snapshot")
        if not self.undo:
            require(self, "reason")
        if self.keep_last is not None and self.keep_last < 1:
            raise InputError(f"keep_last is {self.keep_last}; it must be at least 1: HEAD always stays")
        if self.older_than_days is not None and not self.older_than_days >= 0:
            raise InputError(f"older_than_days is {self.older_than_days}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class GcConfig:
    """Options of `gc`."""

    dataset: str = ""
    """Where the snapshots are: s3://bucket/path, file:///path or a path."""
    grace_days: float = 7.0
    """Keep what was written, and snapshots that were retired, less than so many days ago."""
    dry_run: bool = False
    """Say what would be freed, and free nothing."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        require(self, "dataset")
        if not self.grace_days >= 0:
            raise InputError(f"grace_days is {self.grace_days}; it must not be negative")


def retire(config: RetireConfig) -> Outcome:
    """Retire snapshots: no new job pins them, no append goes on from them, and gc may free them later."""
    dataset = open_to_read(config.dataset)
    chosen = [load_header(dataset, config.snapshot).id] if config.snapshot else _by_policy(dataset, config)
    verb = "brought back" if config.undo else "retired"
    if config.dry_run:
        announce(f"dry run: would be {verb}: {', '.join(chosen) or 'none'}; nothing written")
        return Outcome(values={"dry_run": True, "snapshots": chosen})
    leases = active_leases(dataset)
    for snapshot_id in chosen:
        if config.undo:
            restore_snapshot(dataset, snapshot_id)
        else:
            retire_snapshot(dataset, snapshot_id, config.reason)
        users = [lease.owner for lease in leases if lease.what == snapshot_id]
        still = f"; still read by {', '.join(users)}, and kept until that ends" if users else ""
        announce(f"snapshot {snapshot_id} {verb}{still}")
    if not chosen:
        announce("retire: no snapshot is as old as that")
    live = list_live_snapshots(dataset)
    head = live[-1].id if live else None
    announce(f"HEAD: {head or 'none, all snapshots are retired'}")
    return Outcome(values={"snapshots": chosen, "undone": config.undo, "head": head})


def _by_policy(dataset: Store, config: RetireConfig) -> list[str]:
    """Name the live snapshots that every given condition retires; never HEAD."""
    live = list_live_snapshots(dataset)
    chosen = live[: -(config.keep_last or 1)]
    if config.older_than_days is not None:
        ages_s = snapshot_ages_s(dataset)
        chosen = [one for one in chosen if ages_s[one.number] > config.older_than_days * _DAY_S]
    return [one.id for one in chosen]


def gc(config: GcConfig) -> Outcome:
    """Free what no live or leased snapshot reaches, once it is older than the grace period."""
    dataset, grace_s = open_to_read(config.dataset), config.grace_days * _DAY_S
    if config.dry_run:
        found = find_garbage(dataset, grace_s=grace_s)
        for info in found.objects[:_SHOWN_OBJECTS]:
            announce(f"would go: {dataset.uri}/{info.path} ({info.size_bytes:,} bytes)")
        if len(found.objects) > _SHOWN_OBJECTS:
            announce(f"and {len(found.objects) - _SHOWN_OBJECTS:,} more")
    else:
        check_store(dataset)
        found = collect_garbage(dataset, grace_s=grace_s, on_batch=_announce_batch)
    for snapshot_id, why in found.held_back.items():
        announce(f"retired snapshot {snapshot_id} stays for now: {why}")
    for snapshot_id in found.ending:
        announce(f"retired snapshot {snapshot_id} {'would be' if config.dry_run else 'is'} gone for good")
    what = "dry run: would free" if config.dry_run else "gc: freed"
    kinds = _kinds(found)
    announce(
        f"{what} {len(found.objects):,} objects, {found.size_bytes / 1e6:,.1f} MB ({counts(kinds)}); "
        f"{found.num_kept:,} objects stay"
    )
    values = {
        "dry_run": config.dry_run,
        "objects": len(found.objects),
        "size_bytes": found.size_bytes,
        "by_folder": dict(kinds),
        "ended": list(found.ending),
        "held_back": dict(found.held_back),
    }
    return Outcome(values=values)


def _kinds(found: Garbage) -> Counter[str]:
    return Counter(info.path.partition("/")[0] for info in found.objects)


def _announce_batch(num_freed: int, num_objects: int) -> None:
    announce(f"gc  {num_freed:,}/{num_objects:,} objects freed")


COMMANDS = {
    "retire": Command(
        config_type=RetireConfig,
        run=retire,
        description="Retire a snapshot, or old ones by policy: no new job starts from it. Undo with --undo.",
    ),
    "gc": Command(
        config_type=GcConfig,
        run=gc,
        description="Free the objects that only retired, unused snapshots or stopped builds reach.",
    ),
}
