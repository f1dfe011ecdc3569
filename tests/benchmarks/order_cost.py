"""What it costs a rank to open one epoch's order; a process of its own, so that memory is its own.

python -m tests.benchmarks.order_cost ours 10000 3000     # loader, shards, samples of each
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.mixture import MixtureOrder, WeightsFrom
from data.order import EpochOrder, OrderConfig

NUM_RANKS = 8
BATCH_SIZE = 1024
NUM_RANDOM_STEPS = 20
_LEAST_MB = 0.1
CONFIG = OrderConfig(global_batch_size=BATCH_SIZE, num_lanes=16)

Sizes = NDArray[np.int64]
Step = Callable[[int], object]
"""Returns what rank 0 reads at a step."""


def ours(sizes: Sizes) -> Step:
    order = EpochOrder(sizes, CONFIG, 3)
    return lambda step: order.batch(step, 0, NUM_RANKS)


def mixture(sizes: Sizes) -> Step:
    """Open the same shards as three sources; weights that changed before."""
    cuts = np.array_split(sizes, [len(sizes) // 2, len(sizes) * 3 // 4])
    schedule = (
        WeightsFrom(from_epoch=0, weights=(0.5, 0.25, 0.25)),
        WeightsFrom(from_epoch=2, weights=(0.123, 0.456, 0.421)),
    )
    order = MixtureOrder(cuts, CONFIG, schedule, 3)
    return lambda step: order.batch(step, 0, NUM_RANKS)


def mosaic(sizes: Sizes) -> Step:
    """Do what `StreamingDataset` does at the start of an epoch with its defaults, on one node."""
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    num_samples, per_rank = int(sizes.sum()), BATCH_SIZE // NUM_RANKS
    parts = get_partitions("relaxed", num_samples, 1, 1, NUM_RANKS, 1, per_rank)
    shuffled = get_shuffle("py1e", sizes, 1, 9176, 3, max(4_000_000, 1 << 18))
    parts = np.where(parts != -1, shuffled[parts], -1)
    return lambda step: parts[0, 0, 0, step]


def permutation(sizes: Sizes) -> Step:
    """Permute all samples, and find their shards by bisection."""
    permuted, ends = np.random.default_rng(3).permutation(int(sizes.sum())), np.cumsum(sizes)

    def batch(step: int) -> object:
        samples = permuted[step * BATCH_SIZE : step * BATCH_SIZE + BATCH_SIZE // NUM_RANKS]
        return np.searchsorted(ends, samples, side="right")

    return batch


LOADERS = {"ours": ours, "mixture": mixture, "mosaic": mosaic, "permutation": permutation}


def main() -> None:
    name, num_shards, shard_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if name == "mosaic":
        import streaming.base.partition  # Its imports are not the epoch's.
        import streaming.base.shuffle  # noqa: F401
    sizes = np.full(num_shards, shard_size)
    before_mb = _reset_peak_mb()
    began_s = time.perf_counter()
    batch = LOADERS[name](sizes)
    opened_s = time.perf_counter() - began_s
    steps = np.random.default_rng(0).integers(0, num_shards * shard_size // BATCH_SIZE, NUM_RANDOM_STEPS)
    step_s: list[float] = []
    for step in steps.tolist():
        began_s = time.perf_counter()
        batch(step)
        step_s.append(time.perf_counter() - began_s)
    print(
        json.dumps(
            {
                "open_s": opened_s,
                # Memory that the imports left free is used first: what fits there cannot be seen.
                "memory_mb": max(_peak_mb() - before_mb, _LEAST_MB),
                "random_step_ms": 1000 * float(np.median(step_s)),
                "slowest_step_ms": 1000 * max(step_s),
            }
        )
    )


def _reset_peak_mb() -> float:
    """Let the peak begin at what is resident now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb()


def _peak_mb() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
