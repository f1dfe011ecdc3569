"""`create` and `append` of `pipelines/shard.py`."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from data.build import ShardingConfig, append_snapshot, build_snapshot, list_for_append, list_for_build
from data.errors import InputError
from data.shard_plan import plan_shards
from data.snapshot import Snapshot, load_snapshot, new_records
from infra.store import check_store, open_store
from pipelines.job import announce, connect_to_ray
from pipelines.shard_command import (
    Command,
    Outcome,
    describe_listing,
    describe_snapshot,
    require,
    snapshot_values,
)
from pipelines.shard_tasks import run_shard_tasks


@dataclass(frozen=True, kw_only=True)
class WriteRuntime:
    """On what it runs; nothing here changes the result."""

    num_workers: int = 8
    """Shards written at a time, as Ray tasks of one CPU each."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise InputError(f"runtime.num_workers is {self.num_workers}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class WriteConfig(ShardingConfig):
    """Options of `create` and `append`."""

    corpus: str = ""
    """Class folders of images, a path or s3://, with or without train/ and test/ above them."""
    dataset: str = ""
    """Where the snapshots are: s3://bucket/path, file:///path or a path."""
    runtime: WriteRuntime = field(default_factory=WriteRuntime)
    dry_run: bool = False
    """List the corpus, say what would be done, and write nothing."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        ShardingConfig.__post_init__(self)
        require(self, "corpus", "dataset")

    @property
    def sharding(self) -> ShardingConfig:
        """What changes the result."""
        return ShardingConfig(**{f.name: getattr(self, f.name) for f in fields(ShardingConfig)})


def create(config: WriteConfig) -> Outcome:
    """Shard a corpus into a first snapshot; the same corpus again gives the same one, without reading it."""
    corpus, dataset, sharding = open_store(config.corpus), open_store(config.dataset), config.sharding
    check_store(corpus, writable=False)
    listing = list_for_build(corpus, sharding)
    announce(f"create: {describe_listing(listing)} in {corpus.uri}")
    if config.dry_run:
        plans = plan_shards(
            listing.records,
            classes=listing.classes,
            seed=sharding.seed,
            shard_size_bytes=sharding.shard_size_bytes,
            eval_fraction=sharding.eval_fraction,
        )
        shards = Counter(plan.split for plan in plans)
        announce(f"dry run: {shards['train']} shards of train and {shards['eval']} of eval; nothing written")
        return Outcome(values={"dry_run": True, "images": len(listing.records), "shards": dict(shards)})
    check_store(dataset)
    connect_to_ray()
    run_all = run_shard_tasks(
        corpus, dataset, sharding, max_in_flight=config.runtime.num_workers, announce=announce
    )
    return _committed(build_snapshot(corpus, dataset, sharding, run_all, listing=listing), dataset.uri)


def append(config: WriteConfig) -> Outcome:
    """Append what no snapshot has seen to the newest one."""
    corpus, dataset, sharding = open_store(config.corpus), open_store(config.dataset), config.sharding
    check_store(corpus, writable=False)
    parent = load_snapshot(dataset, "HEAD")
    if config.dry_run:
        fresh = new_records(dataset, parent, list_for_append(corpus, sharding))
        announce(f"dry run: {len(fresh):,} images are new to snapshot {parent.id}; nothing written")
        return Outcome(values={"dry_run": True, "parent": parent.id, "images": len(fresh)})
    check_store(dataset)
    connect_to_ray()
    run_all = run_shard_tasks(
        corpus, dataset, sharding, max_in_flight=config.runtime.num_workers, announce=announce
    )
    appended = append_snapshot(parent, corpus, dataset, sharding, run_all)
    if appended is None:
        announce(f"append: nothing new in {corpus.uri} since snapshot {parent.id}")
        return Outcome(values={**snapshot_values(parent), "appended": False})
    return _committed(appended, dataset.uri)


def _committed(snapshot: Snapshot, uri: str) -> Outcome:
    announce(describe_snapshot(snapshot))
    if snapshot.quarantine_path:
        announce(f"what was left out, and why: {uri}/{snapshot.quarantine_path}")
    values: dict[str, Any] = {**snapshot_values(snapshot), "quarantine": snapshot.quarantine_path}
    return Outcome(values=values)


COMMANDS = {
    "create": Command(
        config_type=WriteConfig,
        run=create,
        description="Shard a corpus into the first snapshot of a dataset.",
    ),
    "append": Command(
        config_type=WriteConfig, run=append, description="Append a corpus's new images as a new snapshot."
    ),
}
