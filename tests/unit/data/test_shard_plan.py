import random

from hypothesis import given, settings
from hypothesis import strategies as st

from data.shard_plan import MEMBER_OVERHEAD_BYTES, plan_shards
from data.types import Record


def record(index: int, size_bytes: int, split: str | None) -> Record:
    return Record(
        key=f"c/{index}.png", path=f"c/{index}.png", labels=("c",), split=split,
        size_bytes=size_bytes, etag=str(index),
    )  # fmt: skip


records_strategy = st.lists(
    st.tuples(st.integers(0, 5000), st.sampled_from(["train", "eval", None])), max_size=60
).map(lambda rows: [record(i, size, split) for i, (size, split) in enumerate(rows)])


@settings(deadline=None)
@given(records_strategy, st.integers(1, 30_000), st.randoms(use_true_random=False))
def test_every_record_once_in_its_split_whatever_the_order(
    records: list[Record], shard_size_bytes: int, rng: random.Random
) -> None:
    options = {"classes": ("c",), "seed": 3, "shard_size_bytes": shard_size_bytes, "eval_fraction": 0.3}
    plans = plan_shards(records, **options)
    planned = [r for plan in plans for r in plan.records]
    assert sorted(planned, key=lambda r: r.key) == sorted(records, key=lambda r: r.key)
    assert all(r.split in (plan.split, None) for plan in plans for r in plan.records)
    assert all(plan.records for plan in plans)
    shuffled = list(records)
    rng.shuffle(shuffled)
    assert plan_shards(shuffled, **options) == plans


def test_shards_are_of_equal_size_and_mix_the_listing() -> None:
    """A greedy cut leaves a last shard of a few images, which one worker then reads alone."""
    records = [record(i, 1000, "train") for i in range(1000)]
    plans = plan_shards(records, classes=("c",), seed=0, shard_size_bytes=900_000, eval_fraction=0)
    sizes = [sum(r.size_bytes + MEMBER_OVERHEAD_BYTES for r in plan.records) for plan in plans]
    assert max(sizes) - min(sizes) < 10_000
    assert max(sizes) < 910_000
    indices = [int(r.etag) for r in plans[0].records]
    assert indices != sorted(indices)
    assert max(indices) - min(indices) > 900


def test_no_records_no_plans() -> None:
    assert plan_shards([], classes=(), seed=0, shard_size_bytes=1, eval_fraction=0.1) == []
