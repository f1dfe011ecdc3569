"""`diff` and `verify` of `pipelines/shard.py`: they write nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from data.errors import InputError
from data.snapshot import load_snapshot
from data.snapshot_diff import diff_snapshots
from data.store import Store
from data.types import ShardInfo
from data.verify import Damage, verify_lists, verify_shard
from infra.ray_tasks import run_tasks
from pipelines.job import EXIT_FAILED, announce, connect_to_ray
from pipelines.shard_command import (
    Command,
    Outcome,
    ShardRuntime,
    counts,
    open_to_read,
    require,
    shorten,
    split_names,
)
from pipelines.shard_tasks import ShardProgress


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """Options of every command that reads a dataset."""

    dataset: str = ""
    """Where the snapshots are: s3://bucket/path, file:///path or a path."""
    snapshot: str = "HEAD"
    """A snapshot's id, or HEAD for the newest."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        require(self, "dataset")


@dataclass(frozen=True, kw_only=True)
class DiffConfig(ReadConfig):
    """Options of `diff`."""

    base: str = ""
    """The snapshot to compare with; by default the parent."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(ReadConfig):
    """Options of `verify`."""

    runtime: ShardRuntime = field(default_factory=ShardRuntime)


def diff(config: DiffConfig) -> Outcome:
    """Say what a snapshot has that another has not."""
    dataset = open_to_read(config.dataset)
    new = load_snapshot(dataset, config.snapshot)
    base = config.base or new.parent
    if base is None:
        raise InputError(
            f"snapshot {new.id} has no parent to compare with: give --base with another snapshot"
        )
    old = load_snapshot(dataset, base)
    found = diff_snapshots(old, new, dataset)
    announce(f"from {old.id} to {new.id}: {found.num_shards_shared} shards in common")
    for split in split_names(new):
        announce(f"{split}: added {counts(found.added[split])}")
        announce(f"{split}: removed {counts(found.removed[split])}")
    if found.new_classes:
        announce(f"new classes: {shorten(found.new_classes)}")
    return Outcome(values={"from": old.id, "to": new.id, **asdict(found)})


def verify(config: VerifyConfig) -> Outcome:
    """Read every object of a snapshot again; exit code 1 if one is not what was written."""
    dataset = open_to_read(config.dataset)
    snapshot = load_snapshot(dataset, config.snapshot)
    shards = [shard for found in snapshot.splits.values() for shard in found]
    connect_to_ray()
    damages = [*verify_lists(snapshot, dataset), *_verify_shards(shards, dataset, config.runtime.num_workers)]
    for damage in damages:
        announce(f"DAMAGED {dataset.uri}/{damage.path}: {damage.problem}")
    verdict = "all as written"
    if damages:
        verdict = f"{len(damages)} problems; restore these objects, or create the dataset anew elsewhere"
    announce(f"verify: snapshot {snapshot.id}, {len(shards)} shards: {verdict}")
    values = {"snapshot": snapshot.id, "shards": len(shards), "damages": [asdict(found) for found in damages]}
    return Outcome(values=values, exit_code=EXIT_FAILED if damages else 0)


def _verify_shards(shards: Sequence[ShardInfo], dataset: Store, num_workers: int) -> list[Damage]:
    progress = ShardProgress("verify", "damaged", sum(shard.num_samples for shard in shards), announce)

    def on_done(index: int, damages: tuple[Damage, ...]) -> None:
        shard = shards[index]
        progress.add(num_images=shard.num_samples, size_bytes=shard.size_bytes, num_problems=len(damages))

    check = partial(verify_shard, dataset=dataset)
    found = run_tasks(check, shards, max_in_flight=num_workers, on_done=on_done)
    return [damage for damages in found for damage in damages]


COMMANDS = {
    "diff": Command(
        config_type=DiffConfig, run=diff, description="Say what a snapshot has that another has not."
    ),
    "verify": Command(
        config_type=VerifyConfig,
        run=verify,
        description="Read every object of a snapshot again; exit code 1 if one is not what was written.",
    ),
}
