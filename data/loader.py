"""Batches of decoded images for one rank: the order says which, threads decode them ahead.

    order.batch(step) -> its rows, shared among threads: read, decode into one buffer -> Batch

Shape letters: B batch, D draws per sample, H and W pixels, C channels (RGB).
"""

from collections.abc import Generator, Mapping, Set

from data.batch_reader import BatchReader, DecodeRow, Pixels, TooManyBadSamplesError, name_some
from data.crop import DecodeConfig, draw_crops
from data.cursor import OrderIdentity
from data.decode import decode_eval, decode_train
from data.errors import InputError
from data.loader_stats import LoaderStats
from data.mixture import MixtureOrder
from data.order import EpochOrder, EvalOrder, OrderConfig, RankBatch, lanes_of
from data.shard_cache import ShardCache
from data.snapshot import Snapshot
from data.sources import MixedReader, Mixture, Source, shards_of
from data.store import Store
from data.tar_reader import MissingShards, ShardReader
from data.types import Batch

__all__ = ["EvalLoader", "TooManyBadSamplesError", "TrainLoader", "name_some"]


class TrainLoader:
    """The training batches of one rank: random crops in the design's order, resumable at any step.

    With a mixture other snapshots' samples come in by weight: their keys are `SNAPSHOT ID:NAME`.
    With `max_bad_samples` None no number of bad samples is an error here: the caller counts them.
    Raises `InputError` where the split, the world size and the order do not fit together.
    """

    def __init__(
        self,
        *,
        store: Store,
        snapshot: Snapshot,
        split: str,
        order: OrderConfig,
        decode: DecodeConfig,
        rank: int,
        world_size: int,
        cache: ShardCache | None,
        num_threads: int = 2,
        prefetch_batches: int = 2,
        max_bad_samples: int | None = 100,
        mixture: Mixture | None = None,
        missing_shards: MissingShards = "error",
    ) -> None:
        sources = (Source(store=store, snapshot=snapshot), *(mixture.sources if mixture else ()))
        if mixture is not None:
            mixture.check(snapshot)
        self._sizes = [[shard.num_samples for shard in shards_of(s.snapshot, split)] for s in sources]
        self._schedule = mixture.schedule if mixture else ()
        self._order, self._decode = order, decode
        self._rank, self._world_size = rank, world_size
        lanes_of(rank, world_size, order.num_lanes)  # Raises for a world size that does not fit.
        self.num_samples = sum(map(sum, self._sizes))
        self.steps_per_epoch = self.epoch_order(0).steps_per_epoch
        self.identity = OrderIdentity.of(
            order,
            snapshot_id=snapshot.id,
            split=split,
            mixture=mixture.snapshot_ids if mixture else (),
            weights=self._schedule,
        )
        self._batch_reader = BatchReader(
            MixedReader(sources, split, cache, missing_shards=missing_shards)
            if mixture
            else ShardReader(store, shards_of(snapshot, split), cache, missing_shards=missing_shards),
            decode.image_size_px,
            num_threads=num_threads,
            prefetch_batches=prefetch_batches,
            max_bad_samples=max_bad_samples,
        )

    @property
    def bad_samples(self) -> Mapping[str, str]:
        """The samples that could not be decoded so far, on this rank: key -> why."""
        return self._batch_reader.bad_samples

    @property
    def lost_samples(self) -> Set[str]:
        """Those of them whose shard is gone or damaged, and may come back."""
        return self._batch_reader.lost_samples

    def take_stats(self) -> LoaderStats:
        """Return what was counted since the last call; call it between batches."""
        return self._batch_reader.take_stats()

    def epoch_order(self, epoch: int) -> EpochOrder | MixtureOrder:
        """Return which samples make up the batches of an epoch."""
        if self._schedule:
            return MixtureOrder(self._sizes, self._order, self._schedule, epoch)
        return EpochOrder(self._sizes[0], self._order, epoch)

    def batches(self, epoch: int, start_step: int = 0) -> Generator[Batch]:
        """Yield the epoch's batches from `start_step` on. Close the iterator to stop early."""
        if not 0 <= start_step <= self.steps_per_epoch:
            raise InputError(f"start_step is {start_step}; an epoch has {self.steps_per_epoch} steps.")
        order = self.epoch_order(epoch)

        def decoder_for(rows: RankBatch) -> DecodeRow:
            draws_BD = draw_crops(self._order.seed, epoch, rows.positions_B)
            config = self._decode
            return lambda content, row, out_HWC: decode_train(content, draws_BD[row], config, out_HWC)

        return self._batch_reader.batches(
            epoch,
            range(start_step, self.steps_per_epoch),
            lambda step: order.batch(step, self._rank, self._world_size),
            decoder_for,
        )


class EvalLoader:
    """Every sample of a split once over all ranks; ranks have equally many batches, padded with weight 0.

    `max_bad_samples` is as the `TrainLoader`'s.
    """

    def __init__(
        self,
        *,
        store: Store,
        snapshot: Snapshot,
        split: str,
        decode: DecodeConfig,
        batch_size: int,
        rank: int,
        world_size: int,
        cache: ShardCache | None,
        num_threads: int = 2,
        prefetch_batches: int = 2,
        max_bad_samples: int | None = 100,
    ) -> None:
        shards = shards_of(snapshot, split)
        self._decode = decode
        self._order = EvalOrder([shard.num_samples for shard in shards], batch_size, rank, world_size)
        self.num_samples = sum(shard.num_samples for shard in shards)
        self.num_steps = self._order.num_steps
        self._batch_reader = BatchReader(
            ShardReader(store, shards, cache),
            decode.image_size_px,
            num_threads=num_threads,
            prefetch_batches=prefetch_batches,
            max_bad_samples=max_bad_samples,
        )

    @property
    def bad_samples(self) -> Mapping[str, str]:
        """The samples that could not be decoded so far, on this rank: key -> why."""
        return self._batch_reader.bad_samples

    @property
    def lost_samples(self) -> Set[str]:
        """As the `TrainLoader`'s; empty, as a lost shard of this split is an error."""
        return self._batch_reader.lost_samples

    def batches(self) -> Generator[Batch]:
        """Yield all batches; their epoch is 0. Close the iterator to stop early."""

        def decode(content: bytes, row: int, out_HWC: Pixels) -> None:
            decode_eval(content, self._decode, out_HWC)

        return self._batch_reader.batches(0, range(self.num_steps), self._order.batch, lambda _: decode)
