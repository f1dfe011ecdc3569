"""`order` of `pipelines/shard.py`: which images each rank gets at each step."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data.errors import InputError
from data.mixture import MixtureOrder
from data.order import PADDING, EpochOrder, OrderConfig, RankBatch
from data.shard_index import read_index
from data.snapshot import load_snapshot
from data.sources import Mixture, Source, shards_of
from pipelines.job import announce
from pipelines.mixture import SourceConfig, check_stores, open_mixture
from pipelines.shard_command import Command, Outcome, open_to_read
from pipelines.shard_read_commands import ReadConfig

_KEPT_INDEXES = 64


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
    mixture: tuple[SourceConfig, ...] = ()
    """As the phase's: [{dataset: s3://..., snapshot: ID, weight: 0.3}, ...]. Keys are then ID:NAME."""
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


def order(config: OrderShowConfig) -> Outcome:
    """Print, for each step of a training epoch, the images that each rank gets, as a line of JSON."""
    dataset = open_to_read(config.dataset)
    sources = [Source(store=dataset, snapshot=load_snapshot(dataset, config.snapshot))]
    check_stores(config.mixture)
    mixture = open_mixture(config.mixture)
    if mixture is not None:
        mixture.check(sources[0].snapshot)
        sources += mixture.sources
    epoch_order = _epoch_order(config, sources, mixture)
    names = _name_lookup(sources)
    steps = _steps(config, epoch_order.steps_per_epoch)
    for step in steps:
        batches = (epoch_order.batch(step, rank, config.world_size) for rank in range(config.world_size))
        ranks = [[names(shard)[row] for shard, row in _samples(batch)] for batch in batches]
        announce(json.dumps({"epoch": config.epoch, "step": step, "ranks": ranks}))
    values: dict[str, Any] = {
        "snapshot": sources[0].snapshot.id,
        "epoch": config.epoch,
        "steps_per_epoch": epoch_order.steps_per_epoch,
        "left_out": epoch_order.num_left_out,
        "steps": len(steps),
    }
    if isinstance(epoch_order, MixtureOrder):
        passes = epoch_order.source_epochs(steps[0])
        ids = [source.snapshot.id for source in sources]
        # How often each source has been gone through before the first step printed.
        values["source_epochs"] = dict(zip(ids, passes, strict=True))
    return Outcome(values=values)


def _epoch_order(
    config: OrderShowConfig, sources: Sequence[Source], mixture: Mixture | None
) -> EpochOrder | MixtureOrder:
    sizes = [[shard.num_samples for shard in shards_of(source.snapshot, "train")] for source in sources]
    if mixture is None:
        return EpochOrder(sizes[0], config.order, config.epoch)
    return MixtureOrder(sizes, config.order, mixture.schedule, config.epoch)


def _name_lookup(sources: Sequence[Source]) -> Callable[[int], list[str]]:
    """Return the function from a shard's number, counted through all sources, to its samples' keys."""
    shards = [(source, shard) for source in sources for shard in shards_of(source.snapshot, "train")]

    @lru_cache(maxsize=_KEPT_INDEXES)
    def names(number: int) -> list[str]:
        source, shard = shards[number]
        found: list[str] = read_index(source.store, shard).column("name").to_pylist()
        # As the loader calls them.
        return found if len(sources) == 1 else [f"{source.snapshot.id}:{name}" for name in found]

    return names


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
    "order": Command(
        config_type=OrderShowConfig,
        run=order,
        description="Print which images each rank gets at each step of an epoch, a line of JSON a step.",
    ),
}
