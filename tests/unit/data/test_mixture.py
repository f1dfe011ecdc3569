"""Mixtures keep the order's promises: any world size, each source once per its own epoch, resumable."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cursor import Cursor, OrderIdentity
from data.errors import InputError
from data.mixture import PERIOD, MixtureOrder, WeightsFrom, check_schedule, weights_at
from data.order import PADDING, OrderConfig, RankBatch

WORLD_SIZES = (1, 2, 3, 8)
Pair = tuple[int, int]
Schedule = tuple[WeightsFrom, ...]


@st.composite
def source_sizes(draw: st.DrawFn) -> list[list[int]]:
    """Two to four sources of a few shards, some empty; each has a sample for each of 12 lanes."""
    shards = st.lists(st.integers(0, 40), min_size=1, max_size=5)
    return [[*draw(shards), draw(st.integers(12, 30))] for _ in range(draw(st.integers(2, 4)))]


@st.composite
def order_configs(draw: st.DrawFn) -> OrderConfig:
    num_lanes = draw(st.sampled_from([1, 2, 3, 8, 12]))
    return OrderConfig(
        global_batch_size=num_lanes * draw(st.integers(1, 3)),
        num_lanes=num_lanes,
        shuffle_window=draw(st.integers(1, 200)),
        seed=draw(st.integers(-5, 2**40)),
    )


@st.composite
def schedules(draw: st.DrawFn, num_sources: int) -> Schedule:
    """Weights from epoch 0 on, perhaps others from later ones."""
    starts = [0, *sorted(draw(st.sets(st.integers(1, 4), max_size=2)))]
    entries: list[WeightsFrom] = []
    for start in starts:
        parts = draw(st.lists(st.integers(0, 9), min_size=num_sources, max_size=num_sources).filter(any))
        entries.append(WeightsFrom(from_epoch=start, weights=tuple(part / sum(parts) for part in parts)))
    return tuple(entries)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[list[int]], OrderConfig, Schedule]:
    sizes = draw(source_sizes())
    return (
        sizes,
        draw(order_configs().filter(lambda c: c.global_batch_size <= 24)),
        draw(schedules(len(sizes))),
    )


def pairs_of(batch: RankBatch) -> list[Pair]:
    kept = batch.weights_B > 0
    return list(zip(batch.shard_B[kept].tolist(), batch.row_B[kept].tolist(), strict=True))


def global_batch(order: MixtureOrder, step: int, world_size: int = 1) -> list[Pair]:
    return [pair for rank in range(world_size) for pair in pairs_of(order.batch(step, rank, world_size))]


def source_of(sizes: list[list[int]], shard: int) -> int:
    return int(np.searchsorted(np.cumsum([len(shards) for shards in sizes]), shard, side="right"))


def lane_streams(
    sizes: list[list[int]], config: OrderConfig, schedule: Schedule, num_epochs: int
) -> list[list[list[Pair]]]:
    """Return what each lane reads of each source, in order, over the first epochs: by source, by lane."""
    streams: list[list[list[Pair]]] = [[[] for _ in range(config.num_lanes)] for _ in sizes]
    for epoch in range(num_epochs):
        order = MixtureOrder(sizes, config, schedule, epoch)
        for step in range(order.steps_per_epoch):
            for row, pair in enumerate(global_batch(order, step)):
                streams[source_of(sizes, pair[0])][row // config.lane_size].append(pair)
    return streams


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures(), data=st.data())
def test_global_batches_are_the_same_for_every_world_size_from_any_step(
    mixture: tuple[list[list[int]], OrderConfig, Schedule], data: st.DataObject
) -> None:
    sizes, config, schedule = mixture
    epoch = data.draw(st.integers(0, 5))
    whole = MixtureOrder(sizes, config, schedule, epoch)
    expected = [global_batch(whole, step) for step in range(whole.steps_per_epoch)]
    assert all(len(batch) == config.global_batch_size for batch in expected)
    start = data.draw(st.integers(0, len(expected) - 1))
    for world_size in (size for size in WORLD_SIZES if size <= config.num_lanes):
        resumed = MixtureOrder(sizes, config, schedule, epoch)
        steps = range(start, len(expected))
        assert [global_batch(resumed, step, world_size) for step in steps] == expected[start:]


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures())
def test_each_source_comes_once_per_epoch_of_its_own_whatever_the_weights_do(
    mixture: tuple[list[list[int]], OrderConfig, Schedule],
) -> None:
    sizes, config, schedule = mixture
    first_shards = np.cumsum([0, *map(len, sizes)])
    for source, lanes in enumerate(lane_streams(sizes, config, schedule, num_epochs=6)):
        length = sum(sizes[source]) // config.num_lanes
        real = {
            (first_shards[source] + shard, row)
            for shard, size in enumerate(sizes[source])
            for row in range(size)
        }
        num_epochs = min(map(len, lanes)) // length  # of the source, finished by all lanes
        for epoch in range(num_epochs):
            seen = [pair for lane in lanes for pair in lane[epoch * length : (epoch + 1) * length]]
            assert len(seen) == len(set(seen)) == config.num_lanes * length
            assert set(seen) <= real


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures())
def test_every_lane_is_mixed_by_weight(mixture: tuple[list[list[int]], OrderConfig, Schedule]) -> None:
    sizes, config, schedule = mixture
    order = MixtureOrder(sizes, config, schedule, 0)
    weights = weights_at(schedule, 0)
    counts = np.zeros((config.num_lanes, len(sizes)))
    for step in range(order.steps_per_epoch):
        for row, pair in enumerate(global_batch(order, step)):
            counts[row // config.lane_size, source_of(sizes, pair[0])] += 1
        expected = np.array(weights) * (step + 1) * config.lane_size
        assert np.abs(counts - expected).max() < len(sizes)
    passes = np.array(order.source_epochs(order.steps_per_epoch))
    lengths = np.array([sum(shards) // config.num_lanes for shards in sizes]) * config.num_lanes
    np.testing.assert_allclose(passes * lengths, counts.sum(axis=0), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures(), data=st.data())
def test_new_weights_leave_the_past_alone_and_begin_with_their_epoch(
    mixture: tuple[list[list[int]], OrderConfig, Schedule], data: st.DataObject
) -> None:
    sizes, config, schedule = mixture
    epoch = schedule[-1].from_epoch + 1
    changed = check_schedule(
        (*schedule, WeightsFrom(from_epoch=epoch, weights=data.draw(schedules(len(sizes)))[0].weights)),
        len(sizes),
    )
    identities = [identity(weights=weights) for weights in (check_schedule(schedule, len(sizes)), changed)]
    for passed in range(epoch):
        before, after = (MixtureOrder(sizes, config, s, passed) for s in (schedule, changed))
        last = before.steps_per_epoch - 1
        assert [global_batch(before, s) for s in (0, last)] == [global_batch(after, s) for s in (0, last)]
    stored = Cursor(identity=identities[0], epoch=epoch, step=0)
    stored.check(identities[1])  # At the boundary the new weights are fine,
    if identities[0] != identities[1]:
        with pytest.raises(
            InputError, match=rf"weights of epoch {epoch} .* can begin with epoch {epoch + 1}"
        ):
            replace(stored, step=1).check(identities[1])  # a step later they are not.


def test_positions_are_places_of_the_epoch_and_unique() -> None:
    """A sample that comes twice in an epoch must not be augmented alike."""
    sizes, config = [[20], [200]], OrderConfig(global_batch_size=12, num_lanes=4)
    order = MixtureOrder(sizes, config, HALVES, 0)
    batches = [order.batch(step, 0, 1) for step in range(order.steps_per_epoch)]
    positions = np.concatenate([batch.positions_B for batch in batches])
    assert sorted(positions.tolist()) == list(range(len(positions)))
    pairs = [pair for batch in batches for pair in pairs_of(batch)]
    assert len(pairs) > len(set(pairs))
    padded = order.batch(0, 2, 3)
    assert padded.weights_B.tolist() == [1, 1, 1, 0, 0, 0]
    assert padded.shard_B[3:].tolist() == padded.positions_B[3:].tolist() == [PADDING] * 3


def test_the_order_is_frozen() -> None:
    """If this fails, raise FORMAT_VERSION: kept cursors would silently see other batches."""
    schedule = (*HALVES, WeightsFrom(from_epoch=1, weights=(0.25, 0.75)))
    config = OrderConfig(global_batch_size=4, num_lanes=2, shuffle_window=8)
    order = MixtureOrder([[5, 0, 7], [9]], config, schedule, 2)
    assert [global_batch(order, step) for step in (0, 4)] == FROZEN_BATCHES


def test_memory_grows_with_shards_not_samples_or_epochs() -> None:
    config = OrderConfig(global_batch_size=1024, num_lanes=16)
    schedule = (
        WeightsFrom(from_epoch=0, weights=(0.5, 0.2, 0.3)),
        WeightsFrom(from_epoch=100, weights=(0.123, 0.456, 0.421)),
    )
    peaks: list[int] = []
    for shard_size in (100, 10_000):
        sizes = [np.full(num_shards, shard_size) for num_shards in (20_000, 5_000, 7_000)]
        tracemalloc.start()
        order = MixtureOrder(sizes, config, schedule, 200)
        for step in (0, order.steps_per_epoch // 2, order.steps_per_epoch - 1):
            order.batch(step, 0, 2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 30e6
    assert max(peaks) < 1.2 * min(peaks)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.5, 0.6), "add up to 1.1; they must add up to 1"),
        ((1.2, -0.2), "have 1.2; each must be 0, or from 0.0001 to 1"),
        ((1 - 1e-5, 1e-5), "have 1e-05; each must be 0, or from 0.0001 to 1"),
        ((float("nan"), 0.5), "have nan; each must be 0"),
        ((1.0,), "are 1; there are 2 sources"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_schedule((WeightsFrom(from_epoch=0, weights=weights),), 2)


def test_schedules_and_sources_that_cannot_be_are_refused() -> None:
    later = WeightsFrom(from_epoch=2, weights=(0.5, 0.5))
    with pytest.raises(InputError, match="needs weights from epoch 0 on"):
        check_schedule((later,), 2)
    with pytest.raises(InputError, match="from epoch 2 follow those from epoch 2"):
        check_schedule((*HALVES, later, later), 2)
    assert check_schedule((*HALVES, later), 2) == HALVES
    config = OrderConfig(global_batch_size=8)
    with pytest.raises(InputError, match="source 1 of the mixture has 7 samples, fewer than num_lanes 8"):
        MixtureOrder([[50], [3, 4]], config, HALVES, 0)
    with pytest.raises(InputError, match="step is 7; this epoch has steps 0 to 6"):
        MixtureOrder([[50], [8]], config, HALVES, 0).batch(7, 0, 1)


HALVES: Schedule = (WeightsFrom(from_epoch=0, weights=(0.5, 0.5)),)


def identity(**choices: object) -> OrderIdentity:
    usual = {"mixture": ("7-bbbbbbbbbbbb",), "weights": HALVES}
    config = OrderConfig(global_batch_size=64)
    return OrderIdentity.of(config, snapshot_id="3-aaaaaaaaaaaa", split="train", **{**usual, **choices})  # type: ignore[arg-type]


def test_the_cursor_keeps_the_mixture_through_json() -> None:
    cursor = Cursor(identity=identity(), epoch=1, step=3)
    assert Cursor.from_dict(json.loads(json.dumps(cursor.to_dict()))) == cursor
    with pytest.raises(InputError, match=r"mixture \(\('7-bbbbbbbbbbbb',\) kept, \('8-c',\) now\)"):
        cursor.check(identity(mixture=("8-c",)))
    with pytest.raises(InputError, match=r"mixture .*kept, \(\) now"):
        cursor.check(identity(mixture=(), weights=()))


def test_a_changed_past_is_refused_and_a_changed_future_is_not() -> None:
    thirds = (WeightsFrom(from_epoch=0, weights=(1 / 3, 2 / 3)),)
    cursor = Cursor(identity=identity(), epoch=2, step=0)
    with pytest.raises(InputError, match=r"weights of epoch 0 \(\[0.5, 0.5\] kept, \[0.33.* epoch 2\)"):
        cursor.check(identity(weights=thirds))
    for epoch in (1, 2):
        changed = identity(weights=(*HALVES, WeightsFrom(from_epoch=epoch, weights=(0.1, 0.9))))
        if epoch == 2:
            cursor.check(changed)
        else:
            with pytest.raises(InputError, match=r"weights of epoch 1 \(\[0.5, 0.5\] kept, \[0.1, 0.9\] now"):
                cursor.check(changed)


def test_malformed_weights_are_refused() -> None:
    stored = json.loads(json.dumps(Cursor(identity=identity(), epoch=0, step=0).to_dict()))
    for weights, message in (
        ("x", "weights='x'; expected list"),
        (["x"], "weights 'x'; expected an object"),
        ([{"from_epoch": "0", "weights": []}], "from_epoch='0'; expected int"),
        ([{"from_epoch": 0}], "has the fields"),
    ):
        stored["identity"]["weights"] = weights
        with pytest.raises(InputError, match=message):
            Cursor.from_dict(stored)


def test_weights_are_kept_to_one_part_of_the_period() -> None:
    """A third is none of 10,000 parts: over a whole period the sources differ from it by at most one."""
    order = MixtureOrder(
        [[PERIOD], [PERIOD], [PERIOD]],
        OrderConfig(global_batch_size=1000, num_lanes=1),
        (WeightsFrom(from_epoch=0, weights=(1 / 3, 1 / 3, 1 / 3)),),
        0,
    )
    counts = np.bincount([shard for step in range(10) for shard, _ in global_batch(order, step)])
    assert counts.sum() == PERIOD
    assert np.abs(counts - PERIOD / 3).max() < 1


FROZEN_BATCHES: list[list[Pair]] = [[(3, 0), (3, 2), (3, 5), (2, 4)], [(3, 2), (3, 1), (3, 7), (2, 1)]]
