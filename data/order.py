"""Which samples make up each global batch: pure arithmetic over shard sizes, no I/O.

An epoch lays the shards end to end in a permuted order; the place of a sample in that line is its
`position`. The first S * B positions (S steps of a global batch B) are cut into L lanes of S * b
(b = B / L); each lane is shuffled within disjoint blocks; step s takes b samples of every lane.
Global batches therefore never depend on the world size: a rank only owns some of the lanes.

Memory is O(shards + window); a step at random costs O(window). Shape letters: B rows of one rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.randomness import Stream, hash_key, keyed_permutation

FORMAT_VERSION = 1
"""Raised when the same configuration would give another order; old cursors are then refused."""

PADDING = -1
"""Stands for shard, row and position in rows that hold no sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderConfig:
    """What decides the order of samples, apart from the snapshot. Part of the recipe."""

    global_batch_size: int
    """Samples a step over all ranks."""
    num_lanes: int = 8
    """Parallel streams; the largest world size. Divides the global batch."""
    shuffle_window: int = 16384
    """Samples shuffled together, over all lanes; in a mixture, of each source. Shards themselves are
    permuted every epoch. It takes 8 bytes a sample, and about window / (samples of a shard) + 2 * lanes
    shards are open at a time. 16384 suits shards that are shuffled before they are cut, as ours are; shards
    of one class each, as adopted ones may be, need as many samples as it takes to span the classes that a
    batch should have (measured: docs/performance.md, "Shuffle quality")."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "num_lanes", "shuffle_window"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1.")
        if self.global_batch_size % self.num_lanes:
            raise InputError(
                f"global_batch_size {self.global_batch_size} is not a multiple of num_lanes "
                f"{self.num_lanes}; choose num_lanes among the divisors of the global batch."
            )

    @property
    def lane_size(self) -> int:
        """Samples a lane gives to each step (b)."""
        return self.global_batch_size // self.num_lanes

    @property
    def block_size(self) -> int:
        """Lane positions that are shuffled together (w)."""
        return max(1, self.shuffle_window // self.num_lanes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatch:
    """One rank's rows of a global batch (or of evaluation), lane after lane.

    All ranks have as many rows; the padding comes last, with `PADDING` in the integers, weight 0.
    """

    shard_B: NDArray[np.int64]
    """Index into the split's shards, as the snapshot lists them."""
    row_B: NDArray[np.int64]
    positions_B: NDArray[np.int64]
    weights_B: NDArray[np.float32]


def lanes_of(rank: int, world_size: int, num_lanes: int) -> range:
    """Return the lanes j with floor(j * W / L) = rank. W > L raises `InputError`."""
    if world_size > num_lanes:
        raise InputError(
            f"world_size {world_size} exceeds num_lanes {num_lanes}; use at most {num_lanes} workers, "
            "or more lanes (which starts another order)."
        )
    if not 0 <= rank < world_size:
        raise InputError(f"rank is {rank}; with world_size {world_size} it is 0 to {world_size - 1}.")
    return range(-(-rank * num_lanes // world_size), -(-(rank + 1) * num_lanes // world_size))


class _ShardLine:
    """Shards laid end to end: position -> (shard, row)."""

    def __init__(self, shard_sizes: Sequence[int] | NDArray[np.int64], order_S: NDArray[np.int64]) -> None:
        sizes_S = np.asarray(shard_sizes, dtype=np.int64)[order_S]
        self._order_S = order_S
        self._ends_S = np.cumsum(sizes_S)
        self._starts_S = self._ends_S - sizes_S
        self.num_samples = int(self._ends_S[-1]) if len(sizes_S) else 0

    def locate(self, positions_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # side="right" steps over empty shards.
        place_B = np.searchsorted(self._ends_S, positions_B, side="right")
        return self._order_S[place_B], positions_B - self._starts_S[place_B]

    def batch(self, positions_B: NDArray[np.int64], num_rows: int) -> RankBatch:
        shards_B, rows_B = self.locate(positions_B)
        return padded_batch(shards_B, rows_B, positions_B, num_rows)


def padded_batch(
    shards_B: NDArray[np.int64], rows_B: NDArray[np.int64], positions_B: NDArray[np.int64], num_rows: int
) -> RankBatch:
    """Return a batch of `num_rows`, of which the given ones come first with weight 1."""
    padding = num_rows - len(positions_B)
    weights_B = np.ones(num_rows, dtype=np.float32)
    weights_B[len(positions_B) :] = 0.0
    return RankBatch(
        shard_B=_pad(shards_B, padding),
        row_B=_pad(rows_B, padding),
        positions_B=_pad(positions_B, padding),
        weights_B=weights_B,
    )


def _pad(values_B: NDArray[np.int64], padding: int) -> NDArray[np.int64]:
    return np.concatenate([values_B, np.full(padding, PADDING, dtype=np.int64)])


class EpochOrder:
    """The training order of one epoch.

    Raises `InputError` when the samples do not fill one global batch.
    """

    def __init__(
        self, shard_sizes: Sequence[int] | NDArray[np.int64], config: OrderConfig, epoch: int
    ) -> None:
        key = hash_key(FORMAT_VERSION, config.seed, epoch)
        shard_order_S = keyed_permutation(hash_key(key, Stream.SHARD_ORDER), len(shard_sizes))
        self._line = _ShardLine(shard_sizes, shard_order_S)
        self._config = config
        self._block_key = hash_key(key, Stream.BLOCK_ORDER)
        self._blocks: dict[int, tuple[int, NDArray[np.int64]]] = {}
        self.steps_per_epoch = steps_per_epoch(self._line.num_samples, config)
        self._lane_length = self.steps_per_epoch * config.lane_size

    @property
    def num_left_out(self) -> int:
        """Samples in the tail that this epoch does not use; another epoch leaves out others."""
        return self._line.num_samples - self.steps_per_epoch * self._config.global_batch_size

    def batch(self, step: int, rank: int, world_size: int) -> RankBatch:
        """Return what `rank` reads at `step`; rank after rank, the weighted rows are the global batch.

        Not for several threads at once. Raises `InputError` for a step, rank or world size out of range.
        """
        check_step(step, self.steps_per_epoch)
        b = self._config.lane_size
        lanes = lanes_of(rank, world_size, self._config.num_lanes)
        positions_B = np.concatenate([self._positions(lane, step * b, (step + 1) * b) for lane in lanes])
        return self._line.batch(positions_B, rows_of_rank(self._config, world_size))

    def lane_samples(self, lane: int, first: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return shards and rows of the samples that a lane gives as its number `first` to `end` - 1."""
        return self._line.locate(self._positions(lane, first, end))

    def _positions(self, lane: int, first: int, end: int) -> NDArray[np.int64]:
        """Return positions in the line of shards; they may span several blocks."""
        w = self._config.block_size
        pieces: list[NDArray[np.int64]] = []
        while first < end:
            block = first // w
            stop = min(end, (block + 1) * w)
            order = self._block_order(lane, block)
            pieces.append(order[first - block * w : stop - block * w] + block * w)
            first = stop
        return np.concatenate(pieces) + lane * self._lane_length

    def _block_order(self, lane: int, block: int) -> NDArray[np.int64]:
        """Return a block's permutation; the lane's last one is kept, for steps come in sequence."""
        known, order = self._blocks.get(lane, (None, None))
        if known == block and order is not None:
            return order
        size = min(self._config.block_size, self._lane_length - block * self._config.block_size)
        order = keyed_permutation(hash_key(self._block_key, lane, block), size)
        self._blocks[lane] = (block, order)
        return order


def check_step(step: int, num_steps: int) -> None:
    """Raise `InputError` for a step that an epoch does not have."""
    if not 0 <= step < num_steps:
        raise InputError(f"step is {step}; this epoch has steps 0 to {num_steps - 1}.")


def rows_of_rank(config: OrderConfig, world_size: int) -> int:
    """Return the rows of every rank's batch: those of the rank with the most lanes."""
    return -(-config.num_lanes // world_size) * config.lane_size


def steps_per_epoch(num_samples: int, config: OrderConfig) -> int:
    """Return S = floor(N / B), the same in every epoch. Raises `InputError` when it is 0."""
    steps = num_samples // config.global_batch_size
    if steps == 0:
        raise InputError(
            f"the split has {num_samples} samples, fewer than one global batch of "
            f"{config.global_batch_size}; lower global_batch_size or add images."
        )
    return steps


class EvalOrder:
    """Every sample once, in the snapshot's order: rank slices of equal length, padded with weight 0."""

    def __init__(
        self,
        shard_sizes: Sequence[int] | NDArray[np.int64],
        batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"the eval batch_size is {batch_size}; it must be at least 1.")
        if not 0 <= rank < world_size:
            raise InputError(f"rank is {rank}; with world_size {world_size} it is 0 to {world_size - 1}.")
        self._line = _ShardLine(shard_sizes, np.arange(len(shard_sizes), dtype=np.int64))
        if self._line.num_samples == 0:
            raise InputError("the eval split has no samples; add images or raise eval_fraction.")
        slice_length = -(-self._line.num_samples // world_size)
        self._first = min(rank * slice_length, self._line.num_samples)
        self._end = min(self._first + slice_length, self._line.num_samples)
        self._batch_size = min(batch_size, slice_length)
        self.num_steps = -(-slice_length // self._batch_size)

    def batch(self, step: int) -> RankBatch:
        """Return the rows of one step; every step and rank has the same number of rows."""
        if not 0 <= step < self.num_steps:
            raise InputError(f"step is {step}; evaluation has steps 0 to {self.num_steps - 1}.")
        first = min(self._first + step * self._batch_size, self._end)
        end = min(first + self._batch_size, self._end)
        return self._line.batch(np.arange(first, end, dtype=np.int64), self._batch_size)
