"""Write shards as Ray tasks, with progress: images/s, MB/s, ETA and rejects so far."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from coatnet.progress import format_duration
from data.build import RunAll
from data.shard_plan import ShardPlans
from data.shard_write import ShardResult, write_shard
from data.sharding_config import ShardingConfig
from data.store import ImageSource, Store
from infra.ray_tasks import stream_tasks
from pipelines.job import connect_to_ray
from pipelines.shard_command import counts

_LINE_EVERY_S = 2.0


def run_shard_tasks(
    corpus: ImageSource,
    dataset: Store,
    config: ShardingConfig,
    *,
    max_in_flight: int,
    announce: Callable[[str], None],
    connect: Callable[[], None] = connect_to_ray,
) -> RunAll:
    """Return what fans `write_shard` out as Ray tasks, one a shard; `connect` is called before the first."""

    def run_all(plans: ShardPlans) -> Iterator[ShardResult]:
        connect()
        progress = ShardProgress("shard", "rejected", plans.num_images, announce)
        write = partial(write_shard, corpus=corpus, dataset=dataset, limits=config.limits)
        for _, result in stream_tasks(write, plans, max_in_flight=max_in_flight):
            progress.add(
                num_images=result.num_images,
                size_bytes=result.listed_bytes,
                num_problems=len(result.rejects),
            )
            yield result

    return run_all


class Arrivals:
    """What an append found, for the case that it keeps nothing."""

    def __init__(self) -> None:
        self._num_images = 0
        self._reasons: Counter[str] = Counter()

    def watch(self, run_all: RunAll) -> RunAll:
        """Return `run_all`, taking note of what it is given and what becomes of it."""

        def watched(plans: ShardPlans) -> Iterator[ShardResult]:
            self._reasons.clear()
            self._num_images = plans.num_images
            # If nothing is kept, what could be read is in the data set already, in one split or the other.
            self._reasons["known already"] = plans.num_images
            for result in run_all(plans):
                self._reasons.update(reject.reason for reject in result.rejects)
                self._reasons["known already"] -= len(result.rejects)
                yield result

        return watched

    @property
    def reasons(self) -> dict[str, int]:
        """Why new images were not kept."""
        return {reason: count for reason, count in self._reasons.items() if count}

    def describe(self) -> str:
        """Return `2 new images, none of use (...)`."""
        if not self._num_images:
            return "no new image"
        return f"{self._num_images} new images, none of use ({counts(self.reasons)})"


class ShardProgress:
    """Counts finished shards and announces a line now and then, and at the end."""

    def __init__(self, verb: str, problem: str, total_images: int, announce: Callable[[str], None]) -> None:
        """`verb` opens each line; `problem` is what an image or an object that is not right is called."""
        self._verb, self._problem = verb, problem
        self._total, self._announce = total_images, announce
        self._started_s = self._last_line_s = time.monotonic()
        self._num_shards = self._num_images = self._size_bytes = self._num_problems = 0

    def add(self, *, num_images: int, size_bytes: int, num_problems: int) -> None:
        """Take note of a finished shard."""
        self._num_shards += 1
        self._num_images += num_images
        self._size_bytes += size_bytes
        self._num_problems += num_problems
        now_s = time.monotonic()
        if self._num_images < self._total and now_s - self._last_line_s < _LINE_EVERY_S:
            return
        self._last_line_s = now_s
        elapsed_s = max(now_s - self._started_s, 1e-3)
        left_s = elapsed_s * (self._total - self._num_images) / max(self._num_images, 1)
        self._announce(
            f"{self._verb}  {self._num_shards:,} shards  {self._num_images:,}/{self._total:,} images  "
            f"{self._num_images / elapsed_s:,.0f} images/s  {self._size_bytes / elapsed_s / 1e6:.1f} MB/s  "
            f"{self._num_problems} {self._problem}  ETA {format_duration(left_s)}"
        )
