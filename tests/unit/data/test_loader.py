"""Same batches for any ranks, threads and resume; every sample once; work goes on ahead."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import batch_reader
from data.crop import DecodeConfig
from data.errors import InputError
from data.order import EpochOrder
from data.shard_prefetch import ShardPrefetch
from data.tar_reader import ShardReader, StoredImage
from tests.small_loaders import (
    NUM_EVAL,
    NUM_TRAIN,
    ORDER,
    Dataset,
    Row,
    decode_threads,
    epoch_rows,
    eval_loader,
    real_rows,
    train_loader,
)


def test_a_batch_is_what_it_says(cached: Dataset) -> None:
    batch = next(iter(train_loader(cached).batches(2, 1)))
    assert batch.images_BHWC.shape == (16, 16, 16, 3)
    assert batch.images_BHWC.dtype == torch.uint8
    assert (batch.labels_B.dtype, batch.weights_B.dtype, batch.positions_B.dtype) == (
        torch.int64, torch.float32, torch.int64,
    )  # fmt: skip
    assert batch.weights_B.tolist() == [1.0] * 16
    assert (batch.epoch, batch.step) == (2, 1)
    for key, label in zip(batch.keys, batch.labels_B.tolist(), strict=True):
        assert cached[1].classes[label] == key.split("/")[-2]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_same_batches_for_any_ranks_and_threads(
    cached: Dataset, expected: list[list[Row]], world_size: int, num_threads: int
) -> None:
    """Same keys, labels, positions and pixels."""
    assert epoch_rows(cached, world_size, num_threads=num_threads) == expected


@settings(deadline=None, max_examples=10)
@given(start=st.integers(0, NUM_TRAIN // 16), world_size=st.sampled_from([1, 2, 3, 8]))
def test_resume_goes_on_with_the_next_batch(
    cached: Dataset, expected: list[list[Row]], start: int, world_size: int
) -> None:
    assert epoch_rows(cached, world_size, start_step=start) == expected[start:]


def test_every_kept_sample_once_and_epochs_differ(cached: Dataset, expected: list[list[Row]]) -> None:
    loader = train_loader(cached)
    assert (loader.steps_per_epoch, loader.epoch_order(0).num_left_out, loader.num_samples) == (
        3,
        13,
        NUM_TRAIN,
    )
    keys = [row[0] for batch in expected for row in batch]
    assert len(keys) == len(set(keys)) == 48
    other = epoch_rows(cached, 1, epoch=1)
    assert {row[0] for batch in other for row in batch} != set(keys)
    pixels = {row[0]: row[3] for batch in expected for row in batch}
    again = [row[3] != pixels[row[0]] for batch in other for row in batch if row[0] in pixels]
    assert all(again)  # Another epoch crops elsewhere.


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_threads", [0, 2])
def test_eval_every_sample_once(cached: Dataset, world_size: int, num_threads: int) -> None:
    loaders = [
        eval_loader(cached, rank=rank, world_size=world_size, num_threads=num_threads)
        for rank in range(world_size)
    ]
    batches = [list(loader.batches()) for loader in loaders]
    assert len({len(of_rank) for of_rank in batches}) == 1
    assert len(batches[0]) == loaders[0].num_steps
    assert len({len(batch.keys) for of_rank in batches for batch in of_rank}) == 1
    rows = [row for of_rank in batches for batch in of_rank for row in real_rows(batch)]
    assert rows == [row for batch in eval_loader(cached).batches() for row in real_rows(batch)]
    assert len({row[0] for row in rows}) == len(rows) == NUM_EVAL


def test_padding_has_no_key_and_real_pixels(cached: Dataset) -> None:
    """BatchNorm sees the padding too: black images would shift its statistics."""
    batch = next(iter(train_loader(cached, rank=2, world_size=3).batches(0)))
    assert batch.weights_B.tolist() == [1, 1, 1, 1, 0, 0]
    assert batch.keys[4:] == ("", "")
    assert torch.equal(batch.images_BHWC[4:], batch.images_BHWC[:2])


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("is_cached", [True, False])
def test_what_was_read_is_counted(cached: Dataset, num_threads: int, is_cached: bool) -> None:
    cache = cached[2] if is_cached else None
    loader = train_loader(cached, num_threads=num_threads, cache=cache)
    num_batches = sum(1 for _ in loader.batches(0))
    stats = loader.take_stats()
    assert (stats.num_batches, stats.num_images) == (num_batches, num_batches * 16)
    assert stats.num_cached == (stats.num_images if is_cached else 0)
    assert stats.read_bytes > 100 * stats.num_images
    assert stats.fetch_s > 0
    assert stats.decode_s > 0
    assert 0 <= stats.num_ready <= num_batches * 2
    assert stats.metrics()["data/cache_hit_share"] == float(is_cached)
    assert loader.take_stats().metrics() == {}, "each is of the time since the last"


def test_shards_are_asked_for_before_their_step(cached: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[list[int]] = []
    monkeypatch.setattr(ShardPrefetch, "want", lambda self, shards: wanted.append(list(shards)))
    loader = train_loader(cached, num_threads=2, prefetch_batches=1)
    order = EpochOrder([s.num_samples for s in cached[1].splits["train"]], ORDER, 0)
    steps = [sorted(set(order.batch(step, 0, 1).shard_B.tolist())) for step in range(3)]
    batches = loader.batches(0)
    next(batches)
    batches.close()
    assert wanted == steps, "of the third step too, while only the second is under way"


def test_readers_are_told_when_an_epoch_starts(cached: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[ShardReader] = []
    monkeypatch.setattr(ShardReader, "start_epoch", lambda self: told.append(self))
    loader = train_loader(cached)
    for epoch in range(2):
        next(iter(loader.batches(epoch)))
    assert len(told) == 2


def test_without_a_cache_images_are_read_ahead(
    cached: Dataset, expected: list[list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: set[str] = set()
    real = ShardReader.read

    def read(self: ShardReader, shard: int, row: int) -> StoredImage:
        names.add(threading.current_thread().name.rpartition("_")[0])
        return real(self, shard, row)

    monkeypatch.setattr(ShardReader, "read", read)
    loader = train_loader(cached, num_threads=2, cache=None)
    assert [real_rows(batch) for batch in loader.batches(0)] == expected
    assert "read-ahead" in names
    names.clear()
    list(train_loader(cached, num_threads=2).batches(0))
    assert names == {"decode"}, "nothing is read ahead from a cache"


def test_closing_the_iterator_stops_the_threads(cached: Dataset) -> None:
    batches = train_loader(cached, num_threads=3).batches(0)
    next(batches)
    assert decode_threads()
    assert isinstance(batches, Iterator)
    batches.close()  # type: ignore[attr-defined]
    assert decode_threads() == set()


def test_work_goes_on_while_the_consumer_holds_a_batch(
    cached: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a depth of 1 the next batch must already be under way, or decoding never overlaps training."""
    started: list[int] = []
    real = batch_reader.BatchReader._start

    def start(self: object, step: int, *rest: object) -> object:
        started.append(step)
        return real(self, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_reader.BatchReader, "_start", start)
    for depth in (1, 2):
        started.clear()
        batches = train_loader(cached, num_threads=1, prefetch_batches=depth).batches(0)
        next(batches)
        assert started == list(range(depth + 1))
        batches.close()  # type: ignore[attr-defined]
    started.clear()
    next(train_loader(cached, num_threads=0).batches(0))
    assert started == [0]


def test_what_does_not_fit_is_refused(cached: Dataset) -> None:
    with pytest.raises(InputError, match="has no split 'test'; it has eval, train"):
        train_loader(cached, split="test")
    with pytest.raises(InputError, match="world_size 9 exceeds num_lanes 8"):
        train_loader(cached, world_size=9)
    with pytest.raises(InputError, match=r"61 samples, fewer than one global batch of 64"):
        train_loader(cached, order=replace(ORDER, global_batch_size=64))
    with pytest.raises(InputError, match="start_step is 4; an epoch has 3 steps"):
        train_loader(cached).batches(0, 4)
    with pytest.raises(InputError, match="prefetch_batches is 0"):
        train_loader(cached, prefetch_batches=0)
    with pytest.raises(InputError, match="num_threads is -1"):
        eval_loader(cached, num_threads=-1)


def test_identity_names_the_snapshot(cached: Dataset) -> None:
    identity = train_loader(cached, rank=1, world_size=2, num_threads=3).identity
    assert identity == train_loader(cached).identity
    assert (identity.snapshot_id, identity.split, identity.seed) == (cached[1].id, "train", 3)


def test_random_pad_recipe_runs(cached: Dataset) -> None:
    decode = DecodeConfig(image_size_px=24, crop_mode="random_pad")
    loaders = [train_loader(cached, decode=decode, num_threads=n) for n in (0, 2)]
    first, second = (np.concatenate([b.images_BHWC for b in loader.batches(0)]) for loader in loaders)
    np.testing.assert_array_equal(first, second)
