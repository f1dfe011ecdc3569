import pickle

from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus_listing import CorpusListing
from data.list_corpus import collect
from data.listing import batch_of
from data.shard_plan import MEMBER_OVERHEAD_BYTES, ShardPlan, ShardPlans
from data.types import Record
from tests.listings import listing_of


def record(index: int, size_bytes: int, split: str) -> Record:
    return Record(
        key=f"c/{index}.png", path=f"c/{index}.png", labels=("c",), split=split,
        size_bytes=size_bytes, etag=str(index),
    )  # fmt: skip


def plan(listing: CorpusListing, shard_size_bytes: int) -> list[ShardPlan]:
    return list(ShardPlans(listing, classes=("c",), shard_size_bytes=shard_size_bytes))


def lists_of_records() -> st.SearchStrategy[list[Record]]:
    rows = st.lists(st.tuples(st.integers(0, 5000), st.sampled_from(["train", "eval"])), max_size=60)
    return rows.map(lambda found: [record(i, size, split) for i, (size, split) in enumerate(found)])


@settings(deadline=None)
@given(lists_of_records(), st.integers(1, 30_000), st.randoms(use_true_random=False), st.integers(1, 7))
def test_every_record_once_in_its_split_whatever_the_order_and_the_batches(
    records: list[Record], shard_size_bytes: int, rng: object, batch_rows: int
) -> None:
    plans = plan(listing_of(records, seed=3), shard_size_bytes)
    planned = [found for one in plans for found in one.records]
    assert sorted(planned, key=lambda r: r.key) == sorted(records, key=lambda r: r.key)
    assert all(found.split == one.split for one in plans for found in one.records)
    assert all(one.records for one in plans)
    rng.shuffle(shuffled := list(records))
    batches = [shuffled[first : first + batch_rows] for first in range(0, len(shuffled), batch_rows)]
    again = collect(CorpusListing(3), map(batch_of, batches), None)
    assert [(one.split, one.records) for one in plan(again, shard_size_bytes)] == [
        (one.split, one.records) for one in plans
    ]


def test_shards_are_of_equal_size_and_mix_the_listing() -> None:
    """A greedy cut leaves a last shard of a few images, which one worker then reads alone."""
    records = [record(i, 1000, "train") for i in range(1000)]
    plans = plan(listing_of(records), 900_000)
    sizes = [sum(r.size_bytes + MEMBER_OVERHEAD_BYTES for r in one.records) for one in plans]
    assert max(sizes) - min(sizes) < 10_000
    assert max(sizes) < 910_000
    indices = [int(r.etag) for r in plans[0].records]
    assert indices != sorted(indices)
    assert max(indices) - min(indices) > 900


def test_no_records_no_plans() -> None:
    assert plan(listing_of([]), 1) == []


def test_a_plan_is_sent_with_its_own_rows_only() -> None:
    """A slice of an Arrow table takes all of the table along."""
    records = [record(i, 1000, "train") for i in range(20_000)]
    first = next(iter(ShardPlans(listing_of(records), classes=("c",), shard_size_bytes=60_000)))
    assert len(pickle.dumps(first)) < 10_000
