"""Several snapshots mixed by weight: which sample of which source each global batch holds. No I/O.

A pattern of fixed period spreads the sources evenly by weight. Place p of a lane, counted over epochs
of equal weights, takes the source at place p + offset of the pattern; the lanes' offsets are spread
over the period, so that each global batch is mixed by weight. How often a lane has taken a source
before, in any epoch, is known in closed form: that number n names the sample. With M = floor(N / L)
samples of the source a lane, n // M is the source's own epoch, and n % M a place in the lane of that
epoch's `EpochOrder`. So each source is read in its own order, each kept sample once per epoch of its
own, whatever the weights do; N - L * M samples are left out, others in another epoch.

An epoch of the mixture has as many steps as all sources together fill: it does not depend on weights.

Memory is O(shards + window + period). Shape letters: K sources, L lanes, P places of the period,
B rows of one rank, b of one lane.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.order import (
    EpochOrder,
    OrderConfig,
    RankBatch,
    check_step,
    lanes_of,
    padded_batch,
    rows_of_rank,
    steps_per_epoch,
)
from data.randomness import hash_key

PERIOD = 10_000
"""Weights count in parts of this; common factors shorten the pattern."""
_KEPT_EPOCHS = 2
"""Of each source: its lanes pass from one epoch to the next at slightly different steps."""

Sizes = Sequence[int] | NDArray[np.int64]
"""Samples of each shard of one source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFrom:
    """The share of each source, from the start of an epoch on."""

    from_epoch: int
    weights: tuple[float, ...]
    """They add up to 1. 0 leaves a source out."""


def check_schedule(schedule: Sequence[WeightsFrom], num_sources: int) -> tuple[WeightsFrom, ...]:
    """Return the schedule without entries that change nothing; `InputError` for one that cannot be."""
    if not schedule or schedule[0].from_epoch != 0:
        raise InputError("a mixture needs weights from epoch 0 on.")
    for before, after in pairwise(schedule):
        if after.from_epoch <= before.from_epoch:
            raise InputError(
                f"the mixture's weights from epoch {after.from_epoch} follow those from epoch "
                f"{before.from_epoch}; list them by ascending epoch."
            )
    for entry in schedule:
        _check_weights(entry, num_sources)
    kept = [schedule[0]]
    kept += [after for before, after in pairwise(schedule) if after.weights != before.weights]
    return tuple(kept)


def _check_weights(entry: WeightsFrom, num_sources: int) -> None:
    where, weights = f"the mixture's weights from epoch {entry.from_epoch}", entry.weights
    if len(weights) != num_sources:
        raise InputError(f"{where} are {len(weights)}; there are {num_sources} sources.")
    for weight in weights:
        if not (weight == 0 or 1 / PERIOD <= weight <= 1):
            raise InputError(f"{where} have {weight}; each must be 0, or from {1 / PERIOD} to 1.")
    if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise InputError(f"{where} add up to {sum(weights)}; they must add up to 1.")


def weights_at(schedule: Sequence[WeightsFrom], epoch: int) -> tuple[float, ...]:
    """Return the weights that hold in an epoch; () for no schedule."""
    found: tuple[float, ...] = ()
    for entry in schedule:
        if entry.from_epoch <= epoch:
            found = entry.weights
    return found


class _Pattern:
    """Sources spread evenly over a period, each as often as its weight says."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts_K = _counts(weights)
        # Of c places of a source, number i belongs at (i + 1/2) / c of the period.
        wanted = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in self.counts_K])
        order_P = np.argsort(wanted, kind="stable")
        self.sources_P = np.repeat(np.arange(len(self.counts_K)), self.counts_K)[order_P]
        starts_K = np.cumsum(self.counts_K) - self.counts_K
        # Which place of its source each one is: a source's places stay in order.
        self._ordinals_P = order_P - starts_K[self.sources_P]

    @property
    def period(self) -> int:
        return len(self.sources_P)

    def counts_before(self, place: int) -> NDArray[np.int64]:
        """Return how often each source stands before a place."""
        rounds, rest = divmod(place, self.period)
        return rounds * self.counts_K + np.bincount(self.sources_P[:rest], minlength=len(self.counts_K))

    def at(self, places_b: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each place, and how often that stood before."""
        rounds_b, rest_b = np.divmod(places_b, self.period)
        sources_b = self.sources_P[rest_b]
        return sources_b, rounds_b * self.counts_K[sources_b] + self._ordinals_P[rest_b]


def _counts(weights: Sequence[float]) -> NDArray[np.int64]:
    """Return weights as whole numbers without a common factor: of PERIOD, by the largest remainders."""
    exact_K = np.asarray(weights, dtype=np.float64) * PERIOD
    counts_K = np.floor(exact_K + 1e-6).astype(np.int64)
    missing = PERIOD - int(counts_K.sum())
    counts_K[np.argsort(counts_K - exact_K, kind="stable")[:missing]] += 1
    return counts_K // np.gcd.reduce(counts_K)


class MixtureOrder:
    """The training order of one epoch of a mixture; as `data.order.EpochOrder`, for several sources.

    Shards are numbered through all sources, the first one's first. A position is a place in the epoch,
    not a sample: one that comes twice is augmented differently. Raises `InputError` for sources that
    are too small.
    """

    def __init__(
        self, sizes_K: Sequence[Sizes], config: OrderConfig, schedule: Sequence[WeightsFrom], epoch: int
    ) -> None:
        schedule = check_schedule(schedule, len(sizes_K))
        self._config = config
        num_samples_K = [int(np.sum(sizes)) for sizes in sizes_K]
        self._lane_lengths_K = [_lane_length(k, num, config) for k, num in enumerate(num_samples_K)]
        self.steps_per_epoch = steps_per_epoch(sum(num_samples_K), config)
        self._places_per_lane = self.steps_per_epoch * config.lane_size
        self.num_left_out = sum(num % config.num_lanes for num in num_samples_K)
        self._first_shard_K = np.cumsum([0, *map(len, sizes_K)])
        self._taken_LK = np.zeros((config.num_lanes, len(sizes_K)), dtype=np.int64)
        self._begin(schedule, epoch)

        @lru_cache(maxsize=_KEPT_EPOCHS * len(sizes_K))
        def source_order(source: int, source_epoch: int) -> EpochOrder:
            return EpochOrder(sizes_K[source], _source_config(config, source), source_epoch)

        self._source_order = source_order

    def _begin(self, schedule: Sequence[WeightsFrom], epoch: int) -> None:
        """Count what the earlier epochs took, and set the pattern of this one."""
        begun = [entry for entry in schedule if entry.from_epoch <= epoch]
        for entry, following in pairwise(begun):
            pattern = _Pattern(entry.weights)
            places = (following.from_epoch - entry.from_epoch) * self._places_per_lane
            for lane, taken_K in enumerate(self._taken_LK):
                offset = self._offset(pattern, lane)
                taken_K += pattern.counts_before(offset + places) - pattern.counts_before(offset)
        self._pattern = _Pattern(begun[-1].weights)
        self._first_place = (epoch - begun[-1].from_epoch) * self._places_per_lane
        for lane, taken_K in enumerate(self._taken_LK):  # `_Pattern.at` counts from place 0.
            taken_K -= self._pattern.counts_before(self._offset(self._pattern, lane))

    def _offset(self, pattern: _Pattern, lane: int) -> int:
        return lane * pattern.period // self._config.num_lanes

    def batch(self, step: int, rank: int, world_size: int) -> RankBatch:
        """Return what `rank` reads at `step`, as `EpochOrder.batch` does."""
        check_step(step, self.steps_per_epoch)
        b = self._config.lane_size
        lanes = lanes_of(rank, world_size, self._config.num_lanes)
        samples = [self._rows_of_lane(lane, step * b) for lane in lanes]
        places_b = np.arange(step * b, (step + 1) * b, dtype=np.int64)
        return padded_batch(
            np.concatenate([shards_b for shards_b, _ in samples]),
            np.concatenate([rows_b for _, rows_b in samples]),
            np.concatenate([lane * self._places_per_lane + places_b for lane in lanes]),
            rows_of_rank(self._config, world_size),
        )

    def source_epochs(self, step: int) -> list[float]:
        """Return how often each source has been gone through before a step, over all epochs."""
        place = self._first_place + step * self._config.lane_size
        taken_K = self._taken_LK.sum(axis=0)
        for lane in range(self._config.num_lanes):
            taken_K += self._pattern.counts_before(self._offset(self._pattern, lane) + place)
        passes_K = taken_K / (np.asarray(self._lane_lengths_K) * self._config.num_lanes)
        return passes_K.tolist()

    def _rows_of_lane(self, lane: int, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (shard, row) of the b samples of a lane from place `first` of the epoch on."""
        b = self._config.lane_size
        offset = self._offset(self._pattern, lane) + self._first_place + first
        sources_b, taken_b = self._pattern.at(np.arange(offset, offset + b, dtype=np.int64))
        taken_b += self._taken_LK[lane, sources_b]
        shards_b, rows_b = np.empty_like(sources_b), np.empty_like(sources_b)
        for source in np.unique(sources_b).tolist():
            is_source_b = sources_b == source
            numbers = taken_b[is_source_b]  # A run of whole numbers.
            shards, rows_b[is_source_b] = self._source_samples(source, lane, numbers[0], numbers[-1] + 1)
            shards_b[is_source_b] = shards + self._first_shard_K[source]
        return shards_b, rows_b

    def _source_samples(
        self, source: int, lane: int, first: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return a source's samples number `first` to `end` - 1 of a lane, counted over its epochs."""
        length = self._lane_lengths_K[source]
        pieces: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        while first < end:
            epoch, place = divmod(int(first), length)
            stop = min(int(end), (epoch + 1) * length)
            order = self._source_order(source, epoch)
            pieces.append(order.lane_samples(lane, place, place + stop - first))
            first = stop
        return np.concatenate([shards for shards, _ in pieces]), np.concatenate([rows for _, rows in pieces])


def _lane_length(source: int, num_samples: int, config: OrderConfig) -> int:
    """Return M, the samples a lane takes of a source in each of the source's epochs."""
    if num_samples < config.num_lanes:
        raise InputError(
            f"source {source} of the mixture has {num_samples} samples, fewer than num_lanes "
            f"{config.num_lanes}; leave it out, or lower num_lanes."
        )
    return num_samples // config.num_lanes


def _source_config(config: OrderConfig, source: int) -> OrderConfig:
    """Return the order of a source alone: one sample a lane and step, so that lanes are as long as can be.

    It must not depend on the weights: they may change while an epoch of the source is under way.
    """
    return OrderConfig(
        global_batch_size=config.num_lanes,
        num_lanes=config.num_lanes,
        shuffle_window=config.shuffle_window,
        seed=hash_key(config.seed, source),
    )
