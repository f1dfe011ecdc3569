"""Indexes in use stay, however many rows they have, up to a bound; idle ones go."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from data import index_cache
from data.index_cache import IndexCache, ShardIndex
from data.order import EpochOrder, OrderConfig


class CountingLoad:
    """Returns indexes of equally many rows, and counts."""

    def __init__(self, num_rows: int) -> None:
        self.loads: Counter[int] = Counter()
        zeros = np.zeros(num_rows, dtype=np.int64)
        names = pa.array([""] * num_rows)
        crcs = zeros.astype(np.uint32)
        self._index = ShardIndex(offsets=zeros, sizes=zeros, crcs=crcs, labels=zeros, names=names)

    def __call__(self, shard: int) -> ShardIndex:
        self.loads[shard] += 1
        return self._index


def read_steps(cache: IndexCache, order: EpochOrder, num_steps: int) -> set[int]:
    """Ask for the index of each row; return the shards that this took."""
    shards = [shard for step in range(num_steps) for shard in order.batch(step, 0, 1).shard_B.tolist()]
    for shard in shards:
        cache.get(shard)
    return set(shards)


def test_lanes_whose_shards_have_many_rows_load_each_index_once(caplog: pytest.LogCaptureFixture) -> None:
    """More than 1,000,000 rows in use were too many: 3,868 loads in 60 steps for 66 shards, and no word."""
    order = EpochOrder([26_000] * 200, OrderConfig(global_batch_size=1024, num_lanes=64), epoch=0)
    load = CountingLoad(26_000)
    shards = read_steps(IndexCache(load), order, 60)
    assert 26_000 * len(shards) > 1_600_000
    assert load.loads == dict.fromkeys(shards, 1)
    assert caplog.messages == []


def test_more_rows_in_use_than_may_be_kept_are_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(index_cache, "_MAX_IDLE_ROWS", 100)
    monkeypatch.setattr(index_cache, "_MAX_ROWS", 400)
    cache = IndexCache(load := CountingLoad(100))
    for _ in range(3):
        for shard in range(5):
            cache.get(shard)
            assert sum(cache.known(shard) is not None for shard in range(5)) <= 4
    assert load.loads == dict.fromkeys(range(5), 3)
    (warning,) = caplog.messages
    assert "more than 400 rows together" in warning


def test_idle_indexes_go_first_and_leave_the_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An epoch goes through all shards: what it is done with must not stay."""
    monkeypatch.setattr(index_cache, "_MAX_IDLE_ROWS", 300)
    monkeypatch.setattr(index_cache, "_NUM_READS_IN_USE", 50)
    cache = IndexCache(load := CountingLoad(100))
    for shard in range(1, 20):
        for _ in range(40):
            cache.get(0)
            cache.get(shard)
        assert sum(cache.known(shard) is not None for shard in range(20)) == min(3, shard + 1)
    assert load.loads == dict.fromkeys(range(20), 1)
    assert caplog.messages == []
