"""`diff`, `verify` and `order` of `pipelines/shard.py`: they write nothing."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial

from data.errors import InputError
from data.order import PADDING, EpochOrder, OrderConfig, RankBatch
from data.shard_index import read_index
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

_KEPT_INDEXES = 64


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


@dataclass(frozen=True, kw_only=True)
class OrderShowConfig(ReadConfig):
    """Options of `order`."""

    seed: int = 0
    """The recipe's."""
    epoch: int = 0
    """Counted from 0."""
    world_size: int = 1
    """Training processes."""
    global_batch: int = 128
    """Images a step over all ranks, as the phase's `global_batch_size`."""
    num_lanes: int = 8
    """As the phase's."""
    shuffle_window: int = 16384
    """As the phase's."""
    from_step: int = 0
    """The first step to print, counted from 0 in the epoch."""
    num_steps: int | None = None
    """How many to print; null: to the end of the epoch."""

    def __post_init__(self) -> None:
        ReadConfig.__post_init__(self)
        if self.epoch < 0:
            raise InputError(f"epoch is {self.epoch}; it must not be negative")
        if not 1 <= self.world_size <= self.num_lanes:
            raise InputError(f"world_size is {self.world_size}; it must be 1 to num_lanes = {self.num_lanes}")

    @property
    def order(self) -> OrderConfig:
        """What decides the order."""
        try:
            return OrderConfig(
                global_batch_size=self.global_batch,
                num_lanes=self.num_lanes,
                shuffle_window=self.shuffle_window,
                seed=self.seed,
            )
        except InputError as error:
            raise InputError(str(error).replace("global_batch_size", "global_batch")) from None


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


def order(config: OrderShowConfig) -> Outcome:
    """Print, for each step of a training epoch, the images that each rank gets, as a line of JSON."""
    dataset = open_to_read(config.dataset)
    snapshot = load_snapshot(dataset, config.snapshot)
    shards = snapshot.splits["train"]
    epoch_order = EpochOrder([shard.num_samples for shard in shards], config.order, config.epoch)
    steps = _steps(config, epoch_order.steps_per_epoch)

    @lru_cache(maxsize=_KEPT_INDEXES)
    def names(shard: int) -> list[str]:
        return read_index(dataset, shards[shard]).column("name").to_pylist()

    for step in steps:
        batches = (epoch_order.batch(step, rank, config.world_size) for rank in range(config.world_size))
        ranks = [[names(shard)[row] for shard, row in _samples(batch)] for batch in batches]
        announce(json.dumps({"epoch": config.epoch, "step": step, "ranks": ranks}))
    values = {
        "snapshot": snapshot.id,
        "epoch": config.epoch,
        "steps_per_epoch": epoch_order.steps_per_epoch,
        "left_out": epoch_order.num_left_out,
        "steps": len(steps),
    }
    return Outcome(values=values)


def _steps(config: OrderShowConfig, steps_per_epoch: int) -> range:
    if not 0 <= config.from_step < steps_per_epoch:
        raise InputError(f"from_step is {config.from_step}; the epoch has steps 0 to {steps_per_epoch - 1}")
    if config.num_steps is not None and config.num_steps < 1:
        raise InputError(f"num_steps is {config.num_steps}; give at least 1, or null for all")
    end = steps_per_epoch if config.num_steps is None else config.from_step + config.num_steps
    return range(config.from_step, min(end, steps_per_epoch))


def _samples(batch: RankBatch) -> list[tuple[int, int]]:
    """Return (shard, row) of what is not padding."""
    pairs = zip(batch.shard_B.tolist(), batch.row_B.tolist(), strict=True)
    return [(shard, row) for shard, row in pairs if shard != PADDING]


COMMANDS = {
    "diff": Command(
        config_type=DiffConfig, run=diff, description="Say what a snapshot has that another has not."
    ),
    "verify": Command(
        config_type=VerifyConfig,
        run=verify,
        description="Read every object of a snapshot again; exit code 1 if one is not what was written.",
    ),
    "order": Command(
        config_type=OrderShowConfig,
        run=order,
        description="Print which images each rank gets at each step of an epoch, a line of JSON a step.",
    ),
}
