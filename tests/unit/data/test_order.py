"""The order's promises: same global batches at any world size, exactly once, resumable, O(shards)."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.cursor import Cursor, OrderIdentity
from data.errors import InputError
from data.order import (
    PADDING,
    EpochOrder,
    EvalOrder,
    OrderConfig,
    RankBatch,
    lanes_of,
    steps_per_epoch,
)

WORLD_SIZES = (1, 2, 3, 8)
Pair = tuple[int, int]

shard_sizes = st.lists(st.integers(0, 60), min_size=1, max_size=12)


@st.composite
def order_configs(draw: st.DrawFn) -> OrderConfig:
    num_lanes = draw(st.sampled_from([1, 2, 3, 8, 12]))
    return OrderConfig(
        global_batch_size=num_lanes * draw(st.integers(1, 4)),
        num_lanes=num_lanes,
        shuffle_window=draw(st.integers(1, 400)),
        seed=draw(st.integers(-5, 2**40)),
    )


def pairs_of(batch: RankBatch) -> list[Pair]:
    kept = batch.weights_B > 0
    return list(zip(batch.shard_B[kept].tolist(), batch.row_B[kept].tolist(), strict=True))


def global_batch(order: EpochOrder, step: int, world_size: int) -> list[Pair]:
    return [pair for rank in range(world_size) for pair in pairs_of(order.batch(step, rank, world_size))]


def all_pairs(sizes: list[int]) -> set[Pair]:
    return {(shard, row) for shard, size in enumerate(sizes) for row in range(size)}


@settings(deadline=None, max_examples=60)
@given(sizes=shard_sizes, config=order_configs(), epoch=st.integers(0, 3))
def test_global_batches_are_the_same_for_every_world_size(
    sizes: list[int], config: OrderConfig, epoch: int
) -> None:
    assume(sum(sizes) >= config.global_batch_size)
    orders = {w: EpochOrder(sizes, config, epoch) for w in WORLD_SIZES if w <= config.num_lanes}
    for step in range(orders[1].steps_per_epoch):
        batches = [global_batch(order, step, world_size) for world_size, order in orders.items()]
        assert len(batches[0]) == config.global_batch_size
        assert all(batch == batches[0] for batch in batches)


@settings(deadline=None, max_examples=60)
@given(sizes=shard_sizes, config=order_configs(), epoch=st.integers(0, 3))
def test_every_kept_sample_comes_once(sizes: list[int], config: OrderConfig, epoch: int) -> None:
    assume(sum(sizes) >= config.global_batch_size)
    order = EpochOrder(sizes, config, epoch)
    seen = [pair for step in range(order.steps_per_epoch) for pair in global_batch(order, step, 1)]
    assert len(seen) == len(set(seen)) == sum(sizes) - order.num_left_out
    assert set(seen) <= all_pairs(sizes)
    assert order.num_left_out == sum(sizes) % config.global_batch_size


@settings(deadline=None, max_examples=60)
@given(sizes=shard_sizes, config=order_configs(), data=st.data())
def test_resume_at_any_step_with_another_world_size(
    sizes: list[int], config: OrderConfig, data: st.DataObject
) -> None:
    """A cached block permutation of an earlier step must not leak into a later one."""
    assume(sum(sizes) >= config.global_batch_size)
    whole = EpochOrder(sizes, config, 0)
    expected = [global_batch(whole, step, 1) for step in range(whole.steps_per_epoch)]
    start = data.draw(st.integers(0, whole.steps_per_epoch - 1))
    world_size = data.draw(st.integers(1, config.num_lanes))
    resumed = EpochOrder(sizes, config, 0)
    assert [global_batch(resumed, s, world_size) for s in range(start, len(expected))] == expected[start:]
    shuffled = data.draw(st.permutations(range(len(expected))))
    assert [global_batch(resumed, s, world_size) for s in shuffled] == [expected[s] for s in shuffled]


@settings(deadline=None, max_examples=60)
@given(sizes=shard_sizes, config=order_configs())
def test_positions_are_unique_and_name_the_sample(sizes: list[int], config: OrderConfig) -> None:
    assume(sum(sizes) >= config.global_batch_size)
    order = EpochOrder(sizes, config, 1)
    positions = np.concatenate([order.batch(s, 0, 1).positions_B for s in range(order.steps_per_epoch)])
    assert sorted(positions.tolist()) == list(range(len(positions)))


@settings(deadline=None, max_examples=60)
@given(sizes=shard_sizes, batch_size=st.integers(1, 40), world_size=st.sampled_from(WORLD_SIZES))
def test_eval_exactly_once_with_a_mask(sizes: list[int], batch_size: int, world_size: int) -> None:
    assume(sum(sizes) > 0)
    orders = [EvalOrder(sizes, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({order.num_steps for order in orders}) == 1
    batches = [order.batch(step) for order in orders for step in range(order.num_steps)]
    assert len({len(batch.shard_B) for batch in batches}) == 1
    seen = [pair for batch in batches for pair in pairs_of(batch)]
    assert seen == sorted(all_pairs(sizes))
    for batch in batches:
        assert ((batch.shard_B == PADDING) == (batch.weights_B == 0)).all()


@settings(deadline=None, max_examples=100)
@given(num_lanes=st.integers(1, 40), data=st.data())
def test_lanes_follow_the_formula(num_lanes: int, data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, num_lanes))
    for rank in range(world_size):
        expected = [j for j in range(num_lanes) if j * world_size // num_lanes == rank]
        assert list(lanes_of(rank, world_size, num_lanes)) == expected


def test_ranks_with_a_lane_less_are_padded() -> None:
    """8 lanes on 3 ranks: 3 + 3 + 2 lanes. Unequal batches hang collectives."""
    order = EpochOrder([100], OrderConfig(global_batch_size=16), 0)
    batches = [order.batch(0, rank, 3) for rank in range(3)]
    assert [len(batch.shard_B) for batch in batches] == [6, 6, 6]
    assert [batch.weights_B.sum() for batch in batches] == [6, 6, 4]
    assert batches[2].row_B[4:].tolist() == batches[2].positions_B[4:].tolist() == [PADDING, PADDING]


def test_epochs_differ_and_leave_out_others() -> None:
    config = OrderConfig(global_batch_size=16, shuffle_window=64)
    sizes = [30] * 10
    kept: list[set[Pair]] = []
    for epoch in range(4):
        order = EpochOrder(sizes, config, epoch)
        kept.append({p for s in range(order.steps_per_epoch) for p in global_batch(order, s, 1)})
        assert order.num_left_out == 12
    assert len({frozenset(all_pairs(sizes) - epoch_kept) for epoch_kept in kept}) > 1
    first = [global_batch(EpochOrder(sizes, config, epoch), 0, 1) for epoch in (0, 1)]
    assert first[0] != first[1]


def test_seed_changes_the_order_and_blocks_are_shuffled() -> None:
    def rows(seed: int) -> list[int]:
        config = OrderConfig(global_batch_size=100, num_lanes=1, shuffle_window=1000, seed=seed)
        return EpochOrder([1000], config, 0).batch(0, 0, 1).row_B.tolist()

    assert rows(0) != rows(1)
    assert abs(np.corrcoef(rows(0), np.arange(100))[0, 1]) < 0.3
    assert max(rows(0)) > 900  # the window reaches over the whole shard


def test_window_bounds_how_far_a_sample_moves() -> None:
    """A lane step within block k only holds positions of block k: that bounds the shards open at once."""
    config = OrderConfig(global_batch_size=8, num_lanes=2, shuffle_window=40)
    order = EpochOrder([400], config, 0)
    positions = order.batch(7, 0, 2).positions_B  # lane positions 28 to 31 of blocks of 20
    assert ((positions >= 20) & (positions < 40)).all()


def test_the_order_is_frozen() -> None:
    """If this fails, raise FORMAT_VERSION: kept cursors would silently see other batches."""
    order = EpochOrder([5, 7, 0, 9], OrderConfig(global_batch_size=4, num_lanes=2, shuffle_window=8), 1)
    assert [global_batch(order, step, 1) for step in (0, 4)] == FROZEN_BATCHES


def test_too_few_samples_names_both_numbers() -> None:
    with pytest.raises(InputError, match=r"7 samples.*global batch of 16"):
        EpochOrder([3, 4], OrderConfig(global_batch_size=16), 0)
    with pytest.raises(InputError, match="0 samples"):
        steps_per_epoch(0, OrderConfig(global_batch_size=16))
    with pytest.raises(InputError, match="eval split has no samples"):
        EvalOrder([0, 0], 4, 0, 1)


def test_bad_configuration_is_refused() -> None:
    with pytest.raises(InputError, match="20 is not a multiple of num_lanes 8"):
        OrderConfig(global_batch_size=20)
    with pytest.raises(InputError, match="shuffle_window is 0"):
        OrderConfig(global_batch_size=8, shuffle_window=0)
    order = EpochOrder([64], OrderConfig(global_batch_size=16), 0)
    with pytest.raises(InputError, match="world_size 9 exceeds num_lanes 8"):
        order.batch(0, 0, 9)
    with pytest.raises(InputError, match="rank is 2"):
        order.batch(0, 2, 2)
    with pytest.raises(InputError, match="steps 0 to 3"):
        order.batch(4, 0, 1)


IDENTITY = OrderIdentity.of(OrderConfig(global_batch_size=64), snapshot_id="3-abcdefabcdef", split="train")


def test_cursor_survives_json_and_advances() -> None:
    cursor = Cursor(identity=IDENTITY, epoch=2, step=7)
    assert Cursor.from_dict(json.loads(json.dumps(cursor.to_dict()))) == cursor
    assert cursor.after_step(9) == Cursor(identity=IDENTITY, epoch=2, step=8)
    assert cursor.after_step(8) == Cursor(identity=IDENTITY, epoch=3, step=0)
    cursor.check(IDENTITY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", 99),
        ("snapshot_id", "4-abcdefabcdef"),
        ("split", "eval"),
        ("global_batch_size", 128),
        ("num_lanes", 16),
        ("shuffle_window", 1),
        ("seed", 5),
    ],
)
def test_cursor_of_another_order_is_refused_by_name(field: str, value: object) -> None:
    stored = Cursor(identity=IDENTITY, epoch=0, step=0).to_dict()
    stored["identity"][field] = value  # type: ignore[index]
    with pytest.raises(InputError, match=rf"{field} \({value!r} kept, ") as refused:
        Cursor.from_dict(stored).check(IDENTITY)
    others = set(stored["identity"]) - {field}  # type: ignore[call-overload]
    assert not any(f"{other} (" in str(refused.value) for other in others)


def test_malformed_cursor_is_refused() -> None:
    good = Cursor(identity=IDENTITY, epoch=0, step=0).to_dict()
    with pytest.raises(InputError, match="no identity"):
        Cursor.from_dict({"epoch": 0})
    with pytest.raises(InputError, match="has the fields"):
        Cursor.from_dict({**good, "mixture": 1})
    with pytest.raises(InputError, match="step='7'"):
        Cursor.from_dict({**good, "step": "7"})


def test_memory_grows_with_shards_not_samples() -> None:
    """100,000 shards with 3 or 300 million samples take the same memory (speed: bench_order)."""
    config = OrderConfig(global_batch_size=1024, num_lanes=16)
    peaks: list[int] = []
    for shard_size in (30, 3_000):
        sizes = np.full(100_000, shard_size)
        tracemalloc.start()
        order = EpochOrder(sizes, config, 0)
        for step in (order.steps_per_epoch - 1, 3, order.steps_per_epoch // 3):
            order.batch(step, 0, 2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 20e6
    assert max(peaks) < 1.1 * min(peaks)


FROZEN_BATCHES: list[list[Pair]] = [[(3, 3), (3, 0), (0, 2), (0, 1)], [(0, 0), (3, 8), (1, 4), (1, 5)]]
