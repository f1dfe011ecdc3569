"""Write shards as Ray tasks, with progress: images/s, MB/s, ETA and rejects so far."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from coatnet.progress import format_duration
from data.build import RunAll, ShardingConfig
from data.shard_plan import ShardPlan
from data.shard_write import ShardResult, write_shard
from data.store import Store
from infra.ray_tasks import run_tasks
from pipelines.shard_command import counts

_LINE_EVERY_S = 2.0


def run_shard_tasks(
    corpus: Store,
    dataset: Store,
    config: ShardingConfig,
    *,
    max_in_flight: int,
    announce: Callable[[str], None],
) -> RunAll:
    """Return what fans `write_shard` out as Ray tasks, one a shard."""

    def run_all(plans: list[ShardPlan]) -> list[ShardResult]:
        progress = ShardingProgress(plans, announce)
        return run_tasks(
            partial(write_shard, corpus=corpus, dataset=dataset, limits=config.limits),
            plans,
            max_in_flight=max_in_flight,
            on_done=progress.on_done,
        )

    return run_all


class Arrivals:
    """What an append found, for the case that it keeps nothing."""

    def __init__(self) -> None:
        self._num_images = 0
        self._reasons: Counter[str] = Counter()

    def count(self, plans: Sequence[ShardPlan], results: Sequence[ShardResult]) -> None:
        """Take note of what became of an append's shards."""
        self._num_images = sum(len(plan.records) for plan in plans)
        self._reasons = Counter(reject.reason for result in results for reject in result.rejects)
        # Nothing was kept: what could be read is in the data set already, in one split or the other.
        self._reasons["known already"] += self._num_images - self._reasons.total()

    @property
    def reasons(self) -> dict[str, int]:
        """Why new images were not kept."""
        return {reason: count for reason, count in self._reasons.items() if count}

    def describe(self) -> str:
        """Return `2 new images, none of use (...)`."""
        if not self._num_images:
            return "no new image"
        return f"{self._num_images} new images, none of use ({counts(self.reasons)})"


class ShardingProgress:
    """Counts finished shards and announces a line now and then, and at the end."""

    def __init__(self, plans: Sequence[ShardPlan], announce: Callable[[str], None]) -> None:
        self._plans = plans
        self._announce = announce
        self._started = self._last_line = time.monotonic()
        self._num_shards = self._num_images = self._num_bytes = self._num_rejects = 0

    def on_done(self, index: int, result: ShardResult) -> None:
        """Take note of a finished shard."""
        records = self._plans[index].records
        self._num_shards += 1
        self._num_images += len(records)
        self._num_bytes += sum(record.size_bytes for record in records)
        self._num_rejects += len(result.rejects)
        now = time.monotonic()
        if self._num_shards < len(self._plans) and now - self._last_line < _LINE_EVERY_S:
            return
        self._last_line = now
        elapsed_s = max(now - self._started, 1e-3)
        left_s = elapsed_s * (len(self._plans) - self._num_shards) / self._num_shards
        self._announce(
            f"shard  {self._num_shards}/{len(self._plans)} shards  {self._num_images:,} images  "
            f"{self._num_images / elapsed_s:,.0f} images/s  {self._num_bytes / elapsed_s / 1e6:.1f} MB/s  "
            f"{self._num_rejects} rejected  ETA {format_duration(left_s)}"
        )
