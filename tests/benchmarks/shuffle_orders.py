"""One epoch in the order of each loader: ours, webdataset, Mosaic Streaming, a full shuffle.

An order is an array [S, B] of samples as they lie in the shards, end to end. All loaders feed the same
number of ranks, one reading process each, and a global batch is what the ranks take in one step, rank
after rank.
"""

import random
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from streaming.base.partition import get_partitions
from streaming.base.shuffle import get_shuffle
from webdataset import filters

from data.order import EpochOrder, OrderConfig

NUM_RANKS = 8
WDS_SHARD_BUFFER = 100
"""`shardshuffle` of `WebDataset`: shard names that are shuffled together."""
MOSAIC_BLOCK = 4_000_000
"""`StreamingDataset`'s default for one node."""

Order = NDArray[np.int64]


def ours(sizes: NDArray[np.int64], batch_size: int, window: int, epoch: int) -> Order:
    """Return the order of `data.order`, a lane a rank."""
    config = OrderConfig(global_batch_size=batch_size, num_lanes=NUM_RANKS, shuffle_window=window)
    order = EpochOrder(sizes, config, epoch)
    starts = np.cumsum(sizes) - sizes
    batches = (order.batch(step, 0, 1) for step in range(order.steps_per_epoch))
    return np.stack([starts[batch.shard_B] + batch.row_B for batch in batches])


def full_shuffle(num_samples: int, batch_size: int, epoch: int) -> Order:
    """Return a permutation of all samples."""
    permuted = np.random.default_rng(epoch).permutation(num_samples)
    return permuted[: num_samples // batch_size * batch_size].reshape(-1, batch_size)


def webdataset_buffer(sizes: NDArray[np.int64], batch_size: int, buffer_size: int, epoch: int) -> Order:
    """Return the order of `WebDataset(...).shuffle(buffer_size)`: its own shuffles, shards split by rank."""
    starts = (np.cumsum(sizes) - sizes).tolist()
    rng = random.Random(epoch)
    shards = list(filters._shuffle(iter(range(len(sizes))), WDS_SHARD_BUFFER, WDS_SHARD_BUFFER, rng))
    per_rank = batch_size // NUM_RANKS

    def samples(own: Sequence[int]) -> Iterator[int]:
        stream = (starts[shard] + row for shard in own for row in range(sizes[shard]))
        return filters._shuffle(stream, buffer_size, min(100, buffer_size), rng)

    ranks = [np.fromiter(samples(shards[rank::NUM_RANKS]), dtype=np.int64) for rank in range(NUM_RANKS)]
    # Ranks with more samples wait for none: the epoch ends with the shortest.
    steps = min(len(rank) // per_rank for rank in ranks)
    return np.concatenate([rank[: steps * per_rank].reshape(steps, per_rank) for rank in ranks], axis=1)


def mosaic(sizes: NDArray[np.int64], batch_size: int, block_size: int, epoch: int) -> Order:
    """Return the order of `StreamingDataset` with its default algorithm, py1e, on one node."""
    num_samples = int(sizes.sum())
    shuffled = get_shuffle("py1e", sizes, 1, 0, epoch, block_size)
    parts = get_partitions("relaxed", num_samples, 1, 1, NUM_RANKS, 1, batch_size // NUM_RANKS)
    # [nodes, ranks, workers, batches, samples]; -1 pads the last ones.
    steps_RSb = parts[0, :, 0]
    whole = [step for step in range(steps_RSb.shape[1]) if (steps_RSb[:, step] >= 0).all()]
    return np.stack([shuffled[steps_RSb[:, step]].reshape(-1) for step in whole])
